"""Every parameter is read by calling the module that owns it: what PEFT, accelerate and checkpointing rely on."""

import copy
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModel

from hivg_hf import HiVGConfig, HiVGForVisualGrounding

ASKED = {"output_masks": True, "output_token_logits": True}
ANSWERS = ("pred_boxes", "scores", "token_logits", "mask_logits", "logits_per_text")
VARIANTS: dict[str, dict[str, Any]] = {
    "new": {},
    "official": {
        "bridge_mask_padding": False,
        "bridge_text_norm": False,
        "skip_padded_patches": False,
        "score": "similarity",
        "loss_weights": None,
    },
    "words projected for the bridge": {"bridge_text_source": "projection", "bridge_text_layers": [3]},
    "larger picture than CLIP's": {"image_size": 96},
    "post-norm, positions in the tokens": {"fusion_pre_norm": False, "fusion_positions": "tokens"},
}


def make_model(config: HiVGConfig, **fields: Any) -> HiVGForVisualGrounding:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = HiVGForVisualGrounding(HiVGConfig(**{**config.to_dict(), **fields})).eval()
        for parameter in model.clip.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)
    return model


def make_batch(config: HiVGConfig, **more: Any) -> dict[str, Any]:
    """Two samples of other text lengths; of new models the second one has patches that are not computed."""
    generator = torch.Generator().manual_seed(1)
    size, patches = config.image_size, config.grid_size**2
    batch = {
        "input_ids": torch.randint(1, 500, (2, 7), generator=generator),
        "attention_mask": torch.tensor([[1] * 7, [1] * 5 + [0] * 2]),
        "pixel_values": torch.randn(2, 3, size, size, generator=generator),
        **more,
    }
    if config.skip_padded_patches:
        batch["patch_index"] = torch.arange(patches).repeat(2, 1)
        batch["patch_index"][1, patches // 2 :] = -1
    return batch


LABELS = torch.tensor([[0.5, 0.25, 0.4, 0.3], [0.3, 0.2, 0.3, 0.2]])


class OnlyDuringCalls:
    """Put NaN into a module's own parameters except while its `forward` runs, as offload puts meta tensors there."""

    def __init__(self, model: nn.Module) -> None:
        self.kept: dict[nn.Parameter, torch.Tensor] = {}
        self.called: set[nn.Parameter] = set()
        for module in model.modules():
            if own := list(module.parameters(recurse=False)):
                for parameter in own:
                    self.kept[parameter] = parameter.data
                    parameter.data = torch.full_like(parameter, float("nan"))
                module.register_forward_pre_hook(lambda *_, own=own: self._show(own))
                module.register_forward_hook(lambda *_, own=own: self._hide(own))

    def _show(self, own: list[nn.Parameter]) -> None:
        self.called.update(own)
        for parameter in own:
            parameter.data = self.kept[parameter]

    def _hide(self, own: list[nn.Parameter]) -> None:
        for parameter in own:
            parameter.data = torch.full_like(parameter, float("nan"))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("labels", [None, LABELS], ids=["answers", "loss"])
def test_no_parameter_is_read_outside_its_modules_call(tiny_config, variant, labels):
    model = make_model(tiny_config, **VARIANTS[variant])
    batch = make_batch(model.config, labels=labels)
    with torch.no_grad():
        expected = model(**batch, **ASKED)
        guard = OnlyDuringCalls(model)
        found = model(**batch, **ASKED)
    for name in ANSWERS:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=0, msg=name)
    if labels is not None:
        torch.testing.assert_close(found.loss, expected.loss, rtol=0, atol=0)
    never = [name for name, parameter in model.named_parameters() if parameter not in guard.called]
    assert never == []


def adaptable(model: nn.Module) -> list[str]:
    kinds = (nn.Linear, nn.Embedding, nn.Conv2d)
    return [name for name, module in model.named_modules() if isinstance(module, kinds)]


def lora(model: nn.Module, targets: Any) -> nn.Module:
    torch.manual_seed(0)
    options = LoraConfig(r=2, lora_alpha=2, target_modules=targets, init_lora_weights=False)
    return get_peft_model(copy.deepcopy(model), options).eval()


def merging_changes(adapted: nn.Module, batch: dict[str, Any], plain: Any) -> str:
    """What is wrong with an adapter: it is inert, learns nothing, merges to something else; or nothing ("")."""
    active = adapted(**batch, **ASKED)
    active.loss.backward()
    without = [name for name, p in adapted.named_parameters() if p.requires_grad and p.grad is None]
    with torch.no_grad():
        merged = adapted.merge_and_unload()(**batch, **ASKED)
        moved = max(float((active[name] - plain[name]).abs().max()) for name in ANSWERS)
        changed = max(
            float((merged[name] - active[name]).abs().max() / (1 + plain[name].abs().max())) for name in ANSWERS
        )
    faults = {"is inert": moved < 1e-6, "merges to something else": changed > 1e-5, f"no gradient: {without}": without}
    return ", ".join(fault for fault, found in faults.items() if found)


def test_lora_on_any_one_module_acts_at_once_learns_and_merges_to_the_same(tiny_config):
    model = make_model(tiny_config)
    batch = make_batch(model.config, labels=LABELS)
    with torch.no_grad():
        plain = model(**batch, **ASKED)
    names = adaptable(model)
    assert len(names) > 80
    faults = {name: merging_changes(lora(model, name.replace(".", r"\.")), batch, plain) for name in names}
    assert {name: fault for name, fault in faults.items() if fault} == {}


@pytest.mark.parametrize("variant", VARIANTS)
def test_lora_on_all_modules_together_does_so_in_every_variant(tiny_config, variant):
    model = make_model(tiny_config, **VARIANTS[variant])
    batch = make_batch(model.config, labels=LABELS)
    with torch.no_grad():
        plain = model(**batch, **ASKED)
    assert merging_changes(lora(model, adaptable(model)), batch, plain) == ""


def test_an_adapter_on_the_mask_convolutions_is_refused_by_name(tiny_model):
    with pytest.raises(ValueError, match="MaskUpsample"):
        get_peft_model(copy.deepcopy(tiny_model), LoraConfig(target_modules=r".*mask_convs\.\d"))


def gradients(model: nn.Module, batch: dict[str, Any], reentrant: bool | None) -> dict[str, torch.Tensor | None]:
    model = copy.deepcopy(model).train()
    if reentrant is not None:
        model.activation_checkpointing_enable({"use_reentrant": reentrant})
    model(**batch).loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("variant", ["new", "official", "words projected for the bridge"])
@pytest.mark.parametrize(
    "targets",
    [None, ["q_proj"], r".*vision_model.*v_proj", r".*bridge\.attention\.k_proj", r".*fusion.*fc1", ["text_proj"]],
    ids=["all weights", "q_proj", "vision", "bridge", "fusion", "text projections"],
)
def test_reentrant_checkpointing_gives_every_gradient(tiny_config, variant, targets):
    model = make_model(tiny_config, **VARIANTS[variant])
    batch = make_batch(model.config, labels=LABELS)
    if targets is not None:
        model = lora(model, targets)
    expected = gradients(model, batch, None)
    for reentrant in (False, True):
        found = gradients(model, batch, reentrant)
        assert [name for name, gradient in found.items() if gradient is None] == []
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def boxes_of(model: nn.Module, batch: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**batch, **ASKED).pred_boxes


@pytest.mark.filterwarnings("ignore:The following device_map keys do not match:UserWarning")  # clip.logit_scale
@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.8])
def test_a_device_map_with_too_little_memory_gives_the_same_boxes(tiny_model, tiny_checkpoint, tmp_path, share):
    batch = make_batch(tiny_model.config)
    memory = int(share * sum(p.numel() * p.element_size() for p in tiny_model.parameters()))
    model = AutoModel.from_pretrained(
        tiny_checkpoint, device_map="auto", max_memory={"cpu": memory}, offload_folder=tmp_path
    )
    assert "disk" in model.hf_device_map.values()
    torch.testing.assert_close(boxes_of(model, batch), boxes_of(tiny_model, batch), atol=1e-6, rtol=0)


def beside_the_disk(model: nn.Module, part: str) -> dict[str, str]:
    """A device map with `part` on disk and everything beside it on the CPU."""
    devices, steps = {part: "disk"}, part.split(".")
    for depth, step in enumerate(steps):
        owner = model.get_submodule(".".join(steps[:depth]))
        for name, _ in (*owner.named_children(), *owner.named_parameters(recurse=False)):
            if name != step:
                devices[".".join([*steps[:depth], name])] = "cpu"
    return devices


@pytest.mark.parametrize(
    "part", ["clip", "clip.vision_model.embeddings", "clip.text_model", "grounding_head", "grounding_head.reg_token"]
)
@pytest.mark.filterwarnings("ignore:The following device_map keys do not match:UserWarning")  # clip.logit_scale
def test_any_part_may_lie_on_disk(tiny_model, tiny_checkpoint, tmp_path, part):
    batch, devices = make_batch(tiny_model.config), beside_the_disk(tiny_model, part)
    model = AutoModel.from_pretrained(tiny_checkpoint, device_map=devices, offload_folder=tmp_path)
    torch.testing.assert_close(boxes_of(model, batch), boxes_of(tiny_model, batch))


def test_accelerates_own_offload_gives_the_same_boxes(tiny_model, tmp_path):
    batch = make_batch(tiny_model.config)
    device = torch.device("cpu")
    for offload in (
        lambda model: cpu_offload(model, execution_device=device),
        lambda model: cpu_offload(model, execution_device=device, offload_buffers=True),
        lambda model: disk_offload(model, str(tmp_path), execution_device=device),
    ):
        model = copy.deepcopy(tiny_model)
        offload(model)
        assert {p.device.type for p in model.parameters()} == {"meta"}
        torch.testing.assert_close(boxes_of(model, batch), boxes_of(tiny_model, batch))
