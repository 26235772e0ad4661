"""The survey of datasets: counts, faults, leaks, statistics, contact sheets, and the script around it."""

import json

import numpy as np
import pytest
from PIL import Image

from hivg_hf.cli import main
from hivg_hf.data.loading import load_grounding_dataset
from hivg_hf.data.prepare import contact_sheet, summarize, survey, write_survey


@pytest.fixture
def script():
    """`hivg survey`, as a function of its words that returns the exit status."""

    def run(arguments):
        with pytest.raises(SystemExit) as ended:
            main(["survey", *arguments])
        return ended.value.code or 0

    return run


@pytest.fixture
def table(tmp_path, make_image):
    """Six rows of four pictures: two splits that share one picture, one missing picture, one box outside."""
    for name in "abc":
        make_image(tmp_path / f"{name}.jpg", 64, 48)
    rows = [
        "a.jpg,the red dog,1,2,30,40,train",
        "b.jpg,dog,1,2,30,40,train",
        "b.jpg,the large dog on the left,5,5,30,40,train",
        "gone.jpg,dog,1,2,30,40,train",
        "b.jpg,a cat,1,2,30,40,val",
        "c.jpg,a cat,1,2,90,40,val",
    ]
    path = tmp_path / "mine.csv"
    path.write_text("image,expression,x1,y1,x2,y2,split\n" + "\n".join(rows) + "\n")
    return path


def _specs(path, *splits):
    return [{"source": path, "split": split, "box_format": "xyxy"} for split in splits]


def test_faults_leaks_and_statistics_are_found(table):
    result = survey(_specs(table, "train", "val"))
    content = result.to_dict()
    train, val = content["splits"].values()
    assert train["read"] == {"expressions": 3, "objects": 3, "images": 2}
    assert train["rows_that_cannot_be_used"]["by_kind"] == {"missing image": 1}
    assert "gone.jpg" in train["rows_that_cannot_be_used"]["images"][0]
    assert val["rows_that_cannot_be_used"]["by_kind"] == {"box outside": 1}
    assert "reaches 26 pixels out of its image" in val["rows_that_cannot_be_used"]["rows"][0]
    assert content["shared_images"] == {f"{table}:train and {table}:val": ["b.jpg"]}
    assert train["statistics"]["words_per_expression"]["mean"] == round((3 + 1 + 6) / 3, 4)
    assert train["statistics"]["rows_by_number_of_targets"] == {"1": 3}
    assert train["statistics"]["image_width_pixels"]["median"] == 64


def test_the_summary_says_it_in_words(table):
    text = summarize(survey(_specs(table, "train", "val")))
    assert f"{table}:train: 3 expressions, 3 objects, 2 images" in text
    assert "1 rows cannot be used: 1 missing image" in text
    assert "share 1 images, for example b.jpg" in text


def test_a_contact_sheet_shows_the_boxes(tmp_path, make_row):
    """A white picture with one box: colored lines appear where the box is, and nowhere far from it."""
    import datasets

    from hivg_hf.data.schema import FEATURES

    Image.new("RGB", (314, 314), (255, 255, 255)).save(tmp_path / "white.png")
    picture = {"path": str(tmp_path / "white.png"), "bytes": None}
    row = make_row(image=picture, width=314, height=314, box=[157.0, 157.0, 314.0, 314.0], expression="the corner")
    rows = datasets.Dataset.from_dict({key: [row[key]] for key in FEATURES}, features=FEATURES)
    pixels = np.asarray(contact_sheet(rows))[3:317, 3:317].astype(int)
    colored = (pixels.max(axis=2) - pixels.min(axis=2)) > 60
    assert colored[157:, 155:162].mean() > 0.2  # the box's left edge
    assert colored[:100, :100].mean() == 0


def test_sheets_are_written_for_each_split_and_can_be_opened(tmp_path):
    specs = [{"source": "refshapes", "split": split, "seed": 3, "size": 5} for split in ("val", "none")]
    files = write_survey(survey(specs), tmp_path / "out")
    names = [path.name for path in files]
    assert names == [
        "survey.json",
        "problems.txt",
        "survey.html",
        "refshapes-val.contact-sheet.jpg",
        "refshapes-none.contact-sheet.jpg",
    ]
    assert Image.open(files[3]).size == (4 * 320, 2 * 360)


def test_the_verb_prints_writes_and_exits_with_1_where_rows_are_faulty(table, tmp_path, script, capsys):
    arguments = [f"{table}:train", f"{table}:val", "--box-format", "xyxy", "--out", str(tmp_path / "out"), "--quick"]
    assert script(arguments) == 1
    printed = capsys.readouterr().out
    assert "share 1 images" in printed
    assert str(tmp_path / "out" / "survey.json") in printed
    assert len((tmp_path / "out" / "problems.txt").read_text().splitlines()) == 2
    assert json.loads((tmp_path / "out" / "survey.json").read_text())["shared_images"]


def test_the_verb_makes_a_cache_that_loads(table, tmp_path, script, capsys):
    out = tmp_path / "out"
    arguments = [
        f"{table}:train",
        f"{table}:val",
        "--box-format",
        "xyxy",
        "--out",
        str(out),
        "--quick",
        "--for",
        "train",
    ]
    assert script(arguments) == 2
    assert "2 of 4 rows cannot be used" in capsys.readouterr().err
    assert script([*arguments, "--on-error", "skip"]) == 0
    assert load_grounding_dataset(out / "cache", "train")[0]["expression"] == "the red dog"
    assert len(load_grounding_dataset(out / "cache", "val")) == 1


def test_the_verb_makes_a_cache_for_a_model(table, tmp_path, script, processor):
    processor.save_pretrained(tmp_path / "model")
    out = tmp_path / "out"
    arguments = [f"{table}:val", "--box-format", "xyxy", "--out", str(out), "--on-error", "skip", "--for", "eval"]
    assert script([*arguments, "--model", str(tmp_path / "model")]) == 0
    assert load_grounding_dataset(out / "cache", "val")[0]["letterboxed"]["settings"]["size"] == 64
    assert script([*arguments, "--model", "tiny"]) == 0
    assert script([*arguments, "--model", "models/none/of/them"]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["refcoco"], "'refcoco' names no split; write SOURCE:SPLIT"),
        (["refcoco:val"], "refcoco is read from files: give --root, the folder"),
        (["refcoco:val", "--option", "masks"], "--option takes NAME=VALUE, got 'masks'"),
        (["refshapes:val", "--option", "size=2", "--for", "eval"], "say which with --model"),
        (["gone.csv:all", "--box-format", "xyxy"], "the table needs the file gone.csv"),
    ],
)
def test_the_verb_says_in_a_sentence_what_is_wrong(arguments, message, tmp_path, script, capsys):
    assert script([*arguments, "--out", str(tmp_path / "new" / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_the_page_shows_leaks_by_content_and_needs_nothing_else(tmp_path, make_image):
    make_image(tmp_path / "a.png", 64, 48, seed=1)
    make_image(tmp_path / "b.png", 64, 48, seed=2)
    Image.open(tmp_path / "a.png").save(tmp_path / "copy.webp", lossless=True)
    rows = ["a.png,red <star>,1 2 30 40,train", "b.png,blue,1 2 30 40,train", "copy.webp,Blue,1 2 30 40,val"]
    (tmp_path / "my.csv").write_text("image,expression,box,split\n" + "\n".join([*rows, "gone.png,x,1 2 3 4,val"]))
    specs = [{"source": str(tmp_path / "my.csv"), "split": name, "box_format": "xyxy"} for name in ("train", "val")]
    result = survey(specs)
    pair = f"{tmp_path / 'my.csv'}:train and {tmp_path / 'my.csv'}:val"
    assert result.leaks == {}
    assert result.lookalikes == {pair: ["copy.webp = a.png"]}
    assert result.shared_expressions == {pair: ["blue"]}
    assert "near-identical images, for example copy.webp = a.png" in summarize(result)
    page = next(path for path in write_survey(result, tmp_path / "out") if path.name == "survey.html").read_text()
    assert "copy.webp = a.png" in page
    assert "&lt;star&gt;" in page
    assert "image file not found" in page
    assert page.count("data:image/jpeg;base64,") == 2
    assert "http://" not in page
    assert "https://" not in page


def test_the_columns_of_a_survey_are_named_as_those_of_every_verb(table, tmp_path, script):
    odd = tmp_path / "odd.csv"
    odd.write_text(table.read_text().replace("image,expression,", "Foto,Satz,"))
    words = [f"{odd}:train", "--box-format", "xyxy", "--on-error", "skip", "--quick", "--out", str(tmp_path / "out")]
    assert script([*words, "--column", "image=Foto"]) == 2  # nothing says which column is the expression
    assert script([*words, "--column", "image=Foto", "--column", "expression=Satz"]) == 0
    (found,) = json.loads((tmp_path / "out" / "survey.json").read_text())["splits"].values()
    assert found["read"]["expressions"] == 3
    assert script([*words, "--option", "images=a", "--images", str(tmp_path)]) == 2  # one thing said twice
