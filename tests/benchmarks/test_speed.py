"""The benchmark's measures on work whose answer is known, and a whole run on tiny models."""

import copy
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import CLIPConfig

from benchmarks.speed import (
    chat_models,
    count_operations,
    neighbors,
    precisions,
    ratio_of_medians,
    report,
    run,
    time_rounds,
    working_memory,
)
from benchmarks.speed.accelerator import measure_accelerator, peak_of
from benchmarks.speed.accuracy import PUBLISHED
from benchmarks.speed.groups import (
    BOX,
    MASK,
    NATIVE,
    STRAIGHTFORWARD,
    expressions_group,
    inference_group,
    mask_head_group,
    neighbor_group,
    training_group,
)
from benchmarks.speed.inputs import official_inputs, random_batch
from benchmarks.speed.measure import Case
from hivg_hf import HiVGConfig, HiVGForVisualGrounding

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def official_config() -> HiVGConfig:
    """The official base computation at width 16."""
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 12}
    clip = CLIPConfig(
        projection_dim=16,
        text_config={**tower, "vocab_size": 64, "max_position_embeddings": 77},
        vision_config={**tower, "image_size": 64, "patch_size": 16},
    )
    shape = {"clip_config": clip, "image_size": 64, "fusion_heads": 2, "fusion_ffn_dim": 32, "fusion_dropout": 0.0}
    return HiVGConfig.preset("base-unc", **shape, token_head_dim=32)


# -- measures ---------------------------------------------------------------------------------------------------------


def test_a_product_of_matrices_counts_two_operations_for_each_term():
    a, b = torch.ones(3, 5), torch.ones(5, 7)
    assert count_operations(lambda: a @ b) == 2 * 3 * 5 * 7


def test_attention_is_counted_and_its_implementation_restored(tiny_model):
    model = copy.deepcopy(tiny_model)
    model.set_attn_implementation("sdpa")
    batch = random_batch(model.config, 1)
    seen = count_operations(lambda: model(**batch), [model])
    assert model.config._attn_implementation == "sdpa"
    assert model.clip.vision_model.config._attn_implementation == "sdpa"
    assert seen > count_operations(lambda: model(**batch))


def test_rounds_alternate_and_begin_with_another_case_each_time():
    order = []
    cases = [Case(name, lambda name=name: order.append(name)) for name in "abc"]
    ticks = iter(range(1000))
    seconds = time_rounds(cases, rounds=2, clock=lambda: next(ticks))
    assert order == list("abcbca")
    assert (seconds == 1).all()
    assert seconds.shape == (2, 3)


def test_a_benchmark_without_rounds_is_refused():
    with pytest.raises(ValueError, match="at least one round"):
        time_rounds([], rounds=0)


def test_ratio_of_medians_is_not_moved_by_one_slow_round():
    slow, fast = np.array([2.0, 2.1, 1.9, 2.0, 40.0]), np.array([1.0, 1.0, 1.1, 0.9, 1.0])
    ratio = ratio_of_medians(slow, fast)
    assert ratio.value == pytest.approx(2.0)
    assert ratio.low <= ratio.value <= ratio.high
    assert ratio.low > 1.5


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_working_memory_sees_a_tensor_that_is_freed_again():
    def work() -> float:
        return torch.ones(32 * 2**20 // 4).sum().item()

    work()
    used = working_memory(work)
    if used is None:
        pytest.skip("this system does not let a process reset its peak")
    assert 30 * 2**20 < used < 60 * 2**20


# -- inputs -----------------------------------------------------------------------------------------------------------


def test_official_inputs_are_the_same_samples_in_the_official_form(official_config):
    batch = random_batch(official_config, 2)
    inputs = official_inputs(batch, official_config)
    assert inputs["input_ids"].shape == (2, 77)
    assert (inputs["input_ids"][:, :8] == batch["input_ids"]).all()
    assert not inputs["input_ids"][:, 8:].any()
    assert (inputs["padding_mask"] + batch["pixel_mask"] == 1).all()
    assert inputs["padding_mask"].any()


# -- groups -----------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(900)  # exports two models, a minute or two
def test_a_whole_run_on_tiny_models(monkeypatch, tmp_path, official_config, tiny_config):
    groups = {
        "base-1": (
            lambda compiled: inference_group("inference", official_config, tiny_config, 2, variants=True),
            False,
        ),
        "training-8": (lambda compiled: training_group("training", official_config, tiny_config, 2), True),
        "mask-head": (lambda compiled: mask_head_group("mask head", official_config, 1), False),
        "neighbors": (lambda compiled: neighbor_group("neighbors", official_config, tiny_config, [_other()]), True),
    }
    monkeypatch.setattr(run, "GROUPS", groups)
    kept = []
    results = run.run_benchmark(list(groups), rounds=3, slow_rounds=2, keep=lambda r: kept.append(len(r["groups"])))
    assert kept == [1, 2, 3, 4]

    inference, training = results["groups"]["base-1"], results["groups"]["training-8"]
    assert max(inference["differences"].values()) < 1e-5
    assert training["differences"]["gradients"] < 1e-4
    assert results["groups"]["mask-head"]["differences"]["mask logits"] < 1e-5
    assert (inference["rounds"], training["rounds"]) == (3, 2)
    operations = {name: case["operations"] for name, case in inference["cases"].items()}
    assert 0 < operations[NATIVE]
    assert 0 < operations[BOX] < operations[MASK] < operations[STRAIGHTFORWARD]
    assert all(len(case["seconds"]) == 3 for case in inference["cases"].values())

    report.save_results(results, tmp_path / "first.json")
    assert report.last_results(tmp_path) == json.loads(json.dumps(results))
    report.plot_results(results, tmp_path / "plot.svg")
    assert "<svg" in (tmp_path / "plot.svg").read_text()
    page = tmp_path / "docs" / "speed.md"
    page.parent.mkdir()
    for file in (tmp_path / "README.md", page):
        file.write_text("before\n" + "\n".join(report.MARKERS) + "\nafter\n")
    report.write_pages(results, tmp_path)
    assert f"| this package, {NATIVE} |" in page.read_text()
    assert "| another (tiny) |" in page.read_text()
    assert page.read_text().startswith("before\n")
    assert "| **HiVG-B**, mixed pre-training" in (tmp_path / "README.md").read_text()
    assert all(row["verdict"] == "same" for row in report.compare_results(results, results))


def test_several_expressions_of_one_image_cost_less_in_one_pass(tiny_config):
    group = expressions_group("expressions", tiny_config, 3)
    assert group.differences["boxes"] < 1e-5
    one_by_one, repeated, shared = (count_operations(case.run, case.models) for case in group.cases)
    assert shared < 0.95 * repeated
    assert one_by_one == pytest.approx(repeated, rel=1e-3)  # but for CLIP's logits between the samples of a batch


def _other() -> Case:
    layer = nn.Linear(8, 8)
    return Case("another", lambda: layer(torch.ones(1, 8)), parameters=72, note="tiny")


def test_one_group_can_be_measured_anew(monkeypatch, official_config):
    heads = {name: (lambda compiled: mask_head_group("mask head", official_config, 1), False) for name in ("a", "b")}
    monkeypatch.setattr(run, "GROUPS", heads)
    both = run.run_benchmark(["a", "b"], rounds=2)
    after = run.run_benchmark(["b"], rounds=3, before=both)
    assert after["groups"]["a"] == both["groups"]["a"]
    assert [after["groups"][name]["rounds"] for name in ("a", "b")] == [2, 3]
    assert both["groups"]["b"]["rounds"] == 2
    assert after["groups"]["b"]["load"] >= 0
    other = {**both, "machine": {**both["machine"], "torch": "1.0"}}
    with pytest.raises(ValueError, match=r"The results to update were measured on .*: measure all groups anew"):
        run.run_benchmark(["b"], before=other)


def test_unknown_groups_are_refused():
    with pytest.raises(ValueError, match="Unknown groups"):
        run.run_benchmark(["base-1", "nothing"])


@pytest.mark.parametrize(
    ("build", "millions"),
    [
        (neighbors.grounding_dino_tiny, 172.3),
        (neighbors.owlv2_base, 155.0),
        (neighbors.florence2_base, 236.2),
        (neighbors.clip_pair, 149.6),
    ],
)
def test_neighbors_have_the_size_of_their_released_checkpoints(build, millions):
    with torch.device("meta"):
        model = build()
    assert model.num_parameters() / 1e6 == pytest.approx(millions, abs=0.3)


# -- reports ----------------------------------------------------------------------------------------------------------


def _results(ratio: float, memory: float = 0.5) -> dict:
    comparison = {"slow": "a", "fast": "b", "at_least": 1.25, "memory_at_most": 0.75, "memory": memory}
    comparison["time"] = {"value": ratio, "low": ratio - 0.01, "high": ratio + 0.01}
    return {"format": 1, "date": "2026", "groups": {"g": {"title": "base", "comparisons": [comparison]}}}


def test_the_guard_tells_a_change_from_noise():
    verdicts = [report.compare_results(_results(1.4), _results(now))[0]["verdict"] for now in (1.405, 1.3, 1.5)]
    assert verdicts == ["same", "slower", "faster"]


def test_missed_limits_are_named():
    assert report.missed_limits(_results(1.3)) == []
    missed = report.missed_limits(_results(1.2, memory=0.8))
    assert len(missed) == 2
    assert "1.20 times faster; at least 1.25" in missed[0]
    assert "0.80 of the memory" in missed[1]


def test_other_files_are_no_results(tmp_path):
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(ValueError, match="has no benchmark results"):
        report.load_results(tmp_path / "x.json")


def test_a_readme_without_markers_is_refused(tmp_path):
    results = report.last_results(ROOT / "benchmarks" / "results")
    (tmp_path / "README.md").write_text("nothing")
    with pytest.raises(ValueError, match="must hold these two lines once"):
        report.write_pages(results, tmp_path)


def test_readme_and_speed_page_show_the_last_committed_results():
    results = report.last_results(ROOT / "benchmarks" / "results")
    assert results is not None
    assert report.cost_block(results) in (ROOT / "README.md").read_text()
    assert report.detail_block(results) in (ROOT / "docs" / "speed.md").read_text()


def test_published_accuracy_is_eight_figures_for_every_system():
    for system in PUBLISHED:
        counts = [len(cell.split()) for cell in system.accuracy]
        assert counts == [3, 3, 2], system.name
        assert system.source


# -- accelerator ------------------------------------------------------------------------------------------------------


def test_throughput_runs_on_any_device(monkeypatch, tiny_config):
    monkeypatch.setattr(HiVGConfig, "preset", classmethod(lambda cls, name: copy.deepcopy(tiny_config)))
    kept = []
    measured = measure_accelerator(
        ("tiny",),
        (1, 2),
        "cpu",
        peak_tflops=1.0,
        seconds=0.01,
        engines=("eager",),
        keep=lambda r: kept.append(len(r["rows"])),
    )
    assert [(row["work"], row["batch"]) for row in measured["rows"]] == [
        ("training", 1),
        ("training", 2),
        ("inference", 1),
        ("inference", 2),
    ]
    assert kept == [1, 2, 3, 4]
    for row in measured["rows"]:
        assert row["images_per_second"] > 0
        assert 0 < row["share_of_peak"] == row["tflops"]


def test_peaks_are_found_by_the_name_of_the_device():
    assert peak_of("NVIDIA H100 80GB HBM3") == 989.0
    assert peak_of("NVIDIA H100 PCIe") == 756.0
    assert peak_of("a device nobody knows") is None


@pytest.mark.accelerator
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_throughput_on_a_cuda_device():
    measured = measure_accelerator(("base",), batch_sizes=(8,), seconds=1.0, engines=("eager",))
    assert all(row["memory"] > 0 for row in measured["rows"])


# -- activation -------------------------------------------------------------------------------------------------------


def test_quick_gelu_is_that_of_transformers_with_and_without_gradients():
    from transformers.activations import ACT2FN

    from hivg_hf.modeling.modeling_hivg import QuickGELU

    x = torch.linspace(-8, 8, 401, requires_grad=True)
    (expected,) = torch.autograd.grad(ACT2FN["quick_gelu"](x).sum(), x)
    (ours,) = torch.autograd.grad(QuickGELU()(x).sum(), x)
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(QuickGELU()(x), ACT2FN["quick_gelu"](x))
    given = x.detach().clone()
    torch.testing.assert_close(QuickGELU()(given), ACT2FN["quick_gelu"](given))
    assert (given == x).all()


def test_every_quick_gelu_of_a_model_is_the_sparing_one(official_config):
    model = HiVGForVisualGrounding(official_config)
    activations = [m.activation_fn for m in model.modules() if hasattr(m, "activation_fn")]
    assert len(activations) == 12 + 12 + 4
    assert {type(activation).__name__ for activation in activations} == {"QuickGELU"}


def test_chat_models_are_counted_as_their_tables_say():
    counted = json.loads((ROOT / "benchmarks" / "results" / "chat-models" / "counted.json").read_text())
    assert chat_models.count("Qwen3-VL-2B") == counted["Qwen3-VL-2B"]
    for system in PUBLISHED:
        if "Qwen3-VL-4B" in system.name:
            assert system.parameters == f"{counted['Qwen3-VL-4B']['parameters'] / 1e6:,.0f}"
            assert system.operations.startswith(f"{counted['Qwen3-VL-4B']['total'] / 1e9:,.0f},")
    page = (ROOT / "docs" / "speed.md").read_text()
    for name in chat_models.SIZES:
        cells = [counted[name]["parameters"] / 1e6]
        cells += [counted[name][part] / 1e9 for part in ("image", "prompt", "answer", "total")]
        assert f"| {name} | {' | '.join(f'{cell:,.0f}' for cell in cells)} |" in page


def test_products_of_a_chat_model_are_two_operations_for_each_weight_and_token():
    model = chat_models.build("Qwen3-VL-2B")
    layers = sum(weight.numel() for name, weight in model.model.language_model.named_parameters()
                 if name.startswith("layers.") and weight.dim() == 2)  # fmt: skip
    head = model.lm_head.weight.numel()
    tokens = chat_models.GRID[0] * chat_models.GRID[1] // 4 + chat_models.WORDS
    attention = 28 * 2 * 2 * tokens**2 * 16 * 128  # layers, two products of two operations, heads of 128
    counted = json.loads((ROOT / "benchmarks" / "results" / "chat-models" / "counted.json").read_text())
    assert counted["Qwen3-VL-2B"]["prompt"] == 2 * tokens * layers + attention + 2 * head


def test_limits_of_int8_are_sentences_where_they_are_missed():
    def found(half, three_quarters, move):
        loss = {"acc@0.5": {"difference": -half}, "acc@0.75": {"difference": -three_quarters}}
        return {"onnxruntime int8 against fp32": loss, "onnxruntime fp32 against torch fp32": {"largest_move": move}}

    assert precisions.missed(found(0.003, 0.015, 1e-5)) == []
    assert precisions.missed(found(-0.1, -0.1, 0.0)) == []
    loses, three, far = precisions.missed(found(0.004, 0.02, 2e-5))
    assert loses == "int8 loses 0.40 points of acc@0.5; at most 0.3 are allowed."
    assert three == "int8 loses 2.00 points of acc@0.75; at most 1.5 are allowed."
    assert far == "A box of onnxruntime fp32 is 2.0e-05 from torch's; at most 1e-05 is allowed."


@pytest.mark.slow
def test_engines_are_compared_in_one_command(tmp_path):
    status = precisions.main(["--rows", "12", "--out", str(tmp_path / "out.json")])
    found = json.loads((tmp_path / "out.json").read_text())
    assert status == bool(found["missed"])
    assert found["onnxruntime fp32 against torch fp32"]["largest_move"] < 1e-5
    assert 0 < found["onnxruntime int8 against fp32"]["largest_move"] < 0.2
    assert len({model["weights_sha256"] for model in found["models"].values()}) == 1
