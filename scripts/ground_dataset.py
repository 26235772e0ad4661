"""Ground every row of a dataset: sharded JSON Lines, any number of processes, killed and started again at will.

    python scripts/ground_dataset.py --data refshapes --split val --option seed=7 --option size=2000 --out run
    accelerate launch --num_processes 8 scripts/ground_dataset.py --data refcoco --split testA --option root=/data \\
        --model user/model --out run

The same command again computes the shards that are missing, and gives the same rows as a run that was never killed.
Read them with `datasets.load_dataset("json", data_files="run/shard-*.jsonl")`.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import PartialState

from hivg_hf import TINY_CHECKPOINT
from hivg_hf.data import load_grounding_dataset
from hivg_hf.inference import DTYPES, ShardedRun, ground_shards, load_pipeline
from hivg_hf.utils.imports import require_package
from hivg_hf.utils.strict_mapping import read_options


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    if options.mask:
        require_package("pycocotools", extra="data")  # writes masks as run lengths; asked for before the work begins
    state = PartialState(cpu=not torch.cuda.is_available())
    source = read_options(options.option, "--option")
    with state.main_process_first():  # one process fills the caches that the others then read
        dataset = load_grounding_dataset(options.data, options.split, **source)
        settings = {"model": options.model, "data": options.data, "split": options.split, "options": source}
        settings |= {"mask": options.mask, "dtype": options.dtype, "batch_size": options.batch_size}
        run = ShardedRun(options.out, len(dataset), options.shard_size, settings)
    missing = run.missing()
    state.wait_for_everyone()  # all have listed the same shards before the first new one appears
    mine = missing[state.process_index :: state.num_processes]
    pipe = load_pipeline(options.model, str(state.device), options.dtype)
    failed = ground_shards(
        pipe,
        dataset,
        run,
        mine,
        show_progress=state.is_main_process,
        batch_size=options.batch_size,
        num_workers=options.num_workers,
        mask=options.mask,
    )
    if failed:
        print(f"{failed} rows could not be used; they hold an 'error'", file=sys.stderr)
    state.wait_for_everyone()
    if state.is_main_process:
        print(f"{run.rows} rows in {run.shards} shards under {run.folder.resolve()}")
    state.destroy_process_group()


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Ground every row of a dataset.")
    parser.add_argument("--data", required=True, help="any source of load_grounding_dataset")
    parser.add_argument("--split", required=True)
    parser.add_argument("--option", action="append", default=[], help="an option of the source, KEY=VALUE; repeatable")
    parser.add_argument("--model", default=TINY_CHECKPOINT, help="model folder or Hub id")
    parser.add_argument("--out", type=Path, required=True, help="folder for the shards")
    parser.add_argument("--shard-size", type=int, default=500, help="rows per shard; at most that much is lost")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--num-workers", type=int, default=0, help="processes that open images, per process")
    parser.add_argument("--dtype", choices=DTYPES, help="default: that of the checkpoint")
    parser.add_argument("--mask", action="store_true", help="also masks, as COCO run lengths")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, ImportError) as error:  # what a user can mend is one sentence
        sys.exit(f"ground_dataset: {error}")
