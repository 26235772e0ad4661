"""The guides run: every block of Python and every `hivg` command of docs/*.md, in order, page by page.

What the comments above blocks mean stands in helpers/pages.py.
"""

import argparse
import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from typer.testing import CliRunner

import hivg_hf
from helpers.pages import DOCS, FILE, NOT_RUN, Block, blocks
from hivg_hf.cli import VERBS, _load_verb, app

ADDED = re.compile(r"test adds(?: to (?P<verb>[\w-]+))?: (?P<options>.+)")
# tests/zero_shot/test_pages.py runs two of them with models of its own; two describe what takes hours.
ELSEWHERE = ("zero-shot.md", "labels.md", "release.md", "shipped-model.md")
RUN = ("```python", "```bash")
PAGES_THAT_RUN = ("../README.md",)
PAGES_THAT_RUN += tuple(
    path.name
    for path in sorted(DOCS.glob("*.md"))
    if path.name not in ELSEWHERE and any(mark in path.read_text(encoding="utf-8") for mark in RUN)
)
# Pages that show nothing that a test could run: a block without a reason not to run is still run.
NOTHING_RUNS = ("official.md", "share.md", "speed.md", "robustness.md")


@pytest.fixture
def workplace(
    tmp_path: Path, tiny_model: Any, tiny_processor: Any, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A folder with what the pages speak of; a checkout without the shipped checkpoint gets a tiny one."""
    from hivg_hf.data.refshapes import refshapes_dataset

    monkeypatch.chdir(tmp_path)
    if not Path(hivg_hf.TINY_CHECKPOINT).is_dir():
        tiny_model.save_pretrained(tmp_path / "shipped")
        tiny_processor.save_pretrained(tmp_path / "shipped")
        monkeypatch.setattr(hivg_hf, "TINY_CHECKPOINT", str(tmp_path / "shipped"))
    rows = refshapes_dataset("val", seed=3, size=2, masks=False)
    (tmp_path / "scenes").mkdir()
    rows[0]["image"].save(tmp_path / "scene.png")
    rows[1]["image"].save(tmp_path / "scenes" / "other.png")
    pairs = zip(("scene.png", "scenes/other.png"), rows["expression"][:], strict=True)
    lines = ["file_name,caption", *(f"{file},{expression}" for file, expression in pairs)]
    (tmp_path / "pairs.csv").write_text("\n".join(lines), encoding="utf-8")
    tiny_tokenizer.save_pretrained(tmp_path / "tokenizer")
    save_photos(tmp_path)
    return tmp_path


def save_photos(folder: Path) -> None:
    """Ten pictures with a bright rectangle each, and a table of them."""
    random = np.random.default_rng(0)
    lines = ["image,expression,x1,y1,x2,y2"]
    (folder / "photos").mkdir()
    for number in range(10):
        x, y = (int(corner) for corner in random.integers(0, 30, 2))
        picture = PIL.Image.new("RGB", (64, 48), (40, 40, 40))
        picture.paste((230, 200, 60), (x, y, x + 20, y + 16))
        picture.save(folder / "photos" / f"{number}.png")
        lines.append(f"{number}.png,the yellow box,{x},{y},{x + 20},{y + 16}")
    (folder / "my.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture
def official_file(workplace: Path) -> None:
    """A file as the authors publish them, of a tiny model."""
    from parity.official_cases import made_case

    from benchmarks.speed.official_reference import OfficialLayers

    case = made_case(OfficialLayers([0, 3, 7, 11], [1, 4, 8, 12], [6, 12]), dataset="unc+", hi_lora_stage=1)
    torch.save({"model": case.state, "args": argparse.Namespace(**case.args)}, workplace / "best_checkpoint.pth")
    (workplace / "clip.json").write_text(json.dumps(case.clip_config))


@pytest.mark.parametrize("page", PAGES_THAT_RUN)
def test_page_runs(page: str, workplace: Path, official_file: None) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    ran = 0
    for block in blocks(DOCS / page):
        if block.note.startswith(NOT_RUN):
            continue
        if block.note.startswith(FILE):
            (workplace / block.note.removeprefix(FILE)).write_text(block.code)
        elif block.language == "python":
            exec(compile("\n" * block.line + block.code, str(DOCS / page), "exec"), names)
            ran += 1
        elif block.language == "bash":
            ran += run_commands(block, page)
    assert ran or page in NOTHING_RUNS


def run_commands(block: Block, page: str) -> int:
    commands = [line for line in block.code.splitlines() if line.strip()]
    for command in commands:
        program, *arguments = shlex.split(command, comments=True)
        assert program == "hivg", f"{page}: a test can run `hivg` alone; mark the block `not run`: {command}"
        if added := ADDED.fullmatch(block.note):
            arguments += shlex.split(added["options"]) if added["verb"] in (None, arguments[0]) else []
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, f"{page}: {command}\n{done.output}\n{done.exception!r}"
    return len(commands)


@pytest.mark.parametrize("page", sorted(path.name for path in DOCS.glob("*.md")))
def test_links_between_pages_lead_somewhere(page: str) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)]+)\)", text) if "://" not in target]
    assert [target for target in targets if target and not (DOCS / target).exists()] == []


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_of_a_verb_is_on_a_page(verb: str) -> None:
    pages = [path.read_text(encoding="utf-8") for path in [*DOCS.glob("*.md"), DOCS.parent / "README.md"]]
    named = set(re.findall(r"--[a-z][a-z0-9-]*", "\n".join(pages)))
    options = [option for option in _load_verb(verb).params if option.param_type_name == "option"]
    assert [option.name for option in options if not named & {*option.opts, *option.secondary_opts}] == []


@pytest.mark.parametrize("name", ["tour.ipynb", "colab.ipynb"])
def test_notebook_runs_from_top_to_bottom(name: str, workplace: Path) -> None:
    """The cells in order, offline: Python as it stands, `!hivg` lines as commands; tagged cells need a network."""
    notebook = json.loads((DOCS / name).read_text(encoding="utf-8"))
    names: dict[str, Any] = {"__name__": "__main__"}
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert cells
    for position, cell in enumerate(cells, start=1):
        source = "".join(cell["source"])
        if source.startswith("!"):
            run_commands(Block("test adds to train: --epochs 1", "bash", source.replace("!", ""), 0), name)
        elif "needs-internet" in cell["metadata"].get("tags", ()):
            assert "official" in source  # an install or a download, and nothing that a test could run
        else:
            exec(compile(source, f"{name} cell {position}", "exec"), names)


def test_the_badge_of_the_readme_opens_the_notebook() -> None:
    text = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    (target,) = re.findall(r"\(https://colab\.research\.google\.com/github/[^/]+/[^/]+/blob/main/([^)]+)\)", text)
    assert (DOCS.parent / target).is_file()


def test_readme_and_contributing_lead_somewhere() -> None:
    for name in ("README.md", "CONTRIBUTING.md"):
        text = (DOCS.parent / name).read_text(encoding="utf-8")
        targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)]+)\)", text) if "://" not in target]
        assert [target for target in targets if target and not (DOCS.parent / target).exists()] == []


def test_blocks_and_figures_of_the_start_page_are_those_of_the_readme() -> None:
    readme, start = DOCS.parent / "README.md", DOCS / "index.md"
    shown = list(blocks(start))
    assert len(shown) > 3
    assert [block.code for block in shown if block.code not in {other.code for other in blocks(readme)}] == []
    text = start.read_text(encoding="utf-8").partition("## What it costs")[2].partition("\n## ")[0]
    figure_pattern = r"\d[\d,.]*\d|\d"
    figures = re.findall(figure_pattern, text)
    assert len(figures) > 5
    table = readme.read_text(encoding="utf-8").partition("## What an answer costs")[2]
    known = set(re.findall(figure_pattern, table))
    assert [figure for figure in figures if figure not in known] == []


def test_the_navigation_has_every_page_once() -> None:
    navigation = (DOCS.parent / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    assert sorted(re.findall(r"([\w-]+\.md)$", navigation, re.MULTILINE)) == sorted(
        path.name for path in DOCS.glob("*.md")
    )
