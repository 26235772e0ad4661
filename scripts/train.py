"""Train by a recipe.

    python scripts/train.py recipes/hivg-tiny-refshapes.yaml --out runs/tiny
    accelerate launch --config_file recipes/accelerate/multi_gpu.yaml scripts/train.py recipes/refcoco-base.yaml
    torchrun --nproc_per_node 2 scripts/train.py recipes/refcoco-base.yaml

The same as `hivg train`; started again with the same command, it goes on where it was.
"""

from hivg_hf.cli.train import main

if __name__ == "__main__":
    main()
