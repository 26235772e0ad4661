"""Measure a checkpoint on a dataset; the same as `hivg evaluate`, for launchers that start a file.

python scripts/evaluate.py --model FOLDER --data refshapes --split val --seed 7 --size 2000 --out results/val
torchrun --nproc_per_node 2 scripts/evaluate.py ...
accelerate launch --config_file CONFIG scripts/evaluate.py ...
"""

from hivg_hf.cli.evaluate import main

if __name__ == "__main__":
    main()
