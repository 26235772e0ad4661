"""Look at datasets before anything is trained on them, and write the cache that training or evaluation reads fast.

    python scripts/prepare_data.py refcoco:train refcoco:val refcoco:testA --root /data --out prepared
    python scripts/prepare_data.py my.csv:train my.csv:val --images photos --box-format xyxy --out prepared
    python scripts/prepare_data.py refcoco:val --root /data --out prepared --for eval --model FOLDER_OR_HUB_ID

Writes survey.json (counts against the published ones, statistics, every faulty row, images that training and
evaluation share), problems.txt, and for each split a contact sheet with boxes drawn: look at it. With `--for`, also
the folder `cache`, which is a source like any other: `load_grounding_dataset("prepared/cache", "val")`. Exit status 1
says that there are rows that cannot be used.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from hivg_hf.data.cache import write_cache
from hivg_hf.data.prepare import Survey, summarize, survey, write_survey
from hivg_hf.data.rows import BrokenRowsError


def main(arguments: Sequence[str] | None = None) -> int:
    """Survey, print, write; returns the exit status."""
    options = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        result = survey([to_spec(name, options) for name in options.data], decode=not options.quick)
        files = write_survey(result, options.out, options.seed)
        print("\n" + summarize(result) + "\n\nLook at:")
        print("".join(f"  {path.resolve()}\n" for path in files), end="")
        if options.purpose:
            print(f"  {make_cache(result, options).resolve()}")
    except (ValueError, OSError, ImportError) as error:
        print(f"prepare_data: {error}", file=sys.stderr)
        return 2
    return 1 if result.problems and options.on_error == "raise" else 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", metavar="SOURCE:SPLIT", help="as load_grounding_dataset takes them")
    parser.add_argument("--out", type=Path, required=True, help="folder for the survey and the cache")
    parser.add_argument("--root", help="folder of the annotations")
    parser.add_argument("--images", action="append", help="folder of pictures; may be given again")
    parser.add_argument("--box-format", help="of JSONL, CSV and Parquet: xyxy, xywh, cxcywh, or one with _normalized")
    parser.add_argument("--holdout", type=float, help="share of the images that become val in a file without splits")
    parser.add_argument("--option", action="append", default=[], metavar="KEY=VALUE", help="any other reader option")
    parser.add_argument("--multi-target", choices=("keep", "union", "drop"), help="for rows with several targets")
    parser.add_argument("--on-error", choices=("raise", "skip"), default="raise", help="skip: leave faulty rows out")
    parser.add_argument("--quick", action="store_true", help="check headers and ends of pictures, decode none")
    parser.add_argument("--for", dest="purpose", choices=("eval", "train"), help="also write a cache for this use")
    parser.add_argument("--model", help="folder or Hub id whose processor letterboxes the cache for eval")
    parser.add_argument("--seed", type=int, default=0, help="another seed puts other rows on the contact sheets")
    return parser.parse_args(arguments)


def to_spec(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """One SOURCE:SPLIT and the shared options, as arguments of `load_grounding_dataset`.

    Raises:
        ValueError: the split or the equals sign of an option is missing.
    """
    source, colon, split = name.rpartition(":")
    if not colon or not source or not split:
        raise ValueError(f"{name!r} names no split; write SOURCE:SPLIT, for example refcoco:val.")
    keys = ("root", "images", "box_format", "holdout", "multi_target")
    spec = {key: getattr(options, key) for key in keys if getattr(options, key) is not None}
    for option in options.option:
        key, equals, value = option.partition("=")
        if not equals:
            raise ValueError(f"--option {option!r} should be KEY=VALUE.")
        spec[key] = yaml.safe_load(value)
    return {"source": source, "split": split, **spec}


def make_cache(result: Survey, options: argparse.Namespace) -> Path:
    """Write the cache of everything that was surveyed.

    Raises:
        BrokenRowsError: some rows cannot be used, and leaving them out was not asked for.
        ValueError: two sources have a split of the same name, or a cache for eval was asked for without a model.
    """
    if result.problems and options.on_error == "raise":
        raise BrokenRowsError("the data", "as a whole", result.problems, sum(len(s.rows) for s in result.splits))
    names = [split.split for split in result.splits]
    if len(set(names)) < len(names):
        raise ValueError(f"one cache cannot hold two splits of one name ({', '.join(names)}); prepare them apart.")
    if options.purpose == "eval" and not options.model:
        raise ValueError("a cache for eval is letterboxed for one model: say which with --model.")
    image_processor = None
    if options.purpose == "eval":
        from hivg_hf import HiVGProcessor

        image_processor = HiVGProcessor.from_pretrained(options.model).image_processor
    rows = {split.split: split.rows for split in result.splits}
    return write_cache(rows, options.out / "cache", options.purpose, image_processor)


if __name__ == "__main__":
    sys.exit(main())
