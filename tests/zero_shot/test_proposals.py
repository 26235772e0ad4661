"""Where proposals come from: detectors of transformers by configuration, and what stands out from a plain ground."""

import numpy as np
import PIL.Image
import PIL.ImageDraw
import pytest

from hivg_hf.data.refshapes import refshapes_dataset
from hivg_hf.metrics.overlaps import paired_iou
from hivg_hf.zero_shot import DetectorProposals, component_proposals
from hivg_hf.zero_shot.detector import clip_box, nearest_label


@pytest.fixture(scope="module")
def picture():
    return PIL.Image.effect_noise((90, 60), 80).convert("RGB")


@pytest.mark.parametrize("name", ["grounding_dino", "owlv2"])
def test_a_detector_of_transformers_gives_labels_boxes_and_scores(name, picture, request):
    detections = request.getfixturevalue(name)(picture, ["red star", "blue circle"], threshold=0.0)
    assert detections
    assert {detection.label for detection in detections} <= {"red star", "blue circle"}
    assert all(0 <= d.box[0] < d.box[2] <= 90 and 0 <= d.box[1] < d.box[3] <= 60 for d in detections)
    scores = [detection.score for detection in detections]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("name", ["grounding_dino", "owlv2"])
def test_detector_proposals_are_the_best_boxes(name, picture, request):
    source = DetectorProposals(request.getfixturevalue(name), labels=None, threshold=0.0, most=3)
    boxes = source(picture, ["red star"])
    assert boxes.shape == (3, 4)
    assert DetectorProposals(source.detector, ["red star"], threshold=1.0)(picture, []).shape == (0, 4)


@pytest.mark.parametrize("labels", [[], ["  "], ["a cat. a dog"]])
def test_labels_that_a_detector_would_misread_are_refused(owlv2, picture, labels):
    with pytest.raises(ValueError, match="Expected labels such as 'red car', without full stops"):
        owlv2(picture, labels)


def test_words_of_a_detector_are_mapped_to_the_nearest_label():
    labels = ["red car", "car", "traffic light"]
    assert nearest_label("car", labels) == "car"
    assert nearest_label("red car car", labels) == "red car"
    assert nearest_label("light", labels) == "traffic light"
    assert nearest_label("", labels) is None
    assert nearest_label("dog", labels) is None


def test_boxes_are_cut_to_the_picture():
    assert clip_box([-5, 2, 30, 90], (20, 40)) == (0, 2, 20, 40)
    assert clip_box([25, 2, 30, 9], (20, 40)) is None
    assert clip_box([0, 0, float("nan"), 9], (20, 40)) is None


def test_components_are_what_stands_out_from_the_border():
    picture = PIL.Image.linear_gradient("L").resize((120, 80)).point(lambda v: 100 + v // 4).convert("RGB")
    draw = PIL.ImageDraw.Draw(picture)
    draw.rectangle((10, 20, 39, 59), fill=(220, 30, 30))
    draw.ellipse((70, 10, 99, 49), fill=(30, 30, 220))
    boxes = component_proposals(picture)
    assert np.abs(boxes[np.argsort(boxes[:, 0])] - [[10, 20, 40, 60], [70, 10, 100, 50]]).max() <= 1


def test_a_plain_picture_has_no_components():
    assert component_proposals(PIL.Image.new("RGB", (30, 20), "grey")).shape == (0, 4)


def test_components_find_most_objects_of_refshapes():
    found = total = 0
    for row in refshapes_dataset("val", seed=11, size=20, objects=True, masks=False):
        boxes = component_proposals(row["image"])
        for item in row["objects"]:
            total += 1
            found += (paired_iou(boxes, np.tile(item["box"], (len(boxes), 1))) >= 0.5).any()
    assert found / total > 0.75
