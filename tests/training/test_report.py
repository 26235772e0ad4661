"""What a run says: a readable log, and curves that survive whatever a phase has measured."""

import pytest
from PIL import Image

from hivg_hf.training.report import describe_log, write_curves

figure = pytest.importorskip("matplotlib.figure", reason="matplotlib is not installed: pip install 'hivg_hf[plots]'")


def test_log_entries_read_as_sentences():
    entry = {"loss": 9.123456, "loss_bbox": 0.65, "loss_giou": 0.93, "learning_rate": 8e-4, "epoch": 0.5}
    assert describe_log(entry, 50, 3200) == "step 50 of 3200: loss 9.123 (bbox 0.65, giou 0.93), rate 0.0008"
    found = {"eval_accuracy": 0.25, "eval_mean_iou": 0.3, "eval_samples": 11}
    assert describe_log(found, 0, 0) == (
        "before the first step: accuracy 0.2500, mean IoU 0.3000 on 11 held-out expressions"
    )


def test_curves_of_phases_with_and_without_evaluation(tmp_path):
    loss = {"step": 1, "loss": 3.0, "loss_bbox": 0.5}
    measured = {"step": 2, "eval_accuracy": 0.4, "eval_mean_iou": 0.3}
    phases = [
        {"name": "pretrain", "kept": "after", "steps": 2, "accuracy_before": None, "log": [loss]},
        {"name": "stage_1", "kept": "before", "steps": 2, "accuracy_before": 0.5, "log": [loss, measured]},
        {"name": "empty", "kept": "after", "steps": 0, "accuracy_before": None, "log": []},
    ]
    path = write_curves(tmp_path / "curves.png", phases)
    with Image.open(path) as picture:
        colors = {color for _, color in picture.convert("RGB").getcolors(1 << 24)}
    assert (31, 119, 180) in colors  # a line was drawn in matplotlib's first color


def test_a_phase_that_was_logged_once_is_seen(tmp_path, monkeypatch):
    drawn, save = [], figure.Figure.savefig
    monkeypatch.setattr(
        figure.Figure, "savefig", lambda self, *args, **options: drawn.append(self) or save(self, *args, **options)
    )
    entry = {"step": 50, "loss": 3.0, "loss_bbox": 0.5}
    phase = {"name": "stage_1", "kept": "after", "steps": 70, "accuracy_before": None, "log": [entry]}
    write_curves(tmp_path / "curves.png", [phase, {**phase, "name": "stage_2"}])
    losses, terms, _ = drawn[0].axes
    assert losses.lines[0].get_marker() == terms.lines[0].get_marker() == "."
