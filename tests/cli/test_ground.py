"""`hivg ground`: what it prints, what it writes, how it continues after bad images and after being stopped."""

import base64
import io
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from hivg_hf import HiVGForVisualGrounding, HiVGProcessor, VisualGroundingPipeline
from hivg_hf.cli import main
from hivg_hf.inference.files import (
    find_images,
    picture_path,
    read_questions,
    split_images_and_expressions,
)
from hivg_hf.inference.results_file import ResultsFile
from hivg_hf.utils.held_folder import folder_lock

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def model_folder(
    tiny_model: HiVGForVisualGrounding, tiny_processor: HiVGProcessor, tmp_path_factory: pytest.TempPathFactory
) -> str:
    folder = tmp_path_factory.mktemp("model")
    VisualGroundingPipeline(tiny_model, processor=tiny_processor, device="cpu").save_pretrained(folder)
    return str(folder)


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of three pictures, one of them in a folder of its own, beside a file that is not a picture."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos" / "more").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, size in {"a.png": (60, 90), "b.jpg": (90, 60), "more/c.png": (64, 64)}.items():
        PIL.Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(tmp_path / "photos" / name)
    (tmp_path / "photos" / "notes.txt").write_text("no picture")
    return Path("photos")


@pytest.fixture
def run(model_folder: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    def run_ground(*arguments: str, stdin: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
        with pytest.raises(SystemExit) as ended:
            main(["ground", *arguments, "--model", model_folder, "--device", "cpu"])
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out, printed.err

    return run_ground


def rows(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_one_image_prints_boxes_and_the_path_of_its_picture(run: Run, photos: Path) -> None:
    status, out, _ = run("photos/a.png", "the star", "the red")
    assert status == 0
    assert out.count("xmin") == 2
    assert "the star" in out
    path = Path(out.strip().splitlines()[-1].removeprefix("  wrote "))
    assert path.is_absolute()
    assert path.name == "a.grounded.png"
    assert PIL.Image.open(path).size == (480, 320)


def test_json_holds_what_the_pipeline_gives(run: Run, photos: Path, model_folder: str) -> None:
    status, out, _ = run("photos/a.png", "the star", "--json", "--out", "found.png", "--threshold", "0")
    row = rows(out)[0]
    assert status == 0
    assert row["image"] == "photos/a.png"
    assert row["picture"] == str(Path("found.png").resolve())
    from transformers import pipeline

    expected = pipeline("visual-grounding", model=model_folder, device="cpu")(
        "photos/a.png", ["the star"], threshold=0
    )
    assert row["results"] == [pytest.approx({**expected[0], "box": pytest.approx(expected[0]["box"])})]


def test_masks_are_drawn_without_pycocotools_and_written_with_it(
    run: Run, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, out, _ = run("photos/a.png", "the star", "--mask", "--json", "--no-pictures")
    assert rows(out)[0]["results"][0]["mask"]["size"] == [60, 90]
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    status, _, _ = run("photos/a.png", "the star", "--mask")
    assert status == 0
    status, _, err = run("photos/a.png", "the star", "--mask", "--json")
    assert status == 2
    assert "pip install 'hivg_hf[data]'" in err


def test_heat_map_and_layers_are_written_beside_the_picture(run: Run, photos: Path) -> None:
    status, out, _ = run("photos/a.png", "the star", "--heatmap", "--layers", "--mask", "--out", "x/found.png")
    assert status == 0
    written = [Path(line.removeprefix("  wrote ")) for line in out.splitlines() if "wrote" in line]
    assert [path.name for path in written] == ["found.png", "found.heatmap.png", "found.layers-1.png"]
    assert all(PIL.Image.open(path).width >= 300 for path in written)


def test_a_folder_gives_a_folder_of_pictures_and_results(run: Run, photos: Path) -> None:
    status, _, err = run("photos", "the star", "-r", "--out", "done")
    assert status == 0
    assert "images/s" in err
    assert {str(path.relative_to("done")) for path in Path("done").rglob("*.*")} == {
        "a.png",
        "b.jpg",
        "more/c.png",
        "results.jsonl",
    }
    found = rows(Path("done/results.jsonl").read_text())
    assert [row["image"] for row in found] == ["photos/a.png", "photos/b.jpg", "photos/more/c.png"]


def test_a_second_run_leaves_out_what_is_done(run: Run, photos: Path) -> None:
    run("photos/a.png", "photos/b.jpg", "the star", "--out", "done")
    before = Path("done/results.jsonl").read_text()
    with Path("done/results.jsonl").open("a") as file:
        file.write('{"image": "photos/more/c.png", "resul')  # what a killed process may leave
    os.remove(next(Path("done").rglob("b.jpg")))
    status, out, err = run("photos", "the star", "-r", "--out", "done")
    assert status == 0
    assert "1 were done before" in err
    assert "photos/a.png" not in out
    after = rows(Path("done/results.jsonl").read_text())
    assert before in Path("done/results.jsonl").read_text()
    assert [row["image"] for row in after] == ["photos/a.png", "photos/b.jpg", "photos/b.jpg", "photos/more/c.png"]
    status, _, err = run("photos", "another star", "-r", "--out", "done")
    assert "done before" not in err


def test_pictures_of_an_earlier_run_are_no_images(run: Run, photos: Path) -> None:
    for _ in range(2):
        run(".", "the star", "-r", "--out", "done")
    found = rows(Path("done/results.jsonl").read_text())
    assert {row["image"] for row in found} == {"./photos/a.png", "./photos/b.jpg", "./photos/more/c.png"}
    status, out, _ = run("photos", "the star", "--out", ".", "--json")  # but images may lie in the output folder
    assert status == 0
    assert len(rows(out)) == 2


def test_one_bad_image_is_reported_and_the_rest_go_on(run: Run, photos: Path) -> None:
    (photos / "bad.png").write_text("not a picture")
    status, out, err = run("photos", "the star", "--json", "--no-pictures", "--num-workers", "1")
    assert status == 1
    found = {row["image"]: row for row in rows(out)}
    assert "is not an image" in found["photos/bad.png"]["error"]
    assert all("results" in found[f"photos/{name}"] for name in ("a.png", "b.jpg"))
    assert "bad.png' is not an image" in err
    assert "Traceback" not in err
    assert not Path("grounded").exists()


def test_json_lines_are_read_as_they_come(run: Run, photos: Path) -> None:
    lines = [
        '{"image": "photos/a.png", "expression": "the star"}',
        "",
        "no json",
        '{"image": "photos/b.jpg"}',
        '{"image": "absent.png", "text": ["the star", "the red"]}',
    ]
    status, out, err = run("-", "the blue", "--json", "--no-pictures", stdin="\n".join(lines))
    assert status == 1
    found = rows(out)
    assert [[r["expression"] for r in row.get("results", [])] for row in found] == [["the star"], ["the blue"], []]
    assert "Line 3 must be like" in err
    assert "Image file not found: 'absent.png'" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["photos/a.png"], "Say what to find after the image"),
        (["photos/a.png", "photos/b.jpg"], "Say what to find after the image"),
        (
            ["the star", "photos/a.png"],
            "images come first, then expressions, as in: hivg ground photos/a.png 'the star'",
        ),
        (["absent.png", "the star"], "Image file not found: 'absent.png'."),
        (["photos/a.png", "photos/absent.png", "the star"], "Image file not found: 'photos/absent.png'"),
        (["photos", "photos/more", "the star"], "'photos/more' is a folder, where an expression was expected"),
        (["photos/*.gif", "the star"], "No image matches the pattern 'photos/*.gif'."),
        (["photos/a.png", " "], "Expression 0 is blank"),
        (["photos/a.png", "the star", "--dtype", "int8"], "dtype must be one of"),
        (["photos/a.png", "the star", "--out", "found.xyz"], "end its name in .png or .jpg"),
        (["photos", "the star", "--out", "found.png"], "several images need a folder"),
        (["photos/a.png", "the star", "--out", "photos/a.png"], "would overwrite the image 'photos/a.png' itself"),
    ],
)
def test_what_cannot_be_done_is_one_sentence_and_status_2(
    run: Run, photos: Path, arguments: list[str], message: str
) -> None:
    status, out, err = run(*arguments)
    assert status == 2
    assert out == ""
    assert message in err
    assert len([line for line in err.splitlines() if line.strip()]) == 1


def test_a_cut_expression_is_said_in_a_line(run: Run, photos: Path) -> None:
    status, _, err = run("photos/a.png", "the red star " * 40, "--no-pictures")
    assert status == 0
    assert err.strip().startswith("hivg: The expression 'the red star")
    assert "cut '" in err


def test_json_lines_may_hold_pictures_in_base64(run: Run, photos: Path) -> None:
    data = base64.b64encode((photos / "a.png").read_bytes()).decode()
    lines = [json.dumps({"image": image, "text": "the star"}) for image in (data, f"data:image/png;base64,{data}")]
    status, out, _ = run("-", "--json", "--out", "done", stdin="\n".join(lines))
    assert status == 0
    found = rows(out)
    assert found[0]["results"] == found[1]["results"]
    assert all(Path(row["picture"]).is_file() for row in found)


def test_a_missing_model_is_named(photos: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for name, message in {"./absent": "Model folder not found: './absent'", str(photos): "has no model"}.items():
        with pytest.raises(SystemExit) as ended:
            main(["ground", "photos/a.png", "the star", "--model", name])
        assert ended.value.code == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--heatmap", "--layers"])
def test_pictures_that_are_not_drawn_cannot_be_asked_for(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["ground", "photos/a.png", "the star", option, "--no-pictures"])
    assert ended.value.code == 2
    assert f"{option} draws pictures: omit it, or omit --no-pictures" in capsys.readouterr().err


def test_images_that_a_shell_expanded_are_images(photos: Path) -> None:
    arguments = ["photos/a.png", "photos/b.jpg", "the star", "red"]
    assert split_images_and_expressions(arguments) == (arguments[:2], arguments[2:])
    assert split_images_and_expressions(["absent.png", "x"]) == (["absent.png"], ["x"])


@pytest.mark.parametrize(
    ("argument", "error", "message"),
    [
        ("photos/absent.png", FileNotFoundError, "Image file not found: 'photos/absent.png'"),
        ("absent.JPG", FileNotFoundError, "Image file not found: 'absent.JPG'"),
        ("my holiday.heic", FileNotFoundError, "Image file not found"),
        ("photos/absent", FileNotFoundError, "Image file not found"),
        ("./absent", FileNotFoundError, "Image file not found"),
        ("/absent/star", FileNotFoundError, "Image file not found"),
        ("absent/", FileNotFoundError, "Image file not found"),
        ("photos/more", ValueError, "'photos/more' is a folder"),
        ("photos", ValueError, "'photos' is a folder"),
        ("photos/notes.txt", ValueError, "'photos/notes.txt' is a file that is not an image"),
        ("https://example.org/star", ValueError, "is a URL"),
        ("s3://bucket/star.png", ValueError, "is a URL"),
        ("photos/*.png", ValueError, "is a pattern"),
    ],
)
@pytest.mark.parametrize("before", [["photos/a.png"], ["photos/a.png", "the star"], ["photos"]])
def test_a_path_is_never_an_expression(
    photos: Path, argument: str, error: type[Exception], message: str, before: list[str]
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        split_images_and_expressions([*before, argument])


def test_an_image_behind_an_expression_is_refused(photos: Path) -> None:
    with pytest.raises(ValueError, match=r"'photos/b\.jpg' stands behind an expression"):
        split_images_and_expressions(["photos/a.png", "the star", "photos/b.jpg"])


@pytest.mark.parametrize(
    "expression", ["black/white", "the black / white cat", "no. 5", "what?", "U.S.A.", "12.5", "a"]
)
def test_words_with_signs_of_paths_are_expressions(photos: Path, expression: str) -> None:
    assert split_images_and_expressions(["photos/a.png", expression]) == (["photos/a.png"], [expression])


def test_patterns_and_places_outside_keep_pictures_apart(photos: Path, tmp_path: Path) -> None:
    assert find_images(["photos/**/*.png"]) == (
        [("photos/a.png", "a.png"), ("photos/more/c.png", "more/c.png")],
        False,
    )
    assert find_images(["photos/a.png"]) == ([("photos/a.png", "photos/a.png")], True)
    outside, _ = find_images([str(tmp_path / "photos" / "a.png"), "../a.png", "http://example.org/x/a.png?size=1"])
    names = [name for _, name in outside]
    assert len(set(names)) == 3
    assert all(not Path(name).is_absolute() and ".." not in name for name in names)
    with pytest.raises(FileNotFoundError, match="No image in the folder"):
        find_images([str(tmp_path)])


def test_picture_names_never_collide() -> None:
    names = ["a.png", "a.jpg", "a.webp", "a.tif", "b.JPG"]
    assert len({picture_path(Path("out"), name) for name in names}) == len(names)
    assert picture_path(Path("out"), "a.webp") == Path("out/a.webp.png")


def test_results_of_another_model_are_not_taken_for_done(tmp_path: Path) -> None:
    question = next(read_questions(['{"image": "a.png", "text": "x"}'], []))
    first = ResultsFile(tmp_path / "results.jsonl", "one")
    first.add({"image": "a.png", "results": [{"expression": "x"}], "picture": None})
    first.close()
    assert ResultsFile(tmp_path / "results.jsonl", "one").is_done(question, needs_picture=False)
    assert not ResultsFile(tmp_path / "results.jsonl", "one").is_done(question, needs_picture=True)
    assert not ResultsFile(tmp_path / "results.jsonl", "two").is_done(question, needs_picture=False)


def test_results_of_other_weights_of_that_name_are_not_taken_for_done(tmp_path: Path) -> None:
    question = next(read_questions(['{"image": "a.png", "text": "x"}'], []))
    first = ResultsFile(tmp_path / "results.jsonl", "one", "0123")
    first.add({"image": "a.png", "results": [{"expression": "x"}], "picture": None})
    first.close()
    assert ResultsFile(tmp_path / "results.jsonl", "one", "0123").is_done(question, needs_picture=False)
    assert not ResultsFile(tmp_path / "results.jsonl", "one", "4567").is_done(question, needs_picture=False)


def test_a_folder_of_answers_is_held_swept_and_noticed_when_it_goes(run: Run, photos: Path, tmp_path: Path) -> None:
    leftover = tmp_path / "done" / ".a.png.12345678.partial"
    leftover.mkdir(parents=True)
    with folder_lock(tmp_path / "done", "writing to"):
        status, _, err = run("photos", "the star", "--out", "done")
    assert status == 2
    assert re.match(r"hivg: Another process \(id \d+\) is writing to .*done: wait for it or choose another", err)
    assert leftover.is_dir()  # not ours to take
    assert run("photos", "the star", "--out", "done")[0] == 0
    assert not leftover.exists()
    held = ResultsFile.hold(tmp_path / "done" / "results.jsonl", "one")
    shutil.rmtree(tmp_path / "done")
    with pytest.raises(FileNotFoundError, match=r"done was deleted or replaced while this process was writing to it"):
        held.add({"image": "a.png"})
    held.close()


def test_layers_are_drawn_with_torch_alone(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["ground", str(next(photos.glob("*"))), "the star", "--layers", "--backend", "onnx"])
    assert "--layers draws what the torch backend records" in capsys.readouterr().err


def test_answers_to_other_options_are_not_taken_for_done(tmp_path: Path) -> None:
    question = next(read_questions(['{"image": "a.png", "text": "x"}'], []))
    path, row = tmp_path / "results.jsonl", {"image": "a.png", "results": [{"expression": "x"}], "picture": None}
    first = ResultsFile(path, "one", options={"mask": True, "threshold": None, "layers": False})
    first.add(row)
    first.close()
    assert ResultsFile(path, "one", options={"mask": True}).is_done(question, needs_picture=False)
    for other in ({}, {"mask": True, "threshold": 0.0}, {"threshold": 0.5}):
        assert not ResultsFile(path, "one", options=other).is_done(question, needs_picture=False)


def test_a_picture_that_changed_or_was_drawn_over_is_asked_again(run: Run, photos: Path) -> None:
    def again(expression: str) -> str:
        return run("photos/a.png", "photos/b.jpg", expression, "--out", "done")[2]

    again("the star")
    assert "2 were done before" in again("the star")
    shutil.copy(photos / "b.jpg", photos / "a.png")
    assert "1 were done before" in again("the star")
    assert "done before" not in again("the ring")
    assert "done before" not in again("the star")  # the ring was drawn over it
    assert "2 were done before" in again("the star")


@pytest.mark.parametrize("more", [["--threshold", "0.9"], ["--threshold", "0"], ["--heatmap"], ["--mask"]])
def test_the_same_question_with_other_options_is_asked_again(run: Run, photos: Path, more: list[str]) -> None:
    arguments = ("photos/a.png", "photos/b.jpg", "the star", "--out", "done")
    run(*arguments)
    assert "done before" not in run(*arguments, *more)[2]
    assert "2 were done before" in run(*arguments, *more)[2]
