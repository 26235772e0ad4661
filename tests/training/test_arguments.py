"""Global batch sizes hold whatever the number of processes."""

import pytest

from hivg_hf.training import HiVGTrainingArguments
from hivg_hf.training.arguments import accumulation_steps


@pytest.mark.parametrize(
    ("batch", "processes", "per_device", "steps"),
    [
        (560, 7, 80, 1),  # the official seven GPUs
        (560, 1, 80, 7),
        (560, 8, 80, 1),  # 70 each
        (420, 8, 60, 1),  # 52 or 53 each
        (448, 2, 64, 4),
        (8, 1, 3, 3),
    ],
)
def test_accumulation_makes_up_what_the_processes_do_not_hold(batch, processes, per_device, steps):
    assert accumulation_steps(batch, processes, per_device) == steps


def test_a_process_without_a_sample_is_refused():
    with pytest.raises(ValueError, match=r"batch of 3 cannot be dealt to 4 processes.* use at most 3 processes"):
        accumulation_steps(3, 4, 8)


def test_batch_sizes_below_one_are_refused():
    with pytest.raises(ValueError, match=r"at least 1. Got 0 in all"):
        accumulation_steps(0, 1, 8)


def test_arguments_take_the_global_batch(tmp_path):
    args = HiVGTrainingArguments(str(tmp_path), global_batch_size=12, per_device_train_batch_size=5, use_cpu=True)
    assert args.gradient_accumulation_steps == 3
    assert args.remove_unused_columns is False
    assert args.metric_for_best_model == "accuracy"
    assert args.logging_nan_inf_filter is False
