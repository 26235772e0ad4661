"""The `evaluate` metric loads from its folder without a network and says what the library says."""

import evaluate
import pytest

from hivg_hf.metrics import GROUNDING_ACCURACY, compute_grounding_metrics

PREDICTIONS = [[0, 0, 10, 10], [-10, 0, 10, 20], [0, 0, 3, 3]]
REFERENCES = [[0, 0, 10, 20], [0, 0, 10, 20], [5, 5, 9, 9]]


@pytest.fixture(scope="module")
def metric():
    return evaluate.load(GROUNDING_ACCURACY)


def test_figures_equal_those_of_the_library(metric):
    sizes = [(30, 40)] * 3
    result = metric.compute(
        predictions=PREDICTIONS, references=REFERENCES, image_sizes=sizes, image_ids=["a", "a", "b"], resamples=100
    )
    expected = compute_grounding_metrics(
        [{"id": i, "box_xyxy": box} for i, box in enumerate(PREDICTIONS)],
        [
            {"id": i, "box": box, "height": 30, "width": 40, "image_id": name}
            for i, (box, name) in enumerate(zip(REFERENCES, "aab", strict=True))
        ],
        resamples=100,
    )
    assert result == {**expected["figures"], "n": 3, "intervals": expected["intervals"]}
    assert result["acc@0.5"] == pytest.approx(2 / 3)


def test_batches_are_collected_and_the_protocol_is_an_argument(metric):
    for box, target in zip(PREDICTIONS, REFERENCES, strict=True):
        metric.add(prediction=box, reference=target)
    result = metric.compute(protocol="ref-l4", resamples=0)
    assert result["acc@0.5"] == 0.0  # exactly one half is not above one half, and nothing is clipped
    assert "intervals" not in result


def test_lists_of_other_length_are_refused(metric):
    with pytest.raises(ValueError, match="image_ids must have one entry per reference: got 1 for 3"):
        metric.compute(predictions=PREDICTIONS, references=REFERENCES, image_ids=["a"])
