# /// script
# requires-python = ">=3.11"
# dependencies = ["hivg-hf"]
# ///
"""Ground every row of a Hub dataset, and push the result as a new one. One file for Hugging Face Jobs:

    hf jobs uv run --flavor t4-small --secrets HF_TOKEN scripts/jobs/ground_dataset.py \\
        owner/pairs owner/pairs-grounded --image-column image --text-column caption --model owner/model

or on any machine with uv: `uv run scripts/jobs/ground_dataset.py ...`. Every option of `hivg ground-dataset` works.
"""

import argparse
import os

from hivg_hf.cli import main


def parse() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description="Ground every row of a Hub dataset, and push the result as a new one.",
        epilog="Every other option is one of `hivg ground-dataset`.",
    )
    parser.add_argument("input_dataset", metavar="INPUT_DATASET", help="owner/name of the rows on the Hub")
    parser.add_argument("output_dataset", metavar="OUTPUT_DATASET", help="owner/name to push to")
    parser.add_argument("--image-column", default="image", help="column of pictures (default: image)")
    parser.add_argument("--text-column", default="caption", help="column of expressions (default: caption)")
    parser.add_argument("--model", default="", help="Hub id of the model (default: the one that is included)")
    parser.add_argument("--hf-token", help="access token (default: HF_TOKEN)")
    # A job's disk ends with it. On a mounted volume, a job that is started again resumes.
    parser.add_argument("--work-dir", default="grounded", help="folder for the shards (default: ./grounded)")
    return parser.parse_known_args()


if __name__ == "__main__":
    options, others = parse()
    if options.hf_token:
        os.environ["HF_TOKEN"] = options.hf_token
    columns = ["--image-column", options.image_column, "--text-column", options.text_column]
    model = ["--model", options.model] if options.model else []
    push = ["--push", options.output_dataset]
    main(["ground-dataset", options.input_dataset, options.work_dir, *columns, *model, *push, *others])
