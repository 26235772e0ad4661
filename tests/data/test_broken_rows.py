"""One percent of broken rows: all of them in one list, or left out and counted; never half of it in silence."""

import json
import logging

import pytest

from hivg_hf.data.image_check import image_facts
from hivg_hf.data.loading import load_grounding_dataset
from hivg_hf.data.rows import BrokenRowsError

ROWS = 1000


def _broken_rows(folder, make_image):
    """Row number to (its content, what the message must say)."""
    whole = (folder / "good.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "page.jpg").write_bytes(b"<!DOCTYPE html><html><body>404 Not Found</body></html>")
    row = {"image": "good.jpg", "expression": "the dog", "box": [1, 2, 30, 40]}
    return {
        7: ({**row, "image": "gone.jpg"}, r"sent_id 7: there is no image file .*gone\.jpg"),
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
    with pytest.raises(BrokenRowsError, match="and 50 more") as caught:
        load_grounding_dataset(tmp_path / "rows.csv", "all", box_format="xyxy")
    assert len(caught.value.problems) == 250
    assert "gone199.jpg" in str(caught.value)


def test_a_rotated_photo_has_the_size_it_is_shown_in(tmp_path, make_image):
    from PIL import Image

    picture = Image.new("RGB", (64, 48))
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tmp_path / "turned.jpg", exif=exif)
    facts = image_facts(str(tmp_path / "turned.jpg"))
    assert (facts.width, facts.height, facts.problem) == (48, 64, None)


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
