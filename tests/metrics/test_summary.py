"""Every figure and every protocol on cases worked out by hand."""

import numpy as np
import pytest

from hivg_hf.metrics import compute_grounding_metrics
from hivg_hf.metrics.protocols import REF_L4_TWINS, ref_l4_class

HALF = {"id": "half", "box": [0, 0, 10, 20], "width": 100, "height": 100}  # the prediction below covers half of it
HALF_PREDICTION = {"id": "half", "box_xyxy": [0, 0, 10, 10]}


def measure(predictions, references, protocol="pixel", **options):
    return compute_grounding_metrics(predictions, references, protocol, resamples=0, **options)


@pytest.mark.parametrize(
    ("protocol", "accuracy"),
    [("pixel", 1.0), ("official", 1.0), ("mdetr", 1.0), ("ref-l4", 0.0)],
)
def test_an_overlap_of_exactly_one_half_is_right_except_under_the_strict_protocol(protocol, accuracy):
    assert measure([HALF_PREDICTION], [HALF], protocol)["figures"]["acc@0.5"] == accuracy


def test_generalized_iou_refuses_a_box_that_iou_accepts():
    # 20 x 20 boxes, 3 right and 4 down: 17 * 16 = 272 shared, 528 covered, IoU 0.515; hull 23 * 24 = 552, GIoU 0.472.
    references = [{"id": 0, "box": [3, 4, 23, 24], "width": 50, "height": 50}]
    predictions = [{"id": 0, "box_xyxy": [0, 0, 20, 20]}]
    assert measure(predictions, references, "pixel")["figures"]["acc@0.5"] == 1.0
    mdetr = measure(predictions, references, "mdetr")["figures"]
    assert mdetr["acc@0.5"] == 0.0
    assert mdetr["mean_iou"] == pytest.approx(272 / 528)


def test_thresholds_mean_accuracy_and_mean_iou():
    # IoU 1, 0.75 (15 of 20 rows), 0.5 and 0.
    boxes = [[0, 0, 10, 20], [0, 0, 10, 15], [0, 0, 10, 10], [50, 50, 60, 60]]
    references = [{**HALF, "id": index} for index in range(4)]
    predictions = [{"id": index, "box_xyxy": box} for index, box in enumerate(boxes)]
    figures = measure(predictions, references)["figures"]
    assert figures["acc@0.5"] == 0.75
    assert figures["acc@0.7"] == 0.5
    assert figures["acc@0.9"] == 0.25
    # 0.5: 3 right; 0.55 ... 0.75: 2 right, five times; 0.8 ... 0.95: 1 right, four times; of 4 rows, 10 thresholds.
    assert figures["macc"] == pytest.approx((3 + 5 * 2 + 4 * 1) / 40)
    assert figures["mean_iou"] == pytest.approx((1 + 0.75 + 0.5 + 0) / 4)
    # 0.75 is not above 0.75: the strict protocol drops one row at 0.5 and one at 0.75.
    strict = measure(predictions, references, "ref-l4")["figures"]
    assert strict["acc@0.5"] == 0.5
    assert strict["acc@0.75"] == 0.25
    assert strict["macc"] == pytest.approx((2 * 5 + 1 * 5) / 40)


def test_single_precision_overlaps_meet_thresholds_in_single_precision():
    # 7 of 10 rows: 0.7 in 32 bits is below 0.7 in 64 bits, and both protocols must call it right.
    references = [{"id": 0, "box": [0, 0, 10, 10], "width": 10, "height": 10}]
    predictions = [{"id": 0, "box_xyxy": [0, 0, 10, 7]}]
    for protocol in ("pixel", "mdetr"):
        assert measure(predictions, references, protocol)["figures"]["acc@0.7"] == 1.0


def test_the_center_of_the_prediction_counts_on_the_border_too():
    references = [{"id": index, "box": [10, 10, 20, 20], "width": 100, "height": 100} for index in range(3)]
    boxes = [[0, 0, 30, 30], [0, 10, 20, 20], [0, 10, 19, 20]]  # centers (15, 15), (10, 15), (9.5, 15)
    predictions = [{"id": index, "box_xyxy": box} for index, box in enumerate(boxes)]
    assert measure(predictions, references)["figures"]["center_acc"] == pytest.approx(2 / 3)


def test_only_pixel_clips_a_prediction_at_the_border_of_the_image():
    references = [{"id": 0, "box": [0, 0, 10, 10], "width": 100, "height": 50}]
    predictions = [{"id": 0, "box_xyxy": [-30, 0, 10, 10]}]
    assert measure(predictions, references, "pixel")["figures"]["mean_iou"] == 1.0
    assert measure(predictions, references, "mdetr")["figures"]["mean_iou"] == 0.25


def test_official_ground_truth_is_cut_to_whole_pixels_by_width_or_by_corner():
    box = [10.9, 20.9, 110.2, 60.5]  # x, y, w, h: 10, 20, 99, 39; corners: 10, 20, 110, 60
    by_size, by_corner = [10, 20, 109, 59], [10, 20, 110, 60]
    for source, whole in (("refcoco", by_size), ("flickr30k", by_corner), ("referit", by_corner)):
        references = [{"id": 0, "box": box, "width": 448, "height": 224, "source": source}]
        predictions = [{"id": 0, "box_xyxy": whole}]
        assert measure(predictions, references, "official")["figures"]["mean_iou"] == pytest.approx(1.0, abs=1e-6)
        assert measure(predictions, references, "pixel")["figures"]["mean_iou"] < 0.99


def test_official_reads_a_width_that_single_precision_blurred_as_the_annotation_had_it():
    x, width = 0.74, 120.0  # single precision corners differ by 119.999998
    box = np.array([x, 0.0, x + width, 50.0], dtype=np.float32)
    assert float(box[2]) - float(box[0]) < 120
    references = [{"id": 0, "box": box.tolist(), "width": 640, "height": 640}]
    predictions = [{"id": 0, "box_xyxy": [0, 0, 120, 50]}]
    assert measure(predictions, references, "official")["figures"]["mean_iou"] == pytest.approx(1.0, abs=1e-6)


def test_official_counts_what_a_box_covers_of_the_padding():
    # 448 x 224 in a square of 224: scale 1/2, padding of 56 above and below. The target is the upper half of the
    # image, rows 56 to 112 of the square; the model's box, rows 0 to 112, covers as much padding as target.
    references = [{"id": 0, "box": [0, 0, 448, 112], "width": 448, "height": 224}]
    predictions = [{"id": 0, "box_xyxy": [0, 0, 448, 112], "canvas_box": [0.5, 0.25, 1.0, 0.5], "canvas_size": 224}]
    official = measure(predictions, references, "official")["figures"]
    assert official["mean_iou"] == 0.5
    assert official["acc@0.5"] == 1.0
    assert measure(predictions, references, "pixel")["figures"]["mean_iou"] == 1.0


def test_official_follows_the_offset_of_a_processor_that_aligns_padding_to_patches():
    # The same image with its padding rounded down to 48: the target is rows 48 to 104 of 224.
    references = [{"id": 0, "box": [0, 0, 448, 112], "width": 448, "height": 224}]
    canvas_box = [0.5, (48 + 28) / 224, 1.0, 56 / 224]
    predictions = [
        {"id": 0, "box_xyxy": [0, 0, 1, 1], "canvas_box": canvas_box, "canvas_size": 224, "canvas_offset": [0, 48]}
    ]
    assert measure(predictions, references, "official")["figures"]["mean_iou"] == pytest.approx(1.0, abs=1e-6)


def test_official_needs_the_size_of_the_image():
    with pytest.raises(ValueError, match=r"width and height of every image; 1 references have none: \['a'\]"):
        measure([{"id": "a", "box_xyxy": [0, 0, 1, 1]}], [{"id": "a", "box": [0, 0, 1, 1]}], "official")


def test_mask_iou_by_row_and_overall_are_two_figures():
    small, large = np.zeros((4, 4), bool), np.zeros((4, 4), bool)
    small[0, 0] = True
    large[:2] = True
    references = [{"id": 0, "box": [0, 0, 1, 1], "mask": small}, {"id": 1, "box": [0, 0, 4, 2], "mask": large}]
    top = np.zeros((4, 4), bool)
    top[0] = True  # 1 of 4 pixels shared with small, 4 of 8 with large
    predictions = [{"id": i, "box_xyxy": [0, 0, 4, 1], "mask": top} for i in range(2)]
    result = measure(predictions, references)
    assert result["figures"]["mask_miou"] == pytest.approx((1 / 4 + 4 / 8) / 2)
    assert result["figures"]["mask_oiou"] == pytest.approx((1 + 4) / (4 + 8))
    assert result["counts"]["masks"] == 2


def test_two_empty_masks_agree_and_an_empty_mask_misses_a_full_one():
    empty, full = np.zeros((2, 3), bool), np.ones((2, 3), bool)
    rows = [(empty, empty), (empty, full), (full, empty)]
    references = [{"id": i, "box": [0, 0, 1, 1], "mask": target} for i, (_, target) in enumerate(rows)]
    predictions = [{"id": i, "box_xyxy": [0, 0, 1, 1], "mask": mask} for i, (mask, _) in enumerate(rows)]
    figures = measure(predictions, references)["figures"]
    assert figures["mask_miou"] == pytest.approx(1 / 3)
    assert figures["mask_oiou"] == 0.0
    only_empty = measure(predictions[:1], references[:1])["figures"]
    assert only_empty["mask_miou"] == 1.0
    assert "mask_oiou" not in only_empty  # no pixel is covered: the ratio does not exist


def test_rows_without_a_mask_are_left_out_of_mask_figures():
    mask = np.ones((2, 2), bool)
    references = [{"id": 0, "box": [0, 0, 1, 1], "mask": mask}, {"id": 1, "box": [0, 0, 1, 1], "mask": None}]
    predictions = [{"id": i, "box_xyxy": [0, 0, 1, 1], "mask": mask} for i in range(2)]
    result = measure(predictions, references)
    assert (result["counts"]["masks"], result["figures"]["mask_miou"]) == (1, 1.0)


def test_breakdowns_by_length_size_shape_category_and_source():
    def row(index, words, box, width, height, category, source):
        expression = " ".join(["w"] * words)
        return {"id": index, "expression": expression, "box": box, "width": width, "height": height,
                "category": category, "source": source}  # fmt: skip

    references = [
        row(0, 5, [0, 0, 31, 31], 400, 300, "cat", "a"),  # small, wide: exactly 4 to 3
        row(1, 6, [0, 0, 32, 32], 300, 400, "cat", "a"),  # medium, tall
        row(2, 8, [0, 0, 96, 96], 399, 300, "dog", "b"),  # medium, square
        row(3, 11, [0, 0, 97, 96.5], 300, 300, None, "b"),  # large, square
    ]
    predictions = [{"id": row["id"], "box_xyxy": row["box"]} for row in references]
    predictions[1]["box_xyxy"] = [200, 200, 210, 210]
    tables = measure(predictions, references)["breakdowns"]
    assert {name: entry["n"] for name, entry in tables["expression_length"].items()} == {
        "1-5": 1, "6-7": 1, "8-10": 1, "11+": 1}  # fmt: skip
    assert {name: entry["n"] for name, entry in tables["object_size"].items()} == {"small": 1, "medium": 2, "large": 1}
    assert {name: entry["n"] for name, entry in tables["image_shape"].items()} == {"wide": 1, "tall": 1, "square": 2}
    assert tables["category"] == {
        "cat": {"n": 2, "acc@0.5": 0.5, "mean_iou": 0.5, "macc": 0.5},
        "dog": {"n": 1, "acc@0.5": 1.0, "mean_iou": 1.0, "macc": 1.0},
    }
    assert tables["source"]["a"]["acc@0.5"] == 0.5
    assert tables["image_shape"]["tall"]["acc@0.5"] == 0.0


def test_ref_l4_sizes_and_class_average():
    references = [
        {"id": 0, "box": [0, 0, 127, 127], "category": "cat"},
        {"id": 1, "box": [0, 0, 256, 256], "category": "cat"},
        {"id": 2, "box": [0, 0, 257, 257], "category": "dog"},
    ]
    predictions = [{"id": i, "box_xyxy": [0, 0, 127, 127] if i < 2 else [0, 0, 257, 257]} for i in range(3)]
    result = measure(predictions, references, "ref-l4")
    assert {name: entry["n"] for name, entry in result["breakdowns"]["object_size"].items()} == {
        "small": 1, "medium": 1, "large": 1}  # fmt: skip
    assert result["figures"]["acc@0.5"] == pytest.approx(2 / 3)
    assert result["figures"]["class_acc@0.5"] == pytest.approx((1 / 2 + 1) / 2)
    assert [entry["macc"] for entry in result["breakdowns"]["object_size"].values()] == [1.0, 0.0, 1.0]


def test_ref_l4_merges_classes_with_their_twins_before_it_averages():
    categories = ["refcoco_3", "o365_6", "o365_6", "refcoco_6", "refcoco_16", "o365_40", "refcoco_37"]
    right = [True, False, False, True, True, False, True]
    references = [{"id": i, "box": [0, 0, 10, 10], "category": name} for i, name in enumerate(categories)]
    predictions = [{"id": i, "box_xyxy": [0, 0, 10, 10] if hit else [20, 20, 30, 30]} for i, hit in enumerate(right)]
    result = measure(predictions, references, "ref-l4")
    # car and its twin: 1 of 3; bus and bird share one: 2 of 2; 40 has no COCO row here; sports ball stands alone
    assert result["figures"]["class_acc@0.5"] == pytest.approx((1 / 3 + 1 + 0 + 1) / 4)
    assert set(result["breakdowns"]["category"]) == {"o365_6", "o365_56", "o365_40", "o365_100000"}
    assert set(measure(predictions, references, "pixel")["breakdowns"]["category"]) == set(categories)


@pytest.mark.parametrize(
    ("category", "merged"),
    [
        ("refcoco_90", "o365_227"),
        ("refcoco_12", "refcoco_12"),
        ("refcoco_x", "refcoco_x"),
        ("o365_3", "o365_3"),
        ("car", "car"),
    ],
)
def test_only_refcoco_numbers_have_a_twin(category, merged):
    assert ref_l4_class(category) == merged
    assert len(REF_L4_TWINS) == 80


def test_official_length_counts_every_single_space():
    references = [{**HALF, "expression": "a  b"}]  # two spaces: three pieces
    assert "1-5" in measure([HALF_PREDICTION], references, "official")["breakdowns"]["expression_length"]
    references = [{**HALF, "expression": "a  b c d e"}]
    assert "6-7" in measure([HALF_PREDICTION], references, "official")["breakdowns"]["expression_length"]
    assert "1-5" in measure([HALF_PREDICTION], references, "pixel")["breakdowns"]["expression_length"]


def test_several_targets_are_skipped_or_the_best_counts():
    references = [{"id": 0, "box": None, "boxes": [[0, 0, 10, 10], [50, 50, 60, 60]], "no_target": False}, {**HALF}]
    predictions = [{"id": 0, "box_xyxy": [50, 50, 60, 60]}, HALF_PREDICTION]
    skipped = measure(predictions, references)
    assert skipped["counts"]["skipped_several_targets"] == 1
    assert skipped["figures"]["mean_iou"] == 0.5
    best = measure(predictions, references, several_targets="any")
    assert best["counts"]["one_target"] == 2
    assert best["figures"]["mean_iou"] == 0.75


def test_a_set_of_expressions_that_name_nothing_has_no_accuracy():
    references = [{"id": i, "box": None, "boxes": [], "no_target": True} for i in range(2)]
    predictions = [{"id": i, "box_xyxy": [0, 0, 1, 1], "score": score} for i, score in enumerate((0.2, 0.8))]
    result = compute_grounding_metrics(predictions, references, score_threshold=0.5)
    assert result["counts"] == {
        "rows": 2, "one_target": 0, "no_target": 2, "skipped_several_targets": 0, "masks": 0, "images": 2}  # fmt: skip
    assert result["figures"] == {"f1_precision": 0.5, "n_acc": 0.5}
    assert result["breakdowns"] == {}


def test_intervals_are_given_for_every_figure_and_bucket():
    references = [{**HALF, "id": i, "image_id": str(i // 2), "expression": "x"} for i in range(40)]
    predictions = [{"id": i, "box_xyxy": [0, 0, 10, 20] if i < 20 else [50, 50, 60, 60]} for i in range(40)]
    result = compute_grounding_metrics(predictions, references, resamples=200, seed=3)
    low, high = result["intervals"]["acc@0.5"]
    assert low < 0.5 < high
    assert result["counts"]["images"] == 20
    assert result["breakdowns"]["expression_length"]["1-5"]["interval"] == [low, high]
    assert set(result["intervals"]) == set(result["figures"])
    assert result["bootstrap"] == {"resamples": 200, "seed": 3, "level": 0.95, "unit": "image"}


def test_a_bucket_that_no_resample_holds_has_no_interval():
    references = [{**HALF, "id": i, "category": "rare" if i == 0 else "common"} for i in range(60)]
    predictions = [{"id": i, "box_xyxy": [0, 0, 10, 20]} for i in range(60)]
    # One resample of 60 rows leaves a given row out in about 36 of 100 seeds.
    found = [
        "interval"
        in compute_grounding_metrics(predictions, references, resamples=1, seed=seed)["breakdowns"]["category"]["rare"]
        for seed in range(20)
    ]
    assert 4 < sum(found) < 20


def test_an_unknown_protocol_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match="Unknown protocol 'coco': choose one of pixel, official, mdetr, ref-l4"):
        measure([HALF_PREDICTION], [HALF], "coco")
