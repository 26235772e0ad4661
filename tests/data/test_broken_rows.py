"""One percent of broken rows: all of them in one list, or left out and counted; never half of it in silence."""

import json
import logging
import os

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from helpers.turned_pictures import UNDONE, save_turned
from hivg_hf.data.collator import open_row_image
from hivg_hf.data.image_check import image_facts
from hivg_hf.data.loading import load_grounding_dataset
from hivg_hf.data.rows import BrokenRowsError
from hivg_hf.modeling.image_loading_hivg import load_grounding_image

ROWS = 1000


def _broken_rows(folder, make_image):
    """Row number to (its content, what the message must say)."""
    whole = (folder / "good.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "page.jpg").write_bytes(b"<!DOCTYPE html><html><body>404 Not Found</body></html>")
    row = {"image": "good.jpg", "expression": "the dog", "box": [1, 2, 30, 40]}
    return {
        7: ({**row, "image": "gone.jpg"}, r"sent_id 7: image file not found: .*gone\.jpg"),
        101: ({**row, "image": "cut.jpg"}, r"sent_id 101: .*cut\.jpg cannot be read as a picture"),
        202: ({**row, "image": "empty.jpg"}, r"sent_id 202: .*empty\.jpg is empty"),
        303: ({**row, "image": "page.jpg"}, r"sent_id 303: .*page\.jpg .*holds HTML"),
        404: ({**row, "box": [1, 2, float("nan"), 40]}, r"sent_id 404: its box .* is not finite"),
        505: ({**row, "box": [30, 2, 30, 40]}, r"sent_id 505: its box .* has no area"),
        606: (
            {**row, "box": [70, 50, 90, 60]},
            r"sent_id 606: its box .* reaches 26 pixels out of its image of 64 x 48",
        ),
        707: ({**row, "expression": " \t"}, r"sent_id 707: its expression is blank"),
        808: ({**row, "expression": 5}, r"sent_id 808: its expression is 5, expected text"),
        909: ({**row, "box": "left"}, r"row 909: box 'left' is not four numbers"),
    }


@pytest.fixture
def one_percent_broken(tmp_path, make_image):
    make_image(tmp_path / "good.jpg")
    broken = _broken_rows(tmp_path, make_image)
    good = {"image": "good.jpg", "expression": "the dog", "box": [1, 2, 30, 40]}
    lines = [json.dumps(broken[i][0] if i in broken else good) for i in range(ROWS)]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path, {number: message for number, (_, message) in broken.items()}


@pytest.mark.parametrize("streaming", [False, True])
def test_all_broken_rows_are_listed_with_their_ids(one_percent_broken, streaming):
    path, messages = one_percent_broken
    with pytest.raises(BrokenRowsError, match="rows all: 10 of 1,000 rows cannot be used") as caught:
        load_grounding_dataset(path, "all", box_format="xyxy", streaming=streaming)
    assert len(caught.value.problems) == len(messages) == 10
    for message in messages.values():
        assert caught.match(message)


@pytest.mark.parametrize("streaming", [False, True])
def test_broken_rows_are_left_out_and_counted_when_asked(one_percent_broken, streaming, caplog):
    path, messages = one_percent_broken
    options = {"shuffle": False} if streaming else {}
    rows = load_grounding_dataset(path, "all", box_format="xyxy", on_error="skip", streaming=streaming, **options)
    kept = [row["sent_id"] for row in rows] if streaming else rows["sent_id"]
    assert list(kept) == [str(i) for i in range(ROWS) if i not in messages]
    assert "left out 10 of 1000 rows that cannot be used" in caplog.text
    for kind in ("3 unreadable image", "2 box", "1 missing image", "1 box outside", "1 blank expression"):
        assert kind in caplog.text


def test_a_line_that_is_no_json_is_reported_by_every_split(tmp_path, make_image):
    make_image(tmp_path / "good.jpg")
    row = {"image": "good.jpg", "expression": "x", "box": [1, 2, 30, 40]}
    lines = [json.dumps({**row, "split": "train"}), "{broken", json.dumps({**row, "split": "val"})]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    for split in ("train", "val"):
        with pytest.raises(BrokenRowsError, match=r"1 of 2 rows cannot be used.*\n  row 1: line is not JSON"):
            load_grounding_dataset(tmp_path / "rows.jsonl", split, box_format="xyxy")


def test_a_source_without_one_usable_row_is_an_error_also_when_skipping(tmp_path):
    (tmp_path / "rows.csv").write_text("image,expression,box\ngone.jpg,x,1 2 3 4\n")
    with pytest.raises(ValueError, match=r"none of its 1 rows can be used \(1 missing image\)"):
        load_grounding_dataset(tmp_path / "rows.csv", "all", box_format="xyxy", on_error="skip")
    with pytest.raises(ValueError, match="on_error must be one of raise, skip, got 'ignore'"):
        load_grounding_dataset(tmp_path / "rows.csv", "all", box_format="xyxy", on_error="ignore")


def test_missing_images_of_all_rows_come_in_one_message(tmp_path):
    rows = "".join(f"gone{i}.jpg,x,1 2 3 4\n" for i in range(250))
    (tmp_path / "rows.csv").write_text("image,expression,box\n" + rows)
    with pytest.raises(BrokenRowsError, match=r"and \d+ more") as caught:
        load_grounding_dataset(tmp_path / "rows.csv", "all", box_format="xyxy")
    assert len(caught.value.problems) == 250
    assert "gone3.jpg" in str(caught.value)
    assert len(str(caught.value)) <= 2_000
    listed = str(caught.value).count(".jpg")
    assert f"and {250 - listed} more" in str(caught.value)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
@pytest.mark.parametrize("orientation", UNDONE)
def test_a_rotated_photo_is_read_as_it_is_shown(tmp_path, orientation, suffix):
    path = tmp_path / f"turned.{suffix}"
    save_turned(Image.new("RGB", (64, 48)), path, orientation)
    for image in (str(path), {"bytes": path.read_bytes()}):
        facts = image_facts(image)
        assert (facts.width, facts.height, facts.problem) == (64, 48, None)
    (tmp_path / "rows.csv").write_text(f"image,expression,box\n{path.name},x,1 2 60 40\n")
    row = load_grounding_dataset(tmp_path / "rows.csv", "all", box_format="xyxy")[0]
    assert (row["width"], row["height"]) == row["image"].size == (64, 48)
    for image in (row["image"], {"path": str(path), "bytes": None}, str(path)):
        assert open_row_image({**row, "image": image}).size == (64, 48)


def test_an_orientation_in_xmp_counts_as_in_exif(tmp_path):
    text = PngInfo()
    text.add_itxt("XML:com.adobe.xmp", '<x:xmpmeta xmlns:x="adobe:ns:meta/" tiff:Orientation="6"></x:xmpmeta>')
    Image.new("RGB", (64, 48)).save(tmp_path / "turned.png", pnginfo=text)
    facts = image_facts(str(tmp_path / "turned.png"))
    assert (facts.width, facts.height) == load_grounding_image(tmp_path / "turned.png").size == (48, 64)


def test_what_is_not_a_regular_picture_is_a_problem_with_its_row(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "folder.png").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "program.png", "EPS")
    expected = {
        "pipe": "named pipe",
        "zero": "a device",
        "folder": "a folder",
        "program": "not an image in a supported",
    }
    for name, problem in expected.items():
        assert problem in image_facts(str(tmp_path / f"{name}.png")).problem


def test_damage_in_the_middle_is_found_when_images_are_decoded(tmp_path, make_image, caplog):
    make_image(tmp_path / "a.png", 64, 48)
    data = bytearray((tmp_path / "a.png").read_bytes())
    data[len(data) // 2 : len(data) // 2 + 64] = bytes(64)
    (tmp_path / "a.png").write_bytes(data)
    assert image_facts(str(tmp_path / "a.png")).problem is None  # the quick check sees header and end
    assert "cannot be read as a picture" in image_facts(str(tmp_path / "a.png"), decode=True).problem


def test_a_picture_that_was_replaced_is_checked_again(tmp_path, make_image):
    path = make_image(tmp_path / "a.png", 64, 48)
    assert image_facts(path).width == 64
    make_image(path, 32, 20)
    assert image_facts(path).width == 32


def test_the_log_names_what_was_read(tmp_path, make_image, caplog):
    make_image(tmp_path / "good.jpg")
    (tmp_path / "rows.csv").write_text("image,expression,box\ngood.jpg,x,1 2 30 40\ngood.jpg,y,1 2 30 40\n")
    with caplog.at_level(logging.INFO):
        load_grounding_dataset(tmp_path / "rows.csv", "all", box_format="xyxy")
    assert "rows all: 2 expressions of 2 objects in 1 images" in caplog.text
