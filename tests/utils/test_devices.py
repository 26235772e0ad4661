"""A device's name: any case, a pipeline's number, and a sentence where it is not here."""

import os

import pytest
import torch

from hivg_hf.utils import devices
from hivg_hf.utils.devices import choose_device, find_device, wants_cpu, warn_of_slow_bfloat16


@pytest.mark.parametrize("name", ["cpu", "CPU", " Cpu\n", "cpu:0", -1, "-1", torch.device("cpu")])
def test_names_of_the_processor(name: object) -> None:
    assert torch.device(find_device(name)).type == "cpu"


@pytest.mark.parametrize(
    "name", ["gpu", "cuda:99", 99, "-2", "cuda:", "cuda:x", "banana", "", "meta", "opengl", "xla"]
)
def test_what_is_not_here_is_named_with_what_is(name: object) -> None:
    with pytest.raises(ValueError, match=r"is not available here; expected cpu") as error:
        find_device(name)
    assert repr(str(name)) in str(error.value)
    assert "\n" not in str(error.value)


def test_accelerators_are_listed_and_numbers_mean_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    made = []
    monkeypatch.setattr(torch, "empty", lambda *size, device: made.append(device))
    assert find_device(1) == find_device("1") == "cuda:1"
    assert made == ["cuda:1", "cuda:1"]
    assert find_device(None) == "cuda:0"
    with pytest.raises(ValueError, match=r"expected cpu or cuda:0 or cuda:1\.$"):
        find_device("gpu")


def test_without_a_name_or_an_accelerator_it_is_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert find_device(None) == "cpu"


def test_what_accelerate_reads_is_the_chosen_device(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ACCELERATE_USE_CPU", "ACCELERATE_TORCH_DEVICE"):
        monkeypatch.setenv(name, "")  # so that what is set here ends with the test
        monkeypatch.delenv(name)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    assert not wants_cpu()  # an accelerator of any kind, not CUDA alone
    monkeypatch.setattr("hivg_hf.utils.devices.find_device", str)
    choose_device("mps")
    assert os.environ["ACCELERATE_TORCH_DEVICE"] == "mps"
    assert not wants_cpu()
    choose_device("cpu")
    assert wants_cpu()


@pytest.mark.parametrize(
    ("dtype", "device", "instructions", "warned"),
    [
        (torch.bfloat16, "cpu", False, True),
        (torch.bfloat16, torch.device("cpu", 0), False, True),
        (torch.bfloat16, "cpu", True, False),
        (torch.bfloat16, "cuda:0", False, False),
        (torch.float32, "cpu", False, False),
    ],
)
def test_bfloat16_without_instructions_for_it_is_called_slow(
    dtype: torch.dtype,
    device: object,
    instructions: bool,
    warned: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(devices.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: instructions)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    warn_of_slow_bfloat16(dtype, device)
    assert ("several times as long in it as in float32" in caplog.text) == warned


def test_a_processor_that_cannot_be_told_is_not_called_slow(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(devices.platform, "machine", lambda: "aarch64")
    warn_of_slow_bfloat16(torch.bfloat16, "cpu")
    assert not caplog.text
