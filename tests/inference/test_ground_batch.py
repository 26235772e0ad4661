"""`GroundBatch`: the pipeline's answers as columns, whatever kind of batch, and a bad row stops nothing."""

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from hivg_hf.inference import GroundBatch, load_pipeline
from hivg_hf.modeling import pipeline_hivg
from hivg_hf.modeling.image_loading_hivg import open_image

EXPRESSIONS = ["the red star", "the blue star of the left", "the red star of the left"]


@pytest.fixture(scope="module")
def pictures() -> list[bytes]:
    noise = np.random.default_rng(0)
    encoded = []
    for size in ((40, 60, 3), (60, 40, 3), (48, 48, 3)):
        file = io.BytesIO()
        Image.fromarray(noise.integers(0, 256, size, dtype=np.uint8)).save(file, "PNG")
        encoded.append(file.getvalue())
    return encoded


@pytest.fixture(scope="module")
def ground(tiny_checkpoint: str) -> GroundBatch:
    return GroundBatch(tiny_checkpoint, engine={"device": "cpu"})


@pytest.fixture(scope="module")
def expected(tiny_checkpoint: str, pictures: list[bytes]) -> list[list[float]]:
    pipe = load_pipeline(tiny_checkpoint, device="cpu")
    return [list(pipe(picture, text)["box"].values()) for picture, text in zip(pictures, EXPRESSIONS, strict=True)]


def test_every_kind_of_batch_gets_the_pipelines_boxes(
    ground: GroundBatch, pictures: list[bytes], expected: list[list[float]]
) -> None:
    lists = ground({"id": [1, 2, 3], "image": pictures, "expression": EXPRESSIONS})
    assert list(lists) == ["id", "image", "expression", "box", "score", "found", "error"]
    assert lists["id"] == [1, 2, 3]
    assert lists["error"] == [None] * 3
    np.testing.assert_allclose(lists["box"], expected, atol=1e-3)

    held = [Image.open(io.BytesIO(picture)) for picture in pictures]
    np.testing.assert_allclose(ground({"image": held, "expression": EXPRESSIONS})["box"], expected, atol=1e-3)

    table = pa.table({"image": [{"bytes": picture, "path": None} for picture in pictures], "expression": EXPRESSIONS})
    for batch in (table, table.to_batches()[0]):
        grounded = ground(batch)
        assert type(grounded) is type(batch)
        assert grounded.schema.field("box").type == pa.list_(pa.float32(), 4)
        np.testing.assert_allclose(grounded.column("box").to_pylist(), expected, atol=1e-3)

    squares = np.stack([np.asarray(held[2])] * 2)  # as Ray gives pictures of one size
    arrays = ground({"image": squares, "expression": np.array([EXPRESSIONS[2], " "], dtype=object)})
    assert arrays["box"].shape == (2, 4)
    assert arrays["box"].dtype == np.float32
    np.testing.assert_allclose(arrays["box"][0], expected[2], atol=1e-3)
    assert np.isnan(arrays["box"][1]).all()
    assert "blank" in arrays["error"][1]


def test_rows_of_one_picture_share_it_and_a_bad_expression_spoils_only_its_own(
    ground: GroundBatch, pictures: list[bytes], expected: list[list[float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[int] = []
    monkeypatch.setattr(
        pipeline_hivg, "open_image", lambda source, **options: opened.append(1) or open_image(source, **options)
    )
    rows = ground({"image": [pictures[0]] * 3, "expression": [EXPRESSIONS[0], EXPRESSIONS[1], EXPRESSIONS[0]]})
    assert len(opened) == 1
    np.testing.assert_allclose(rows["box"][0], expected[0], atol=1e-3)
    np.testing.assert_allclose(rows["box"][2], expected[0], atol=1e-3)
    mixed = ground({"image": [pictures[0]] * 2, "expression": [" ", EXPRESSIONS[0]]})
    assert mixed["box"][0] is None
    assert "blank" in mixed["error"][0]
    np.testing.assert_allclose(mixed["box"][1], expected[0], atol=1e-3)


def test_lists_of_expressions_give_lists_of_boxes(
    ground: GroundBatch, pictures: list[bytes], expected: list[list[float]]
) -> None:
    texts = [[EXPRESSIONS[0], ""], [], [EXPRESSIONS[2]]]
    grounded = ground(pa.table({"image": pictures, "expression": texts}))
    boxes, errors = grounded.column("box").to_pylist(), grounded.column("error").to_pylist()
    np.testing.assert_allclose(boxes[0][0], expected[0], atol=1e-3)
    assert boxes[0][1] is None
    assert "blank" in errors[0]
    assert (boxes[1], errors[1]) == ([], None)
    np.testing.assert_allclose(boxes[2], [expected[2]], atol=1e-3)


def test_whatever_a_row_holds_it_stops_nothing(ground: GroundBatch, pictures: list[bytes], tmp_path: Path) -> None:
    hostile: list[Any] = [None, "", pictures[0][:100], b"", 7, {"path": None, "bytes": None}, str(tmp_path), "a\0b"]
    hostile += ["x" * 5000, "file:///etc/hostname", "ftp://x/y.png", "http://127.0.0.1:9/x.png", {"a": 1}, pictures[0]]
    texts: list[Any] = [EXPRESSIONS[0]] * len(hostile)
    rows = ground({"image": hostile, "expression": texts})
    assert [error is None for error in rows["error"]] == [False] * (len(hostile) - 1) + [True]
    assert "not fetched unless allowed" in rows["error"][11]
    texts = [None, 3, ["a"], b"a", EXPRESSIONS[0]]
    rows = ground({"image": [pictures[0]] * 5, "expression": texts})
    assert [error is None for error in rows["error"]] == [False] * 4 + [True]


def test_rows_from_elsewhere_open_no_file(tiny_checkpoint: str, pictures: list[bytes], tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(pictures[0])
    batch = {"file": ["a.png", str(tmp_path / "a.png")], "expression": EXPRESSIONS[:2]}
    local = GroundBatch(tiny_checkpoint, "file", images=tmp_path, engine={"device": "cpu"})
    assert local(batch)["error"] == [None, None]
    elsewhere = GroundBatch(tiny_checkpoint, "file", images=tmp_path, allow_paths=False, engine={"device": "cpu"})
    assert all("may not open files of this machine" in error for error in elsewhere(batch)["error"])


def test_it_is_small_when_pickled_and_answers_the_same(
    ground: GroundBatch, pictures: list[bytes], expected: list[list[float]]
) -> None:
    _ = ground.pipe
    data = pickle.dumps(ground)
    assert len(data) < 2000
    again = pickle.loads(data)
    boxes = again({"image": pictures, "expression": EXPRESSIONS})["box"]
    np.testing.assert_allclose(boxes, expected, atol=1e-3)


def test_masks_come_as_run_lengths_and_the_threshold_as_found(tiny_checkpoint: str, pictures: list[bytes]) -> None:
    from hivg_hf.data.schema import decode_mask

    ground = GroundBatch(tiny_checkpoint, mask=True, threshold=0.0, prefix="p_", engine={"device": "cpu"})
    grounded = ground(pa.table({"image": pictures, "expression": EXPRESSIONS, "box": [1, 2, 3]}))
    assert grounded.column("box").to_pylist() == [1, 2, 3]
    assert grounded.column("p_found").to_pylist() == [True] * 3
    assert decode_mask(grounded.column("p_mask").to_pylist()[0]).shape == (40, 60)


def test_datasets_map_runs_it(ground: GroundBatch, pictures: list[bytes], expected: list[list[float]]) -> None:
    import datasets

    features = datasets.Features({"image": datasets.Image(), "expression": datasets.Value("string")})
    rows = [{"image": {"bytes": data, "path": None}, "expression": text} for data, text in zip(pictures, EXPRESSIONS)]
    grounded = datasets.Dataset.from_list(rows, features=features).map(ground, batched=True, batch_size=2)
    np.testing.assert_allclose(grounded["box"][:], expected, atol=1e-3)


def test_large_jpegs_are_decoded_at_a_reduced_scale_when_asked(
    tiny_checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = io.BytesIO()
    Image.linear_gradient("L").resize((1200, 900)).convert("RGB").save(file, "JPEG")
    sizes: list[tuple[int, int]] = []
    plain = Image.Image.load
    monkeypatch.setattr(Image.Image, "load", lambda self: sizes.append(self.size) or plain(self))
    boxes, widths = [], []
    for reduce in (False, True):
        sizes.clear()
        ground = GroundBatch(tiny_checkpoint, reduce_jpeg=reduce, engine={"device": "cpu"})
        boxes += ground({"image": [file.getvalue()], "expression": ["the star"]})["box"]
        widths.append(sizes[0][0])
    assert widths[0] == 1200
    assert widths[1] <= 600
    np.testing.assert_allclose(*boxes, atol=0.03 * 1200)  # pixels of the whole picture, both


def test_columns_that_are_missing_or_taken_are_refused(ground: GroundBatch) -> None:
    with pytest.raises(ValueError, match=r"no column 'image' for the image; the columns are picture, expression"):
        ground({"picture": [], "expression": []})
    with pytest.raises(ValueError, match=r"The column score exists already.*prefix"):
        ground({"image": [], "expression": [], "score": []})
    with pytest.raises(ValueError, match=r"batch_size must be at least 1, got 0"):
        GroundBatch(batch_size=0)
