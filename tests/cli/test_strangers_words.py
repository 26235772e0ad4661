"""Names and expressions that try to be more than text, through every verb that shows them."""

import csv
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from hivg_hf.cli import app

EXPRESSIONS = (
    "<img src=x onerror=alert(1)>",
    '"><script>alert(1)</script>',
    "</title></style><svg/onload=alert(1)>",
    "' onmouseover='alert(1)",
    "\x1b]0;owned\x07\x1b[2J\x9b31m dog",
    "[red]dog[/red] [/] :smile: | cell",
    '=HYPERLINK("http://x","dog")',
    "+1 dog",
    "dog\u202egod",
)
TAGS = set(
    "html head meta title style body h1 h2 h3 p table tr th td figure div img figcaption b br small span i svg rect "
    "ul li label input button code script".split()
)


class Page(HTMLParser):
    """Notes what a browser would take for more than text."""

    def __init__(self, text: str, scripts: int) -> None:
        super().__init__()
        self.scripts, self.strange = 0, []
        self.feed(text)
        if self.scripts != scripts:
            self.strange.append(f"{self.scripts} scripts")

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        if tag not in TAGS or any(name.startswith("on") for name, _ in attrs):
            self.strange.append((tag, attrs))
        self.strange += [value for name, value in attrs if name in ("src", "href") and not _is_local(value or "")]


def _is_local(address: str) -> bool:
    return address.startswith(("data:image/", "file:///")) or ":" not in address


@pytest.fixture
def table(tmp_path: Path, make_image: Any) -> Path:
    """Rows whose pictures and expressions are hostile."""
    path = tmp_path / "[b]rows.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "expression", "x1", "y1", "x2", "y2", "split"])
        for number, expression in enumerate(EXPRESSIONS):
            image = f"<img src=x onerror=y> {number}\x1b[2J.png"
            make_image(tmp_path / image, 64, 48, seed=number)
            writer.writerow([image, expression, 1, 2, 30, 40, "train" if number % 2 else "val"])
        writer.writerow(["gone<b>\x1b[2J.png", "dog", 1, 2, 30, 40, "train"])
    return path


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("COLUMNS", "300")

    def invoke(*words: Any, status: tuple[int, ...] = (0,)) -> str:
        done = CliRunner().invoke(app, [str(word) for word in words])
        assert done.exit_code in status, done.output
        controls = {mark for mark in done.output if mark in "\x1b\x07\x9b\u202e"}
        assert not controls
        return done.output

    return invoke


def test_survey(table: Path, tmp_path: Path, run: Any) -> None:
    run("survey", f"{table}:train", f"{table}:val", "--box-format", "xyxy", "--out", tmp_path / "out", status=(0, 1))
    assert Page((tmp_path / "out" / "survey.html").read_text(encoding="utf-8"), scripts=0).strange == []


def test_evaluate_and_compare(table: Path, tmp_path: Path, run: Any) -> None:
    words = ("evaluate", "--model", "tiny", "--data", table, "--split", "val", "--option", "box_format=xyxy")
    output = run(*words, "--out", tmp_path / "first")
    assert "[b]rows.csv" in output  # not taken for markup
    run(*words, "--compare", tmp_path / "first", "--out", tmp_path / "second")
    pages = [*tmp_path.glob("*/*.html")]
    assert len(pages) >= 3
    assert [Page(page.read_text(encoding="utf-8"), scripts=0).strange for page in pages] == [[]] * len(pages)


def test_clean(table: Path, tmp_path: Path, run: Any) -> None:
    options = ("--box-format", "xyxy", "--split", "val", "--threshold", "0")
    run("clean", table, tmp_path / "out", "--model", "tiny", *options)
    with (tmp_path / "out" / "review.csv").open(newline="", encoding="utf-8-sig") as file:
        lines = list(csv.reader(file))
    assert len(lines) == 6
    assert any(cell.startswith("'=HYPERLINK") for line in lines for cell in line)
    assert not [cell for line in lines[1:] for cell in line if cell.startswith(("=", "+", "@"))]


@pytest.mark.parametrize("option", ["--json", "--no-pictures"])
def test_ground(option: str, table: Path, run: Any) -> None:
    picture = next(path for path in table.parent.glob("*.png"))
    said = [text for text in EXPRESSIONS if "\n" not in text]
    output = run("ground", picture, *said, option, "--no-pictures", "--quiet")
    assert "\\u001b]0;owned\\u0007" in output
    run("ground", picture.with_name("gone\x1b[2J.png"), "dog", "--quiet", "--no-pictures", status=(2,))


def test_ground_dataset(table: Path, tmp_path: Path, run: Any) -> None:
    run("ground-dataset", table, tmp_path / "out", "--model", "tiny", "--text-column", "expression", status=(1,))


def test_review_page(tmp_path: Path) -> None:
    from hivg_hf.labeling.review_page import write_review_page

    rows = [
        {"image": f"java\tscript:alert({number}) <b>.png", "expression": text, "sent_id": text, "ref_id": text}
        | {"width": 64, "height": 48, "box": [1, 2, 30, 40], "score": 0.5}
        for number, text in enumerate(EXPRESSIONS)
    ]
    write_review_page(rows, tmp_path / "review.html", title=EXPRESSIONS[2])
    assert Page((tmp_path / "review.html").read_text(encoding="utf-8"), scripts=1).strange == []


def test_dataset_card(tmp_path: Path) -> None:
    from types import SimpleNamespace

    from hivg_hf.inference.dataset_push import make_card

    hostile = "a`b|c\n# <img src=x onerror=y>"
    ground = SimpleNamespace(model=hostile, prefix=hostile, threshold=None, image_column=hostile, text_column=hostile)
    source = SimpleNamespace(is_local=True, source=hostile)
    text = str(make_card(SimpleNamespace(parts=[], ground=ground, source=source, several=False), "alice/rows"))
    assert "\n# <" not in text
    outside = "".join(text.split("`")[::2])  # what stands in no span of code
    assert "<img" not in outside


def test_robustness_page(tmp_path: Path) -> None:
    from hivg_hf.evaluation.robustness.page import write_report

    entry = {"name": EXPRESSIONS[0], "kind": "wording", "n": 5, "before": 0.5, "after": 0.4, "difference": -0.1}
    entry |= {"strength": None, "value": None, "interval": [-0.2, 0.0]}
    report = {"conditions": {"x": entry}, "by_objects": {EXPRESSIONS[1]: {"n": 3, "accuracy": 0.5}}}
    page = write_report(tmp_path, report, EXPRESSIONS[2], plot=False)[-1]
    assert Page(page.read_text(encoding="utf-8"), scripts=0).strange == []


@pytest.mark.parametrize("name", ["../x", "a/b", "/etc/x", "", "..", "a\x00b", "x\n", "con"])
def test_names_never_leave_their_folder(name: str, tmp_path: Path) -> None:
    from hivg_hf import load_grounding_dataset
    from hivg_hf.data.writers import write_rows
    from hivg_hf.hilora import HiLoraStage
    from hivg_hf.training import parse_recipe

    rows = load_grounding_dataset("refshapes", "val", seed=1, size=2)
    with pytest.raises(ValueError, match="cannot name a file or folder"):
        write_rows(rows, tmp_path / "out", "coco", name)
    assert not (tmp_path / "out").exists()
    recipe = {
        "name": "x", "model": {"checkpoint": "tiny"}, "data": {"train": {"source": "refshapes", "split": "train"}},
        "phases": [{"name": name, "train": "heads", "steps": 1, "batch_size": 1, "learning_rate": 0.1}],
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"Phase name .* cannot name a file or folder"):
        parse_recipe(recipe)
    recipe["name"], recipe["phases"][0]["name"] = name, "one"
    with pytest.raises(ValueError, match=r"Recipe name .* cannot name a file or folder"):
        parse_recipe(recipe)
    shape = {"vision_layers": 1, "text_layers": 1, "rank": 1, "alpha": 1, "dropout": 0}
    with pytest.raises(ValueError, match=r"Stage name .* cannot name a file or folder"):
        HiLoraStage(name=name, **shape, epochs=1, learning_rate=0.1, batch_size=1)


def test_model_card_tables() -> None:
    from hivg_hf.evaluation.card_tables import markdown_table

    table = markdown_table(["data", "n"], [["a|b\n<script>`", "5"]])
    assert table.splitlines()[2] == "| a\\|b &lt;script&gt;\\` | 5 |"
