"""Measure a checkpoint on a dataset; the same as `hivg evaluate`, for launchers that start a file.

python scripts/evaluate.py --model FOLDER --data refshapes --split val --seed 7 --size 2000 --out results/val
torchrun --nproc_per_node 2 scripts/evaluate.py ...
accelerate launch --config_file CONFIG scripts/evaluate.py ...
"""

HIVG_COMMAND = True  # so that a signal is heard from the first import on

from hivg_hf.cli.evaluate import main  # noqa: E402

if __name__ == "__main__":
    main()
