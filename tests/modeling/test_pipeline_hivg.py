"""The pipeline: whatever is asked in one call, each answer is the one its image and expression get alone."""

import base64
import copy
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from transformers import pipeline

from hivg_hf import HiVGForVisualGrounding, HiVGProcessor, VisualGroundingPipeline
from hivg_hf.data.schema import decode_mask
from hivg_hf.modeling.pipeline_hivg import LOOKAHEAD
from hivg_hf.modeling.pipeline_streams_hivg import PendingItem, mask_in_form, take_batch

SIZES = [(30, 60), (64, 20), (50, 50), (1, 90), (200, 100), (64, 64), (33, 77), (20, 21)]
EXPRESSIONS = [
    "the star",
    "red",
    "the big blue star left of the red",
    "a",
    "the star",
    "blue",
    "star of the",
    "the red",
]


@pytest.fixture(scope="module")
def pipe(tiny_model: HiVGForVisualGrounding, tiny_processor: HiVGProcessor) -> VisualGroundingPipeline:
    return pipeline("visual-grounding", model=tiny_model, processor=tiny_processor, device="cpu")


@pytest.fixture(scope="module")
def pictures() -> list[PIL.Image.Image]:
    rng = np.random.default_rng(0)
    return [PIL.Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for h, w in SIZES]


def assert_close(result: dict[str, Any], expected: dict[str, Any], tolerance: float = 1e-5) -> None:
    assert result["expression"] == expected["expression"]
    for key, value in expected["box"].items():
        # Boxes are pixels: compared as shares of the largest side, where the model's own numbers lie.
        assert abs(result["box"][key] - value) <= tolerance * (200 + abs(value))
    assert abs(result["score"] - expected["score"]) <= tolerance * (1 + expected["score"])


def test_a_string_gives_a_dict_and_a_list_a_list(pipe: VisualGroundingPipeline, pictures: list[Any]) -> None:
    one = pipe(pictures[0], "The  STAR")
    assert set(one) == {"expression", "box", "score"}
    assert one["expression"] == "The  STAR"
    assert type(one) is dict
    assert all(type(value) is float for value in [*one["box"].values(), one["score"]])
    assert 0 <= one["box"]["xmin"] <= one["box"]["xmax"] <= 60
    assert 0 <= one["box"]["ymin"] <= one["box"]["ymax"] <= 30
    several = pipe(pictures[0], ["the star", "red"])
    assert [result["expression"] for result in several] == ["the star", "red"]
    assert_close({**several[0], "expression": one["expression"]}, one)


def test_every_form_of_input_gives_the_same_answer(
    pipe: VisualGroundingPipeline, pictures: list[Any], tmp_path: Path
) -> None:
    path = tmp_path / "picture.png"
    pictures[0].save(path)
    expected = pipe(pictures[0], "the star")
    array = np.asarray(pictures[0])
    for image in (path, str(path), path.read_bytes(), array, torch.from_numpy(array.copy()), {"path": str(path)}):
        assert pipe(image, "the star") == expected
        assert pipe({"image": image, "text": "the star"}) == expected
    assert pipe([pictures[0]], "the star") == [expected]
    assert pipe([pictures[0]], ["the star"]) == [expected]
    assert pipe([{"image": pictures[0], "expression": "the star"}]) == [expected]
    assert pipe([pictures[0]], [["the star"]]) == [[expected]]
    assert pipe([], []) == []


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_answers_do_not_depend_on_the_batch(
    pipe: VisualGroundingPipeline, pictures: list[Any], batch_size: int
) -> None:
    alone = [pipe(image, text, mask=True, heatmap=True) for image, text in zip(pictures, EXPRESSIONS)]
    together = pipe(pictures, EXPRESSIONS, batch_size=batch_size, mask=True, heatmap=True)
    for result, expected in zip(together, alone, strict=True):
        assert_close(result, expected)
        assert np.abs(result["heatmap"] - expected["heatmap"]).max() <= 1e-5
        assert (result["mask"] != expected["mask"]).mean() <= 1e-3  # a logit of 0 +- rounding may fall on either side


def test_several_expressions_of_several_images_in_one_call(pipe: VisualGroundingPipeline, pictures: list[Any]) -> None:
    asked = [["the star", "red", "a"], ["blue"], ["the star", "the red"]]
    results = pipe(pictures[:3], asked, batch_size=4)
    assert [[result["expression"] for result in row] for row in results] == asked
    for image, row in zip(pictures, results):
        for result in row:
            assert_close(result, pipe(image, result["expression"]))


def test_a_repeated_expression_is_encoded_once(
    pipe: VisualGroundingPipeline, pictures: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows_encoded = []
    forward = pipe.model.clip.text_model.forward

    def counting(*args: Any, **kwargs: Any) -> Any:
        rows_encoded.append(len(kwargs.get("input_ids", args[0] if args else None)))
        return forward(*args, **kwargs)

    monkeypatch.setattr(pipe.model.clip.text_model, "forward", counting)
    pipe(pictures, ["the star", "THE star", "red", "the star", "red", "red", "red", "red"], batch_size=8)
    assert rows_encoded == [2]


def test_streams_are_read_as_they_are_consumed(pipe: VisualGroundingPipeline, pictures: list[Any]) -> None:
    taken = []

    def endless() -> Iterator[dict[str, Any]]:
        while True:
            taken.append(len(taken))
            yield {"image": pictures[len(taken) % 3], "text": "the star"}

    stream = pipe(endless(), batch_size=2)
    for number in range(1, 40):
        next(stream)
        assert len(taken) <= number + 2 * LOOKAHEAD


def test_batches_hold_images_of_alike_shape() -> None:
    items = [PendingItem({"patch_index": range(patches), "expressions": ["a"]}) for patches in (8, 30, 9, 31, 8, 30)]
    pairs = [(item, 0) for item in items]
    assert take_batch(pairs, 2, patience=8) == [(items[0], 0), (items[4], 0)]  # equal ones need not wait
    assert take_batch(pairs, 2, patience=8) == [(items[1], 0), (items[5], 0)]
    assert take_batch(pairs, 2, patience=8) == []
    assert take_batch(pairs, 2, patience=2) == [(items[2], 0), (items[3], 0)]
    pairs = [(items[0], 0)]
    assert take_batch(pairs, 2, patience=8) == []
    assert take_batch(pairs, 2, patience=0) == [(items[0], 0)]
    assert pairs == []


def test_datasets_stream_with_and_without_workers(pipe: VisualGroundingPipeline, pictures: list[Any]) -> None:
    features = datasets.Features({"image": datasets.Image(), "expression": datasets.Value("string")})
    rows = datasets.Dataset.from_dict({"image": pictures, "expression": EXPRESSIONS}, features=features)
    expected = pipe(pictures, EXPRESSIONS)
    stream = pipe(rows, batch_size=3)
    assert len(stream) == len(pictures)
    for results in (stream, pipe(rows, num_workers=2), pipe(rows.to_iterable_dataset(), batch_size=8)):
        for result, row in zip(results, expected, strict=True):
            assert_close(result, row)
    asked_of_all = list(pipe(iter(pictures[:2]), ["red", "blue"]))
    assert [[result["expression"] for result in row] for row in asked_of_all] == [["red", "blue"]] * 2


def test_a_column_of_images_has_an_expression_for_each_as_a_list_has(
    pipe: VisualGroundingPipeline, pictures: list[Any]
) -> None:
    texts = [f"the {number} star" for number in range(len(pictures))]
    rows = datasets.Dataset.from_dict({"image": pictures, "text": texts}).cast_column("image", datasets.Image())
    expected = pipe(pictures, texts)
    for given in (texts, rows["text"]):
        found = pipe(rows["image"], given)
        assert len(found) == len(pictures)
        for one, other in zip(found, expected, strict=True):
            assert_close(one, other)
    assert [one["expression"] for one in pipe(rows["image"], "all")] == ["all"] * len(pictures)
    with pytest.raises(ValueError, match=f"Got {len(pictures)} images and 1 expressions"):
        pipe(rows["image"], ["one"])


def test_half_precision_gives_nearly_the_same_box(
    tiny_model: HiVGForVisualGrounding, tiny_processor: HiVGProcessor, pictures: list[Any]
) -> None:
    half = copy.deepcopy(tiny_model).to(torch.bfloat16)
    pipe = VisualGroundingPipeline(half, processor=tiny_processor, device="cpu")
    result = pipe(pictures[5], "the star", mask=True, heatmap=True)
    expected = VisualGroundingPipeline(tiny_model, processor=tiny_processor, device="cpu")(pictures[5], "the star")
    assert result["heatmap"].dtype == np.float32
    assert all(abs(result["box"][key] - value) < 6 for key, value in expected["box"].items())  # 64 pixels, 8 bits


def test_options_add_what_they_say(pipe: VisualGroundingPipeline, pictures: list[Any]) -> None:
    result = pipe(pictures[0], "the star", mask=True, heatmap=True, threshold=0.0)
    assert result["mask"].shape == result["heatmap"].shape == (30, 60)
    assert result["mask"].dtype == bool
    assert result["heatmap"].min() >= 0
    assert result["heatmap"].max() <= 1
    assert result["found"] is True
    assert pipe(pictures[0], "the star", threshold=1.0)["found"] is False


@pytest.mark.parametrize("threshold", [float("nan"), 50, -0.1, "0.5"])
def test_a_threshold_that_no_score_compares_with_is_refused(
    pipe: VisualGroundingPipeline, pictures: list[Any], threshold: Any
) -> None:
    with pytest.raises(ValueError, match="threshold must be a number from 0 to 1, got"):
        pipe(pictures[0], "the star", threshold=threshold)
    outputs = {"pred_boxes": torch.full((1, 4), 0.5), "scores": torch.tensor([0.5])}
    with pytest.raises(ValueError, match="threshold must be a number from 0 to 1, got"):
        pipe.processor.post_process_grounding(outputs, threshold=threshold)


def test_maps_can_be_smaller_than_the_image(pipe: VisualGroundingPipeline) -> None:
    large = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 900, 3), dtype=np.uint8))
    full = pipe(large, ["the star", "red"], mask=True, heatmap=True)
    small = pipe(large, ["the star", "red"], mask=True, heatmap=True, map_side=90)
    for result, expected in zip(small, full, strict=True):
        assert_close(result, expected)  # the box is still in pixels of the image
        assert result["mask"].shape == result["heatmap"].shape == (30, 90)
        assert np.abs(result["heatmap"] - expected["heatmap"][5::10, 5::10]).max() < 0.1
    assert pipe(large, "red", mask=True, map_side=2000)["mask"].shape == (300, 900)
    assert pipe(large, "red", mask=True, map_side=1)["mask"].shape == (1, 1)
    with pytest.raises(ValueError, match="map_side must be a whole number of pixels, at least 1, got 0"):
        pipe(large, "red", mask=True, map_side=0)


def test_similarity_scores_are_asked_for(
    tiny_model: HiVGForVisualGrounding, tiny_processor: HiVGProcessor, pictures: list[Any]
) -> None:
    model = copy.deepcopy(tiny_model)
    model.config.score = "similarity"
    model.config.loss_weights = {k: v for k, v in model.config.loss_weights.items() if k != "score"}
    result = VisualGroundingPipeline(model, processor=tiny_processor, device="cpu")(pictures[0], "the star")
    assert 0 <= result["score"] <= 1


@pytest.mark.parametrize(
    ("inputs", "text", "error", "message"),
    [
        ("absent.jpg", "the star", FileNotFoundError, "Image file not found: 'absent.jpg'"),
        (PIL.Image.new("RGB", (9, 9)), " ", ValueError, "Expression 0 is blank"),
        (PIL.Image.new("RGB", (9, 9)), [], ValueError, "list of expressions is empty"),
        (PIL.Image.new("RGB", (9, 9)), None, ValueError, "no expression for an image"),
        ([PIL.Image.new("RGB", (9, 9))], ["a", "b"], ValueError, "Got 1 images and 2 expressions"),
        ({"text": "the star"}, None, ValueError, "must have an 'image'"),
        (np.full((9, 9), np.nan), "the star", ValueError, "not finite"),
        (None, "the star", ValueError, "Give an image and an expression"),
        (7, "the star", TypeError, "not int"),
    ],
)
def test_bad_input_gets_one_sentence(
    pipe: VisualGroundingPipeline, inputs: Any, text: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        pipe(inputs, text)
    assert "\n" not in str(caught.value)


def test_bad_input_in_a_worker_gets_the_same_sentence(pipe: VisualGroundingPipeline, pictures: list[Any]) -> None:
    with pytest.raises(FileNotFoundError, match=r"^Image file not found: 'absent\.jpg'\.$"):
        pipe(["absent.jpg", pictures[0]], "the star", num_workers=1)


def test_errors_can_be_returned_in_their_place(pipe: VisualGroundingPipeline, pictures: list[Any]) -> None:
    results = pipe([pictures[0], "absent.jpg", pictures[1]], "the star", batch_size=2, on_error="return")
    assert results[1] == {"error": "Image file not found: 'absent.jpg'."}
    assert_close(results[0], pipe(pictures[0], "the star"))
    assert_close(results[2], pipe(pictures[1], "the star"))


def bad_rows(folder: Path) -> dict[str, dict[str, Any]]:
    """Rows that cannot be used, by what is wrong with them."""
    picture = PIL.Image.new("RGB", (40, 30))
    (folder / "text.png").write_text("no picture")
    picture.save(folder / "closed.png")
    with PIL.Image.open(folder / "closed.png") as closed:
        pass
    images = {
        "absent": "absent.png",
        "folder": str(folder),
        "not a picture": str(folder / "text.png"),
        "None": None,
        "a number": 7,
        "a list": [picture],
        "nan": np.full((9, 9), np.nan),
        "ambiguous": np.zeros((3, 5, 3), np.uint8),
        "complex": np.zeros((5, 7), complex),
        "meta": torch.zeros(3, 5, 7, device="meta"),
        "closed": closed,
        "empty bytes": b"",
        "text file": io.StringIO("star"),
        "neither": {"path": None, "bytes": None},
        "url": "http://127.0.0.1:1/x.png",
    }
    texts = {
        "None": None,
        "a number": 7,
        "blank": " ",
        "bytes": b"star",
        "empty": [],
        "in a list": ["star", None],
    }
    rows = {f"image: {name}": {"image": image, "text": "the star"} for name, image in images.items()}
    rows |= {f"text: {name}": {"image": picture, "text": text} for name, text in texts.items()}
    return {**rows, "no image": {"text": "the star"}, "no text": {"image": picture}, "no row": None, "number": 3}


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("kind", ["list", "generator", "dataset"])
def test_every_bad_row_is_answered_in_its_place(
    pipe: VisualGroundingPipeline, pictures: list[Any], tmp_path: Path, kind: str, batch_size: int
) -> None:
    good = {"image": pictures[0], "text": "the star"}
    rows = [good]
    for bad in bad_rows(tmp_path).values():
        rows += [bad, good]
    rows = rows[1:-1]  # bad ones first and last too

    class Rows(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(rows)

        def __getitem__(self, index: int) -> Any:
            return rows[index]

    inputs = {"list": rows, "generator": iter(rows), "dataset": Rows()}[kind]
    answers = list(pipe(inputs, on_error="return", batch_size=batch_size))
    expected = pipe(good)
    assert len(answers) == len(rows)
    for row, answer in zip(rows, answers):
        if row is good:
            assert_close(answer, expected)
        else:
            assert list(answer) == ["error"]
            assert "\n" not in answer["error"]


def test_one_bad_row_alone_is_returned_or_raised(pipe: VisualGroundingPipeline, tmp_path: Path) -> None:
    for bad in bad_rows(tmp_path).values():
        if bad is not None:
            assert list(pipe(bad, on_error="return")) == ["error"]
            with pytest.raises((ValueError, TypeError, OSError)):
                pipe(bad)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_dataset_whose_row_fails_is_answered_too(
    pipe: VisualGroundingPipeline, pictures: list[Any], num_workers: int
) -> None:
    answers = list(pipe(FailingRows(pictures[:3]), "the star", on_error="return", num_workers=num_workers))
    assert answers[1] == {"error": "A row cannot be read: OddError (row 1)."}
    assert [next(iter(answer)) for answer in answers] == ["expression", "error", "expression"]


class OddError(Exception):
    """As a library's own: it cannot be sent between processes."""

    def __init__(self, row: int, reason: object):
        super().__init__(f"row {row}")


class FailingRows(torch.utils.data.Dataset):
    def __init__(self, pictures: list[Any]):
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> Any:
        if index == 1:
            raise OddError(index, object())
        return self.pictures[index]


def test_an_open_file_is_one_picture(pipe: VisualGroundingPipeline, pictures: list[Any], tmp_path: Path) -> None:
    pictures[0].save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    expected = pipe(pictures[0], "the star")
    with (tmp_path / "a.png").open("rb") as file:
        for image in (file, io.BytesIO(data), bytearray(data), memoryview(data), base64.b64encode(data).decode()):
            assert pipe(image, "the star") == expected
            assert pipe([image, image], "the star") == [expected, expected]
            assert pipe({"image": image, "text": "the star"}) == expected
    assert pipe(image=pictures[0], text="the star") == pipe(images=pictures[0], text="the star") == expected
    with pytest.raises(TypeError, match="Give the image once"):
        pipe(pictures[0], "the star", image=pictures[0])


def test_boxes_fit_the_object_that_was_passed(
    pipe: VisualGroundingPipeline, tiny_model: HiVGForVisualGrounding, pictures: list[Any], tmp_path: Path
) -> None:
    """A file is grounded upright; what is read of it by hand, as it is held: by the pipeline, `ground` and alone."""
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "turned.png"
    pictures[0].save(path, exif=exif)
    held, upright = (
        pipe(pictures[0], "the star"),
        pipe(pictures[0].transpose(PIL.Image.Transpose.ROTATE_270), "the star"),
    )
    assert held["box"] != upright["box"]
    processor = pipe.processor
    for image, expected in ((PIL.Image.open(path), held), (path, upright), (path.read_bytes(), upright)):
        assert pipe(image, "the star") == expected
        assert_close(tiny_model.ground(image, "the star", processor), expected)
    image = PIL.Image.open(path).convert("RGB")
    with torch.no_grad():
        outputs = tiny_model(**processor(images=[image], text=["the star"]))
    box = processor.post_process_grounding(outputs, target_sizes=[image.size[::-1]])[0]["box"]
    assert box.tolist() == pytest.approx(list(held["box"].values()), abs=1e-3)


def test_a_processor_made_without_rescaling_reads_floats_everywhere(
    tiny_model: HiVGForVisualGrounding, tiny_processor: HiVGProcessor, pictures: list[Any]
) -> None:
    processor = copy.deepcopy(tiny_processor)
    processor.image_processor.do_rescale = False
    pipe = VisualGroundingPipeline(tiny_model, processor=processor, device="cpu")
    unit = np.asarray(pictures[5], dtype=np.float32) / 255  # of the model's own size: nothing is resized
    expected = VisualGroundingPipeline(tiny_model, processor=tiny_processor, device="cpu")(pictures[5], "the star")
    assert_close(pipe(unit, "the star"), expected)
    assert_close(tiny_model.ground(unit, "the star", processor), expected)
    values = [each(images=unit)["pixel_values"] for each in (processor, tiny_processor)]
    assert torch.equal(*values)


def test_unknown_options_are_refused(pipe: VisualGroundingPipeline, pictures: list[Any]) -> None:
    with pytest.raises(TypeError, match="no option 'masks'"):
        pipe(pictures[0], "the star", masks=True)
    with pytest.raises(ValueError, match="on_error must be one of raise, return"):
        pipe(pictures[0], "the star", on_error="ignore")
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        pipe(pictures[0], "the star", batch_size=0)


def test_a_long_expression_warns_or_fails_as_asked(pipe: VisualGroundingPipeline, pictures: list[Any]) -> None:
    long = "the red star " * 40
    with pytest.warns(UserWarning, match="the model reads 77: cut"):
        pipe(pictures[0], long)
    with pytest.raises(ValueError, match="shorten it"):
        pipe(pictures[0], long, long_text="error")


def test_a_saved_pipeline_opens_again(pipe: VisualGroundingPipeline, pictures: list[Any], tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path)
    assert (tmp_path / "processor_config.json").exists()
    assert (tmp_path / "pipeline_hivg.py").exists()
    assert not hasattr(pipe.model.config, "custom_pipelines")
    again = pipeline("visual-grounding", model=str(tmp_path), device="cpu", dtype=torch.float32)
    assert_close(again(pictures[0], "the star"), pipe(pictures[0], "the star"))
    again.save_pretrained(
        tmp_path / "again"
    )  # transformers hands the dtype to the tokenizer, whose JSON cannot hold it


def test_results_become_supervision_detections(
    pipe: VisualGroundingPipeline, pictures: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    results = pipe(pictures[0], ["the star", "red"], mask=True)
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ImportError, match="pip install supervision"):
        results.to_supervision()
    monkeypatch.setitem(sys.modules, "supervision", SimpleNamespace(Detections=SimpleNamespace))
    detections = results.to_supervision()
    assert detections.xyxy.shape == (2, 4)
    assert detections.xyxy[1].tolist() == pytest.approx(list(results[1]["box"].values()))
    assert detections.confidence.tolist() == pytest.approx([result["score"] for result in results])
    assert detections.mask.shape == (2, 30, 60)
    assert detections.data["class_name"].tolist() == ["the star", "red"]


def test_an_image_reaches_the_model_once_for_the_expressions_of_a_pass(
    pipe: VisualGroundingPipeline, pictures: list[Any]
) -> None:
    passed: list[dict[str, Any]] = []
    hook = pipe.model.register_forward_pre_hook(lambda _, args, kwargs: passed.append(kwargs), with_kwargs=True)
    images, texts = pictures[:2], [["the star", "the red star"], ["the star"]]
    together = pipe(images, texts, batch_size=3)
    hook.remove()
    assert [inputs["pixel_values"].shape[0] for inputs in passed] == [2]
    assert sorted(passed[0]["image_index"].tolist()) == [0, 0, 1]
    for image, text, results in zip(images, texts, together, strict=True):
        for expression, result in zip(text, results, strict=True):
            assert_close(result, pipe(image, expression))


def test_a_reduced_jpeg_gives_boxes_in_pixels_of_the_whole_picture(
    pipe: VisualGroundingPipeline, tmp_path: Path
) -> None:
    ramp = np.linspace(0, 255, 1201, dtype=np.uint8)[None, :, None].repeat(803, 0).repeat(3, 2)
    PIL.Image.fromarray(ramp).save(tmp_path / "photo.jpg", quality=95)
    whole = pipe(tmp_path / "photo.jpg", "the star", mask=True)
    fast = pipe(tmp_path / "photo.jpg", "the star", mask=True, reduce_jpeg=True)
    assert list(fast["box"].values()) == pytest.approx(list(whole["box"].values()), abs=0.02 * 1201)
    assert fast["mask"].shape == whole["mask"].shape == (803, 1201)


def test_official_models_take_no_reduced_pictures(pipe: VisualGroundingPipeline) -> None:
    other = copy.copy(pipe)
    other.model = SimpleNamespace(config=SimpleNamespace(skip_padded_patches=False))
    with pytest.raises(ValueError, match="computes as the official code does"):
        other._sanitize_parameters(reduce_jpeg=True)


class Frame:
    """What pandas and polars have in common with a table."""

    def __init__(self, rows: list[dict[str, Any]], method: str) -> None:
        self.columns = list(rows[0])
        setattr(self, method, lambda *orient: [dict(row) for row in rows])


def test_tables_texts_from_generators_and_encoded_pictures_are_understood(
    pipe: VisualGroundingPipeline, pictures: list[Any], tmp_path: Path
) -> None:
    path = tmp_path / "a picture.png"
    pictures[0].save(path)
    expected = pipe(pictures[0], "the star")
    encoded = base64.b64encode(path.read_bytes())
    lines = "\n".join(encoded.decode()[start : start + 76] for start in range(0, len(encoded), 76))
    urls = [f"data:image/png;base64,{lines}", f" data:image/png;base64,\r\n{lines}\r\n"]
    files = [path.as_uri(), f"file://localhost{path}", f"FILE:{path}"]
    for image in (encoded, encoded.decode(), lines, *urls, *files):
        assert pipe(image, "the star") == expected
    assert pipe(str(path), (text for text in ["the star"])) == [expected]
    assert pipe([str(path)], (text for text in ["the star"])) == [expected]
    rows = [{"image": str(path), "expression": "the star"}] * 2
    for method in ("to_dict", "to_dicts"):
        assert pipe(Frame(rows, method)) == [expected] * 2
        assert [one["expression"] for one in pipe(Frame(rows, method), "red")] == ["red", "red"]


def test_a_file_of_another_machine_and_several_datasets_are_refused_in_a_sentence(
    pipe: VisualGroundingPipeline,
) -> None:
    with pytest.raises(ValueError, match=r"'file://server/a.png' names a file of the machine 'server': give a path"):
        pipe("file://server/a.png", "red")
    with pytest.raises(FileNotFoundError, match=r"Image file not found: '/no/such.png'"):
        pipe("file:///no/such.png", "red")
    table = datasets.Dataset.from_dict({"image": ["a.png"]})
    splits = datasets.DatasetDict({"train": table, "val": table})
    with pytest.raises(ValueError, match=r"DatasetDict holds datasets by name \('train', 'val'\): pass one of them"):
        pipe(splits, "red")


def test_a_mask_comes_as_array_picture_or_run_lengths(pipe: VisualGroundingPipeline, pictures: list[Any]) -> None:
    array = pipe(pictures[0], "the star", mask=True)["mask"]
    assert array.dtype == bool
    assert np.array_equal(pipe(pictures[0], "the star", mask="array")["mask"], array)
    picture = pipe(pictures[0], "the star", mask="pil")["mask"]
    assert (picture.mode, picture.size) == ("L", pictures[0].size)
    assert np.array_equal(np.asarray(picture) == 255, array)
    assert np.array_equal(decode_mask(pipe(pictures[0], "the star", mask="rle")["mask"]), array)
    assert "mask" not in pipe(pictures[0], "the star", mask=False)
    with pytest.raises(ValueError, match=r"mask must be True, False or one of array, pil, rle, got 'png'"):
        pipe(pictures[0], "the star", mask="png")


@pytest.mark.parametrize("corner", [False, True])
@pytest.mark.parametrize("fill", [False, True])
def test_run_lengths_are_those_of_coco(fill: bool, corner: bool) -> None:
    mask = np.full((3, 4), fill)
    mask[0, 0] = mask[2, 3] = corner
    encoded = mask_in_form(mask, "rle")
    assert np.array_equal(decode_mask(encoded), mask)
    assert sum(encoded["counts"]) == 12


@pytest.mark.parametrize("name", ["expression", "question", "prompt"])
def test_an_expression_by_another_name_is_refused_with_the_right_one(pipe: VisualGroundingPipeline, name: str) -> None:
    with pytest.raises(TypeError, match=rf"has no option '{name}'\. Expressions are text=\.\.\."):
        pipe(np.zeros((8, 8, 3), dtype=np.uint8), **{name: "the star"})
    with pytest.raises(TypeError, match=r"has no option 'colour'\.$"):
        pipe(np.zeros((8, 8, 3), dtype=np.uint8), "the star", colour=1)


@pytest.mark.parametrize("text", [[["the star", "red"], ["a"]], [["a"]], ["a", ("red",)], [np.array(["a", "red"])]])
def test_lists_in_the_list_of_one_image_are_refused_and_not_answered_for_other_words(
    text: Any, pipe: VisualGroundingPipeline, pictures: list[Any]
) -> None:
    with pytest.raises(TypeError, match=r"Expression \d of an image is a \w+: give one image a flat list of strings"):
        pipe(pictures[0], text)
    with pytest.raises(TypeError, match="a list of lists goes with a list of images"):
        pipe({"image": pictures[0], "text": text})


@pytest.mark.parametrize("batch_size", ["2", 1.5])
def test_a_batch_size_that_is_not_a_whole_number_is_named(
    batch_size: Any, pipe: VisualGroundingPipeline, pictures: list[Any]
) -> None:
    with pytest.raises(TypeError, match=r"batch_size must be a whole number of at least 1, got ('2'|1\.5)"):
        pipe(pictures[:2], "red", batch_size=batch_size)


@pytest.mark.parametrize("ask", ["pipe", "ground", "list"])
def test_an_image_in_the_place_of_the_text_is_called_swapped(
    ask: str, pipe: VisualGroundingPipeline, pictures: list[Any], tmp_path: Path
) -> None:
    pictures[0].save(tmp_path / "named so", "PNG")
    call = {
        "pipe": pipe,
        "ground": lambda image, text: pipe.model.ground(image, text, pipe.processor),
        "list": lambda image, text: pipe([image], [text]),
    }[ask]
    for text in (pictures[0], np.zeros((8, 8, 3)), "photo.jpg", "https://example.org/a", str(tmp_path / "named so")):
        with pytest.raises(
            TypeError, match=r"Got an image \(.+\) as text: images come first, then expressions\. Pass"
        ):
            call("the red star", text)
    # A name of a file can be what is written in a picture.
    assert call(pictures[0], "the icon of logo.png")


def test_ground_answers_as_the_pipeline_does(pipe: VisualGroundingPipeline, pictures: list[Any]) -> None:
    asked: list[dict[str, Any]] = [{}, {"threshold": 0.0}, {"threshold": 1.0}, {"multiple": True, "threshold": 0.0}]
    for options in asked:
        for text in ("the star", ["the star", "red"]):
            assert pipe.model.ground(pictures[0], text, pipe.processor, **options) == pipe(
                pictures[0], text, **options
            )
    with pytest.raises(TypeError, match="has no option 'box_threshold'"):
        pipe.model.ground(pictures[0], "the star", pipe.processor, box_threshold=0.3)
    with pytest.raises(ValueError, match="threshold must be a number from 0 to 1, got 5"):
        pipe.model.ground(pictures[0], "the star", pipe.processor, threshold=5)


@pytest.mark.parametrize("training", [False, True])
def test_ground_leaves_the_model_in_its_mode(
    training: bool, pipe: VisualGroundingPipeline, pictures: list[Any]
) -> None:
    model = pipe.model.train(training)
    try:
        with pytest.raises(ValueError, match="blank"):
            model.ground(pictures[0], "", pipe.processor)
        model.ground(pictures[0], "the star", pipe.processor)
        assert model.training == training
    finally:
        model.eval()


def test_ground_says_what_its_processor_must_be(pipe: VisualGroundingPipeline, pictures: list[Any]) -> None:
    for processor in ("tiny", pipe.tokenizer, pictures[0]):
        with pytest.raises(TypeError, match=r"third argument of ground must be a HiVGProcessor, got \w+: pass Auto"):
            pipe.model.ground(pictures[0], "the star", processor)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("multiple", "no", "multiple must be True or False, got 'no'"),
        ("heatmap", "no", "heatmap must be True or False, got 'no'"),
        ("reduce_jpeg", 1, "reduce_jpeg must be True or False, got 1"),
        ("map_side", "10", "map_side must be a whole number of pixels, at least 1, got '10'"),
        ("map_side", 9.5, "map_side must be a whole number of pixels, at least 1, got 9.5"),
        ("timeout", "5", "timeout must be a number of seconds above 0, got '5'"),
        ("long_text", "cut", "long_text must be one of warn, error, got 'cut'"),
        ("num_workers", "2", "num_workers must be a whole number, 0 or more processes, got '2'"),
        ("num_workers", -1, "num_workers must be a whole number, 0 or more processes, got -1"),
    ],
)
def test_an_option_of_another_kind_is_named(
    option: str, value: Any, message: str, pipe: VisualGroundingPipeline, pictures: list[Any]
) -> None:
    with pytest.raises(ValueError, match=message):
        pipe(pictures[0], "the star", **{option: value})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"picture": "a.png", "text": "a"}, r"must have an 'image'; it has 'picture', 'text'\."),
        (
            {"image": "a.png", "caption": "a"},
            r"must have an expression, under 'text' or 'expression'; it has 'image', 'c",
        ),
    ],
)
def test_a_row_under_other_names_is_shown_with_its_own(row: Any, message: str, pipe: VisualGroundingPipeline) -> None:
    for rows in (row, [row]):
        with pytest.raises(ValueError, match=message):
            pipe(rows)
