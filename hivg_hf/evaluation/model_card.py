"""Model cards from facts and results files, and a page of the documentation from the same files.

    model_cards/NAME.yaml            facts that no measurement gives: what it is, how it was trained, its limits
    model_cards/results/NAME/*.json  what `hivg evaluate` wrote
    hivg_hf/evaluation/templates/hivg_model_card.md
        -> README.md in the checkpoint's folder, with `model-index` metadata
        -> the part between the markers of the page that the facts name

`python scripts/make_cards.py` writes both; with `--check` it says whether they are up to date.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.repocard_data import model_index_to_eval_results

from hivg_hf.utils.atomic import write_text
from hivg_hf.utils.strict_mapping import read_yaml

from . import card_tables
from .records import read_results

TEMPLATE = Path(__file__).parent / "templates" / "hivg_model_card.md"
CARD_NAME = "README.md"
ROBUSTNESS_LABEL = "robustness"  # of the results that fill the card's table of changes and no other
MARKERS = ("<!-- results: begin (written by scripts/make_cards.py) -->", "<!-- results: end -->")

# The Hub knows no task "visual grounding"; this one is nearest, and the tags say the rest.
_PIPELINE_TAG = "zero-shot-object-detection"
_TAGS = ["visual-grounding", "referring-expression-comprehension", "hivg"]
_METRICS = (
    ("acc@0.5", "accuracy", "Acc@0.5"),
    ("mean_iou", "mean_iou", "mean IoU"),
    ("mask_miou", "mean_iou", "mask mIoU"),
)


@dataclass
class CardFacts:
    """What a card says that no measurement gives.

    Args:
        name: of the checkpoint.
        summary: a paragraph: what it is and what it is for.
        training: how it was trained, Markdown.
        limits: what it cannot do, a sentence each.
        license: an identifier that the Hub knows.
        example: an expression for the code example.
        load_as: Python for what `from_pretrained` takes; the name in quotes by default.
        checkpoint: folder that the card is written into, relative to the repository.
        base_model: Hub id of the model it was made from.
        datasets: Hub ids of what it was trained on.
        widget: what the Hub's page offers to try, `{src, candidate_labels, example_title?}` each: the address of a
            picture, and expressions divided by commas.
        language: of the expressions.
        tags: further tags.
        page: page of the documentation that shows its figures, relative to the repository.
    """

    name: str
    summary: str
    training: str
    limits: list[str]
    license: str = "apache-2.0"
    example: str = "the man in blue"
    load_as: str = ""
    checkpoint: str | None = None
    base_model: str | None = None
    datasets: list[str] = field(default_factory=list)
    widget: list[dict[str, str]] = field(default_factory=list)
    language: str = "en"
    tags: list[str] = field(default_factory=list)
    page: str | None = None

    def __post_init__(self) -> None:
        self.load_as = self.load_as or f'"{self.name}"'
        for example in self.widget:
            if not {"src", "candidate_labels"} <= set(example) <= {"src", "candidate_labels", "example_title"}:
                raise ValueError(
                    "An example of `widget` needs src and candidate_labels, and may have example_title. Got "
                    f"{example}."
                )


def read_facts(path: str | Path) -> CardFacts:
    """Read a facts file.

    Raises:
        ValueError: a key is unknown or missing.
    """
    content = read_yaml(path, "facts file", "model_cards")
    known = {one.name for one in fields(CardFacts)}
    required = {"name", "summary", "training", "limits"}
    given = set(content)
    if given - known or required - given:
        raise ValueError(
            f"{path} is not a facts file: unknown keys {sorted(given - known)}, "
            f"missing keys {sorted(required - given)}."
        )
    return CardFacts(**content)


def build_card(facts: CardFacts, results: Mapping[str, Mapping[str, Any]]) -> ModelCard:
    """Fill the template.

    Args:
        facts: see `CardFacts`.
        results: label of each set to its results file's content; {} for a model that was not measured.

    Raises:
        ValueError: the results are of different weights.
    """
    _check_one_model(facts.name, results)
    first = next(iter(results.values()), None)
    sets = {label: one for label, one in results.items() if label != ROBUSTNESS_LABEL}
    model = None
    if first:
        model = {**first["model"], "millions": f"{first['model']['parameters'] / 1e6:.1f}"}
    return ModelCard.from_template(
        _card_data(facts, sets),
        template_str=TEMPLATE.read_text(encoding="utf-8"),
        facts=facts,
        results=results,
        model=model,
        tables={
            "figures": card_tables.figures_table(sets),
            "shapes": card_tables.shapes_table(sets),
            "controls": card_tables.controls_table(sets),
            "scores": card_tables.score_sentences(sets),
            "robustness": card_tables.robustness_section(results),
        },
        protocols=card_tables.protocol_sentences(results) + card_tables.threshold_sentence(results),
        commands=card_tables.commands(results),
        versions=", ".join(f"{name} {version}" for name, version in first["versions"].items()) if first else "",
    )


def card_text(facts: CardFacts, results: Mapping[str, Mapping[str, Any]]) -> str:
    """The card as text, checked; arguments as for `build_card`."""
    text = str(build_card(facts, results)).rstrip() + "\n"
    check_card(text)
    return text


def write_card(folder: str | Path, facts: CardFacts, results: Mapping[str, Mapping[str, Any]]) -> Path:
    """Write the card of a model into its folder, checked.

    Args:
        folder: where the weights are.
        facts, results: as for `build_card`; the results are those of `Evaluation.results` after `describe`.
    """
    text = card_text(facts, results)
    path = Path(folder) / CARD_NAME
    write_text(path, text)
    return path


def add_robustness(folder: str | Path, results: Mapping[str, Any]) -> Path:
    """Put how a model breaks into its card, in place of what stood there; a folder without a card gets one.

    Args:
        folder: where the weights are.
        results: those of one evaluation, with `robustness`.

    Returns:
        The card.
    """
    path, label = Path(folder) / CARD_NAME, results["data"]["split"]
    if not path.is_file():
        name = Path(folder).resolve().name
        facts = CardFacts(
            name=name,
            summary="A HiVG model for visual grounding: an image and an expression in, a box out.",
            training="Nobody has written it down yet.",
            limits=["Measured only on the rows named above; other pictures and other ways of speaking may do worse."],
        )
        return write_card(folder, facts, {label: {**results, "model": {**results["model"], "id": name}}})
    text, section = path.read_text(encoding="utf-8"), card_tables.robustness_section({label: results})
    heading = re.escape(card_tables.ROBUSTNESS_HEADING)
    text = re.sub(f"^{heading}\n.*?(?=^#{{1,3}} |\\Z)", "", text, count=1, flags=re.DOTALL | re.MULTILINE)
    following = re.search("^### How it was measured|^## How it was trained|\\Z", text, re.MULTILINE)
    assert following is not None  # the end of the text, where neither is there
    before, after = text[: following.start()].rstrip(), text[following.start() :].strip()
    write_text(path, "\n\n".join(part for part in (before, section, after) if part) + "\n")
    return path


def check_card(text: str) -> ModelCard:
    """Check a card as far as that is possible without the Hub, which checks it again on upload.

    Raises:
        ValueError: it has no metadata, the metadata lacks what a model needs, or its results do not read back.
    """
    card = ModelCard(text)
    metadata = card.data.to_dict()
    missing = [name for name in ("license", "library_name", "pipeline_tag", "tags") if not metadata.get(name)]
    if missing:
        raise ValueError(f"The card's metadata lacks {', '.join(missing)}.")
    if "model-index" in metadata:
        name, results = model_index_to_eval_results(metadata["model-index"])
        values = [result.metric_value for result in results]
        if not name or not values or not all(isinstance(value, (int, float)) for value in values):
            raise ValueError(f"The card's model-index does not read back as results: name {name!r}, values {values}.")
    return card


def page_block(name: str, results: Mapping[str, Mapping[str, Any]]) -> str:
    """What stands between the markers of a model's page."""
    if not results:
        return (
            f"`{name}`, the checkpoint for the package, has not been measured yet: it is still to be trained. Its "
            f"table appears here once `model_cards/results/{name}` holds results files that `hivg evaluate` wrote."
        )
    results = {label: one for label, one in results.items() if label != ROBUSTNESS_LABEL}
    parts = [
        f"`{name}`, the checkpoint in the package, in percent with 95 % intervals (bootstrap over images):",
        card_tables.figures_table(results),
        card_tables.protocol_sentences(results) + card_tables.threshold_sentence(results),
        "*Control: other expression* is Acc@0.5 of the same model when it is asked for another object of the same "
        "picture and measured against the original box.",
        "Acc@0.5 by the shape of the image:",
        card_tables.shapes_table(results),
        "Measured by",
        f"```bash\n{card_tables.commands(results)}\n```",
        f"whose results files are in `model_cards/results/{name}`; `make_cards.py` wrote this part from them.",
    ]
    return "\n\n".join(part for part in parts if part)


def replace_marked(text: str, content: str, markers: tuple[str, str] = MARKERS) -> str:
    """Put `content` between the markers of a text.

    Raises:
        ValueError: the text lacks the markers.
    """
    begin, end = (re.escape(marker) for marker in markers)
    pattern = re.compile(f"({begin}\n).*?({end})", re.DOTALL)
    if len(pattern.findall(text)) != 1:
        raise ValueError(f"Expected these two lines once, in this order: {markers[0]!r} and {markers[1]!r}.")
    return pattern.sub(lambda match: f"{match[1]}\n{content}\n\n{match[2]}", text)


def make_cards(root: str | Path, write: bool = True) -> list[Path]:
    """Bring every card and page up to date with the facts and results files.

    Args:
        root: the repository.
        write: False changes nothing.

    Returns:
        The files that were (or are) out of date.
    """
    root = Path(root)
    stale = []
    for path in sorted((root / "model_cards").glob("*.yaml")):
        facts = read_facts(path)
        results = load_results(root / "model_cards" / "results" / facts.name)
        texts = {}
        # Weights first: a folder with a card alone would look like a checkpoint.
        if facts.checkpoint and (root / facts.checkpoint).is_dir():
            texts[root / facts.checkpoint / CARD_NAME] = card_text(facts, results)
        if facts.page:
            page = root / facts.page
            texts[page] = replace_marked(page.read_text(encoding="utf-8"), page_block(facts.name, results))
        for target, text in texts.items():
            if not target.is_file() or target.read_text(encoding="utf-8") != text:
                stale.append(target)
                if write:
                    write_text(target, text)
    return stale


def load_results(folder: str | Path) -> dict[str, dict[str, Any]]:
    """Every results file of a folder in the order of their names; "01-val.json" is labelled "val"."""
    files = sorted(Path(folder).glob("*.json"))
    return {re.sub(r"^\d+-", "", file.stem): read_results(file) for file in files}


def _check_one_model(name: str, results: Mapping[str, Mapping[str, Any]]) -> None:
    hashes = {label: one["model"]["weights_sha256"] for label, one in results.items()}
    if len(set(hashes.values())) > 1:
        listed = ", ".join(f"{label} {digest[:12]}" for label, digest in hashes.items())
        raise ValueError(f"The results of {name} are of different weights: {listed}. Measure all sets again.")


def _card_data(facts: CardFacts, results: Mapping[str, Mapping[str, Any]]) -> ModelCardData:
    widget: dict[str, Any] = {"widget": facts.widget} if facts.widget else {}
    return ModelCardData(
        license=facts.license,
        language=facts.language,
        library_name="transformers",
        pipeline_tag=_PIPELINE_TAG,
        tags=[*_TAGS, *facts.tags],
        base_model=facts.base_model,
        datasets=facts.datasets or None,
        **widget,
        metrics=["accuracy", "mean_iou"] if results else None,
        model_name=facts.name if results else None,
        eval_results=[entry for label, one in results.items() for entry in _eval_results(label, one)] or None,
    )


def _eval_results(label: str, one: Mapping[str, Any]) -> list[EvalResult]:
    data = one["data"]
    return [
        EvalResult(
            task_type="visual-grounding",
            task_name="Visual Grounding",
            dataset_type=data["source"],
            dataset_name=f"{data['source']} ({label})",
            dataset_config=label,  # keeps two sets of one split apart
            dataset_split=data["split"],
            dataset_args={**data["options"], "protocol": one["protocol"], "expressions": card_tables.count_asked(one)},
            metric_type=metric,
            metric_name=title,
            metric_value=round(one["figures"][key], 4),
        )
        for key, metric, title in _METRICS
        if key in one["figures"]
    ]
