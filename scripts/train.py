"""Train by a recipe.

    python scripts/train.py hivg-tiny-refshapes --out runs/tiny
    accelerate launch --config_file hivg_hf/recipes/accelerate/multi_gpu.yaml scripts/train.py refcoco-base
    torchrun --nproc_per_node 2 scripts/train.py refcoco-base

The same as `hivg train`; started again with the same command, it resumes.
"""

HIVG_COMMAND = True  # so that a signal is heard from the first import on

from hivg_hf.cli.train import main  # noqa: E402

if __name__ == "__main__":
    main()
