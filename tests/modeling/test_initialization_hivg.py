"""`initialization="official"`: how new weights start, against one draw of the authors' own constructor."""

import copy
import json
from pathlib import Path

import pytest
import torch
from parity.official_cases import made_case
from parity.parity_checks import run_ours
from torch import nn

from benchmarks.speed.official_reference import OfficialLayers, official_forward, official_losses
from hivg_hf import HiVGConfig, HiVGForVisualGrounding
from hivg_hf.conversion import official_parameter_name

# Of `HiVG(args)` with ViT-B/16, unc, normalize_before, enable_adaptive_weights: official name -> shape, mean,
# deviation. Parameters that no official forward reads are left out.
AUTHORS_START = json.loads((Path(__file__).parents[1] / "fixtures" / "official_start.json").read_text())


def official_names(model: nn.Module) -> dict[str, nn.Parameter]:
    return {official_parameter_name(name): parameter for name, parameter in model.named_parameters()}


def test_a_fresh_official_preset_has_the_authors_statistics():
    torch.manual_seed(0)
    start = official_names(HiVGForVisualGrounding(HiVGConfig.preset("base-unc")))
    for name, (shape, mean, deviation) in AUTHORS_START.items():
        ours, count = start[name].detach(), start[name].numel()
        assert list(ours.shape) == shape, name
        # both are samples of `count` numbers: six standard errors of the difference
        slack = 6 * 2**0.5 * deviation / count**0.5 + 1e-6
        assert abs(ours.mean().item() - mean) <= slack, name
        assert abs(ours.std().item() - deviation) <= slack, name


def test_another_start_is_another():
    """Mask convolutions 3.46 times and projections 1.73 times as wide, biases of 0."""
    heads = {}
    for kind in ("official", "xavier"):
        config = HiVGConfig.preset("tiny", initialization=kind)
        heads[kind] = HiVGForVisualGrounding(config).grounding_head.requires_grad_(False)
    ours, theirs = heads["xavier"], heads["official"]
    assert ours.mask_convs[0].weight.std() / theirs.mask_convs[0].weight.std() == pytest.approx(3.46, rel=0.05)
    assert ours.visual_proj.weight.std() / theirs.visual_proj.weight.std() == pytest.approx(1.73, rel=0.05)
    assert ours.visual_proj.bias.abs().max() == 0 < theirs.visual_proj.bias.std()


def tiny_official(initialization: str, case) -> HiVGForVisualGrounding:
    config = HiVGConfig.from_official_args(case.args, case.clip_config, initialization=initialization)
    return HiVGForVisualGrounding(config)


def torch_start(model: HiVGForVisualGrounding, clip: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """An official state dict: new parameters as torch's constructors make them, CLIP's as given."""
    state = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            made = nn.Linear(module.in_features, module.out_features, bias=module.bias is not None)
        elif isinstance(module, nn.ConvTranspose2d):
            made = nn.ConvTranspose2d(module.in_channels, module.out_channels, 2, stride=2, bias=False)
        elif isinstance(module, nn.Embedding):
            made = nn.Embedding(module.num_embeddings, module.embedding_dim)
        elif isinstance(module, nn.LayerNorm):
            made = nn.LayerNorm(module.normalized_shape)
        elif name.endswith(".self_attn") and "fusion" in name:
            made = nn.MultiheadAttention(module.in_proj_weight.shape[1], module.num_heads)
        else:
            continue
        for part, tensor in made.state_dict().items():
            if part in dict(module.named_parameters(recurse="in_proj" not in part)):
                state[official_parameter_name(f"{name}.{part}")] = tensor
    for name, tensor in state.items():
        if name.startswith("vl_transformer") and tensor.dim() > 1:
            nn.init.xavier_uniform_(tensor)
        if name.startswith("vl_transformer") and "self_attn" in name and name.endswith("bias"):
            tensor.zero_()
    state.update(clip)
    state["ml_visual_projection.weight"] = clip["clip.visual_projection.weight"].repeat(1, 4)
    return state


def test_the_first_loss_is_that_of_torchs_constructors():
    """Averaged over seeds, with the same CLIP and batch; the other start is far from it."""
    case = made_case(OfficialLayers([0, 3, 7, 11], [1, 4, 8, 12], [12]), vl_enc_layers=2)
    torch.manual_seed(0)
    base = tiny_official("official", case)
    clip = {n: p.detach() for n, p in official_names(base).items() if n.startswith("clip.") and ".cross_" not in n}
    losses = {"reference": [], "official": [], "xavier": []}
    inputs = {name: case.inputs[name] for name in ("pixel_values", "padding_mask", "input_ids")}
    with torch.no_grad():
        for seed in range(12):
            torch.manual_seed(seed)
            output = official_forward(
                torch_start(base, clip), case.args, case.clip_config, case.layers, **inputs, mixes_batch=False
            )
            terms = official_losses(output, case.inputs["target_boxes"], case.inputs["target_mask"])
            losses["reference"].append(sum(terms.values()).item())
            for kind in ("official", "xavier"):
                model = tiny_official(kind, case).eval()
                model.load_state_dict(copy.deepcopy(clip), strict=False)
                losses[kind].append(run_ours(model, case).loss.item())
    means = {kind: sum(values) / len(values) for kind, values in losses.items()}
    assert means["official"] == pytest.approx(means["reference"], rel=0.01)
    assert means["xavier"] != pytest.approx(means["reference"], rel=0.03)


def test_loaded_weights_are_never_drawn_again(tmp_path):
    case = made_case(OfficialLayers([0, 3, 7, 11], [1, 4, 8, 12], [12]), vl_enc_layers=1)
    model = tiny_official("official", case)
    model.save_pretrained(tmp_path)
    again = HiVGForVisualGrounding.from_pretrained(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    with pytest.raises(Exception, match="initialization"):
        HiVGConfig.preset("tiny", initialization="offical")
