"""What is asked of `load_grounding_dataset` by mistake: one sentence that names the argument."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hivg_hf import load_grounding_dataset
from hivg_hf.training.recipe_checks import check_rows


@pytest.mark.parametrize("split", [None, 0.2, 3, ["train", "val"]])
def test_a_split_has_to_be_named(split: Any) -> None:
    with pytest.raises(
        ValueError, match=r"split of x\.csv must be a name, got .+: write load_grounding_dataset\('x\.csv'"
    ):
        load_grounding_dataset(Path("x.csv"), split)
    with pytest.raises(ValueError, match=r"split of refshapes must be a name, got None"):
        load_grounding_dataset("refshapes")


@pytest.mark.parametrize("source", [None, [{"image": "a.png"}], {"train": "x.csv"}, np.zeros(3)])
def test_a_source_is_a_name_and_not_rows(source: Any) -> None:
    with pytest.raises(TypeError, match=r"source must be a name, a file or a folder, got \w+: rows that are loaded"):
        load_grounding_dataset(source, "train")


def test_swapped_source_and_split_are_called_so(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("image,expression\n")
    for source, split in (("refshapes", "val"), ("refcoco", "testA"), (str(tmp_path / "x.csv"), "all")):
        with pytest.raises(ValueError, match=rf"swapped: write load_grounding_dataset\('.+', '{split}', \.\.\.\)"):
            load_grounding_dataset(split, source)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": "2"}, r"refshapes\.size must be an integer\. Got '2'\.$"),
        ({"size": 2.5}, r"refshapes\.size must be an integer\. Got 2\.5"),
        ({"masks": "no"}, r"refshapes\.masks must be true or false\. Got 'no'"),
        ({"sise": 2}, r"refshapes has no option sise; it takes seed, size"),
        ({"box_format": "xyxy"}, r"refshapes has no option box_format; it takes seed"),
    ],
)
def test_options_of_refshapes_are_checked_by_name_and_kind(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_grounding_dataset("refshapes", "val", **options)


def test_numbers_of_numpy_are_numbers() -> None:
    assert len(load_grounding_dataset("refshapes", "val", seed=np.int64(1), size=np.int32(2))) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"holdout": "0.1"}, r"holdout must be .*a number.* Got '0\.1'"),
        ({"decimal_comma": "no"}, r"decimal_comma must be true or false\. Got 'no'"),
        ({"check_format": 3}, r"check_format must be true or false\. Got 3"),
    ],
)
def test_options_of_a_table_are_of_their_kind(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("image,expression,x1,y1,x2,y2\n")
    with pytest.raises(ValueError, match=message):
        load_grounding_dataset(tmp_path / "x.csv", "train", box_format="xyxy", **options)


@pytest.mark.parametrize("several", ["together", "apart"])
def test_a_recipe_may_say_what_several_boxes_are(several: str, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("image,expression,x1,y1,x2,y2\n")
    spec = {"source": str(tmp_path / "x.csv"), "split": "train", "box_format": "xyxy"}
    check_rows("data.train", {**spec, "several": several})
    with pytest.raises(ValueError, match=r"data\.train\.several must be one of 'together', 'apart' or empty\. Got 'b"):
        check_rows("data.train", {**spec, "several": "both"})
