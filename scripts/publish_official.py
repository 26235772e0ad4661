"""Convert what the authors of HiVG publish and push each model as a repository of the Hub, with ONNX files beside it.

python scripts/publish_official.py --namespace NAME --license LICENSE
python scripts/publish_official.py --namespace NAME --license LICENSE --only base-mixup base-unc --images PICTURES

Afterwards `--model NAME/hivg-base-mixup` works for everybody. The license of the authors' code is Apache-2.0; that of
the weights is not stated, so whoever publishes them names one, and the card says all of this. Figures on the cards are
the authors' and marked as such, beside those that are measured here where --images names the pictures of the data sets
(the splits come from official:annotations). The ONNX files, fp32 and int8, need the extra `onnx`;
--no-onnx omits them. Log in first: `hf auth login`. The same command again does what is left. On disk a model takes
about three times the size of its weights.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hivg_hf.conversion.published import ANNOTATIONS, CLIP, FINE_TUNED_ON, OFFICIAL_NAMES, PREFIX
from hivg_hf.data import load_grounding_dataset
from hivg_hf.evaluation import EvaluationSettings, evaluate_model
from hivg_hf.evaluation.card_tables import markdown_table
from hivg_hf.evaluation.model_card import CardFacts, load_results, write_card
from hivg_hf.evaluation.published import published_figures
from hivg_hf.evaluation.sources import open_model
from hivg_hf.hub import open_official, push_folder
from hivg_hf.inference import write_current_onnx
from hivg_hf.utils.atomic import atomic_folder, write_json
from hivg_hf.utils.imports import require_package

MODELS = [name for name in OFFICIAL_NAMES if name != ANNOTATIONS and not name.endswith(f"-{CLIP}")]
SPLITS = {
    "unc": ("val", "testA", "testB"),
    "unc+": ("val", "testA", "testB"),
    "gref_umd": ("val", "test"),
    "referit": ("test",),
    "flickr": ("test",),
}
SUMMARY = """The weights that the authors of HiVG published as `{name}`, converted for transformers: an image and a
referring expression in, one box out. Converted by `hivg_hf` from the authors' file on Google Drive
({drive_id}, SHA-256 `{sha256}`), parameter by parameter; nothing was trained further."""
ONNX = """

`onnx/` has the same model for onnxruntime: `model.onnx` computes what the weights compute, `model_quantized.onnx` is
smaller and faster with its matrices in 8 bits, and was not measured. `onnx/grounding.json` says how to feed them."""
TRAINING = """By the authors: see their paper, and their code at <https://github.com/linhuixiao/HiVG>.

### The authors' figures

Acc@0.5 in percent as the authors published it, **not measured with this repository**. Where their publications differ,
all are given.

{table}

### License

The authors' code is under Apache-2.0. They do not state a license of the weights; who publishes this repository states
`{license}`."""
LIMITS = [
    "It answers every expression with one box; its score is the similarity of words and place, and not a probability.",
    "It was trained on English expressions and photographs of RefCOCO, RefCOCO+, RefCOCOg, ReferItGame or Flickr30K.",
    "The authors' code lets a prediction depend on its neighbors in a batch; here it does not, so that figures "
    "measured in batches may differ a little from theirs.",
]


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns its exit status."""
    options = _parse(arguments)
    if not options.license:
        print("Name a license for the weights (--license apache-2.0, for example): the authors state none.")
        return 2
    for package in ("onnx", "onnxscript", "onnxruntime") if options.onnx else ():  # before the first gigabyte
        require_package(package, extra="onnx")
    for name in options.only or MODELS:
        folder, repo_id = _prepare(name, options), repository(options.namespace, name)
        report = push_folder(folder, repo_id, private=options.private, update=True, onnx=options.onnx)
        state = "now holds" if report.changed else "held already"
        print(f"{report.repo_id} {state} {len(report.files)} files, commit {report.commit}")
    return 0


def repository(namespace: str, name: str) -> str:
    """Where a model goes; the Hub allows no plus in a name."""
    return f"{namespace}/hivg-{name.replace('+', '-plus')}"


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--namespace", required=True, help="user or organization on the Hub")
    parser.add_argument("--license", help="identifier of the license that the cards state; nothing is pushed without")
    parser.add_argument("--only", nargs="+", choices=MODELS, metavar="MODEL", help=f"among {', '.join(MODELS)}")
    parser.add_argument("--images", nargs="+", help="folders of the pictures; measures each model on its test splits")
    parser.add_argument("--out", type=Path, default=Path("published"), help="folder for what is pushed, and results")
    parser.add_argument("--no-onnx", dest="onnx", action="store_false", help="push without ONNX files")
    parser.add_argument("--private", action="store_true", help="make new repositories visible to you alone")
    return parser.parse_args(arguments)


def _prepare(name: str, options: argparse.Namespace) -> Path:
    """The folder to push: the converted model with its ONNX files and its card."""
    converted = open_official(name)
    results = options.out / "results" / name
    if options.images:
        _measure(name, converted, repository(options.namespace, name), options.images, results)
    origin = json.loads((converted / "official.json").read_text(encoding="utf-8"))
    facts = CardFacts(
        name=repository(options.namespace, name),
        summary=SUMMARY.format(**{**origin, "name": PREFIX + name}) + (ONNX if options.onnx else ""),
        training=TRAINING.format(table=authors_table(name), license=options.license),
        limits=LIMITS,
        license=options.license,
    )
    target = options.out / f"hivg-{name}"
    with atomic_folder(target) as folder:
        shutil.copytree(converted, folder, dirs_exist_ok=True)
        if options.onnx:
            if (target / "onnx").is_dir():  # of an earlier run: not exported again while they are current
                shutil.copytree(target / "onnx", folder / "onnx")
            write_current_onnx(folder)
        write_card(folder, facts, load_results(results))
    return target


def _measure(name: str, folder: Path, repo_id: str, images: list[str], out: Path) -> None:
    """Write a results file for each split that the model is for; those of an earlier run are kept."""
    dataset = name.partition("-")[2]
    sources = FINE_TUNED_ON if dataset == "mixup" else (dataset,)
    wanted = [(source, split) for source in sources for split in SPLITS[source]]
    model: Any = None
    for number, (source, split) in enumerate(wanted, start=1):
        target = out / f"{number:02}-{source} {split}.json"
        if target.is_file():
            continue
        model = model or open_model(str(folder))
        rows = load_grounding_dataset(source, split, root=str(open_official(ANNOTATIONS)), images=images)
        evaluation = evaluate_model(model.model, model.processor, rows, EvaluationSettings(protocol="official"))
        evaluation.describe(model.model, repo_id, source, split, {"root": PREFIX + ANNOTATIONS, "images": "PICTURES"})
        write_json(target, evaluation.results)


def authors_table(name: str) -> str:
    """The published figures of a variant, a line for each split and a column for each publication."""
    content = published_figures()
    sources = content["sources"]
    lines = [
        [f"{dataset} {split}", *(f"{figures[source]:.2f}" if source in figures else "" for source in sources)]
        for dataset, splits in content["variants"][name].items()
        for split, figures in splits.items()
    ]
    notes = "\n".join(f"- {source}: {where}" for source, where in sources.items())
    return f"{markdown_table(['data', *sources], lines)}\n\n{notes}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
