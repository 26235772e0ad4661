"""Messages name settings as Python does; a verb of `hivg` prints them as its own options."""

import contextvars
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image
from typer.testing import CliRunner

from hivg_hf.cli import VERBS, app
from hivg_hf.cli._options import BoxFormat, Column, Images, ReaderOption, in_shell_words
from hivg_hf.data import load_grounding_dataset


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """What a verb with a few options prints where the library raises an error of this message."""

    def of(message: str, *words: str) -> str:
        def probe(
            recipe: str = "",
            split: str = "val",
            box_format: BoxFormat = None,
            images: Images = None,
            column: Column = None,
            option: ReaderOption = None,
            smooth: bool = True,
            allow_urls: bool = False,
        ) -> None:
            """Fail."""
            raise ValueError(message)

        module = ModuleType("verb_of_a_test")
        module.probe = probe  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "verb_of_a_test", module)
        monkeypatch.setitem(VERBS, "probe", ("verb_of_a_test:probe", "A verb of a test."))
        result = CliRunner().invoke(app, ["probe", *words])
        assert result.exit_code == 2
        return result.stderr.removeprefix("hivg: ").strip()

    return of


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A table of one row without a split, beside its picture, in the current folder."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (50, 50)).save("a.png")
    Path("my.csv").write_text("image,expression,x1,y1,x2,y2\na.png,the dog,1,2,30,40\n")
    return "my.csv"


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("say it with box_format=, one of xyxy, xywh", "say it with --box-format, one of xyxy, xywh"),
        ("is it box_format='xywh' or 'xyxy'?", "is it --box-format xywh or 'xyxy'?"),
        ('Fix them, or omit them with on_error="skip".', "Fix them, or omit them with --option on_error=skip."),
        ("say decimal_comma=True", "say --option decimal_comma=true"),
        ("Say columns={'expression': 'their name'}.", "Say --column expression='their name'."),
        ("Say columns={'image': 'Foto'}, please.", "Say --column image=Foto, please."),
        ("name it with columns={'expression': ...}", "name it with --column expression=..."),
        ("read all of it with split='all'", "read all of it with --split all"),
        ("give images=, the folder", "give --images, the folder"),
        ("give root=, the folder", "give --option root=..., the folder"),
        ("pass smooth=False or allow_urls=True.", "pass --no-smooth or --allow-urls."),
        ("use a model with num_queries=4", "use a model with num_queries=4"),  # not an option of the verb
        ("File not found: rows/split=train/images=3.csv", "File not found: rows/split=train/images=3.csv"),
        ("File not found: split=train/part.parquet", "File not found: split=train/part.parquet"),
    ],
)
def test_a_setting_is_named_as_the_verb_takes_it(message: str, expected: str, printed: Callable[..., str]) -> None:
    assert printed(message) == expected


def test_where_a_recipe_runs_its_keys_are_named(printed: Callable[..., str]) -> None:
    message = printed('omit them with on_error="skip", say box_format=, add allow_urls=True', "--recipe", "my.yaml")
    assert message == "omit them with on_error: skip, say box_format: ..., add --allow-urls"


def test_outside_a_verb_a_message_stays() -> None:
    assert contextvars.Context().run(in_shell_words, "say box_format=") == "say box_format="


@pytest.mark.parametrize(
    "words",
    [
        ("evaluate", "--model", "tiny", "--split", "all", "--out", "out", "--data"),
        ("calibrate", "tiny", "--split", "all", "--out", "out", "--data"),
        ("train", "--out", "out", "--data"),
        ("survey", "--out", "out"),
        ("convert-data", "--to", "coco", "out"),
        ("clean", "out"),
    ],
    ids=lambda words: words[0],
)
def test_every_verb_names_its_own_option_for_boxes(words: tuple[str, ...], table: str) -> None:
    place = len(words) - 1 if words[-1] == "out" and words[0] != "survey" else len(words)
    result = CliRunner().invoke(app, [*words[:place], table, *words[place:]])
    assert result.exit_code == 2
    assert "say what its boxes mean with --box-format, one of xyxy" in result.stderr


@pytest.mark.parametrize("split", ["val", "train"])
def test_a_table_without_splits_names_what_to_type(split: str, table: str) -> None:
    with pytest.raises(ValueError, match=r"read all of it with split='all', or with holdout=0.1 it has train and val"):
        load_grounding_dataset(table, split, box_format="xyxy")
    words = ("calibrate", "tiny", "--data", table, "--box-format", "xyxy", "--split", split, "--out", "out")
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2
    assert "read all of it with --split all, or with --option holdout=0.1 it has train and val" in result.stderr
    result = CliRunner().invoke(app, ["survey", f"{table}:{split}", "--box-format", "xyxy", "--out", "out"])
    assert result.exit_code == 2
    assert "read all of it with SOURCE:all, or with --holdout 0.1 it has train and val" in result.stderr
