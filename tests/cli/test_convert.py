"""`hivg convert`: what it writes opens and computes the same; what it refuses leaves nothing behind."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from parity.official_cases import OfficialCase, made_case
from parity.parity_checks import assert_outputs_match, run_ours
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from benchmarks.speed.official_reference import OfficialLayers
from hivg_hf import HiVGForVisualGrounding, HiVGProcessor
from hivg_hf.cli import app
from hivg_hf.hilora import load_stages


@pytest.fixture(scope="module")
def case() -> OfficialCase:
    return made_case(OfficialLayers([0, 3, 7, 11], [1, 4, 8, 12], [12]))


@pytest.fixture
def files(case: OfficialCase, tmp_path: Path) -> Path:
    """An official file with the two JSON files that describe it."""
    case.save(tmp_path)
    return tmp_path


def convert(folder: Path, *options: str, file: str = "official.safetensors") -> Result:
    described = ["--args", str(folder / "args.json"), "--clip-config", str(folder / "clip.json")]
    return CliRunner().invoke(app, ["convert", str(folder / file), str(folder / "out"), *described, *options])


def nothing_written(folder: Path) -> bool:
    return not (folder / "out").exists() and not list(folder.glob(".*"))


@torch.no_grad()
def test_a_model_with_its_processor(files: Path, case: OfficialCase, tiny_tokenizer: Any) -> None:
    tiny_tokenizer.save_pretrained(files / "tokenizer")
    result = convert(files, "--tokenizer", str(files / "tokenizer"), "--names")
    assert result.exit_code == 0, result.output
    model = HiVGForVisualGrounding.from_pretrained(files / "out").eval()
    assert_outputs_match(run_ours(model, case), case.run(mixes_batch=False))
    assert HiVGProcessor.from_pretrained(files / "out").image_processor.pad_align == "pixel"
    for printed in ("a whole model", "mapped", "low-rank terms merged", "dropped: declared, never called"):
        assert printed in result.output
    assert "seg_conv1.weight -> grounding_head.mask_convs.0.weight" in result.output


@torch.no_grad()
def test_lora_as_an_adapter(files: Path, case: OfficialCase) -> None:
    result = convert(files, "--lora", "adapter")
    assert result.exit_code == 0, result.output
    assert "The bridges' low-rank terms are merged" in result.output
    assert "Give --tokenizer" in result.output  # the processor is left out, and that is said
    model = load_stages(files / "out").eval()
    assert_outputs_match(run_ours(model.get_base_model(), case), case.run(mixes_batch=False))
    recorded = json.loads((files / "out" / "adapters" / "hilora" / "adapter_config.json").read_text())
    assert recorded["base_model_name_or_path"] == str((files / "out" / "base").resolve())
    assert (recorded["r"], recorded["lora_alpha"]) == (32, 16)


@torch.no_grad()
def test_terms_of_the_bridges_go_on_beside_the_adapter(files: Path, case: OfficialCase) -> None:
    refused = convert(files, "--bridge-lora")
    assert refused.exit_code == 2
    assert "--bridge-lora keeps terms that --lora merge adds to the weights: add --lora adapter." in refused.output
    result = convert(files, "--lora", "adapter", "--bridge-lora")
    assert result.exit_code == 0, result.output
    assert "bridges' low-rank terms are merged" not in result.output
    base = HiVGForVisualGrounding.from_pretrained(files / "out" / "base")
    assert base.config.bridge_lora
    place = "vision_model.encoder.layers.3.cross_attn.v_proj.lora_A"
    (down,) = (tensor for name, tensor in case.state.items() if place in name)
    pair = base.clip.vision_model.encoder.layers[3].bridge.attention.v_proj
    assert torch.equal(pair.down, down)
    model = load_stages(files / "out").eval()
    assert_outputs_match(run_ours(model.get_base_model(), case), case.run(mixes_batch=False))


def test_a_preset_of_a_clip_of_your_own(files: Path) -> None:
    options = ["--preset", "base-unc", "--clip-config", str(files / "clip.json")]
    result = CliRunner().invoke(app, ["convert", str(files / "official.safetensors"), str(files / "out"), *options])
    assert result.exit_code == 2
    for part in ("fusion_ffn_dim is 64 in the file and 2048 in the config", "patches and words is 93"):
        assert part in result.output.replace("\n", " ")
    assert "vision width" not in result.output  # the CLIP is the given one


def test_another_alpha(files: Path) -> None:
    assert convert(files, "--alpha", "0").exit_code == 0
    official = made_case(OfficialLayers([0, 3, 7, 11], [1, 4, 8, 12], [12])).state
    model = HiVGForVisualGrounding.from_pretrained(files / "out")
    name = "text_model.encoder.layers.0.self_attn.q_proj.weight"
    assert torch.equal(model.clip.get_parameter(name), official[f"clip.base_model.model.{name}"])


def test_the_debiased_clip_becomes_a_plain_clip_folder(files: Path, case: OfficialCase) -> None:
    clip = {n.removeprefix("clip."): t for n, t in case.state.items() if n.startswith("clip.") and ".cross_" not in n}
    save_file(clip, files / "debiased.safetensors")
    arguments = [str(files / "debiased.safetensors"), str(files / "out"), "--clip-config", str(files / "clip.json")]
    result = CliRunner().invoke(app, ["convert", *arguments])
    assert result.exit_code == 0, result.output
    model = HiVGForVisualGrounding.from_clip(files / "out", bridge_layers=[2])
    assert model.config.bridge_layers == [2]


def test_a_plain_clip_has_no_adapter(files: Path, case: OfficialCase) -> None:
    clip = {n.removeprefix("clip."): t for n, t in case.state.items() if n.startswith("clip.") and ".cross_" not in n}
    save_file(clip, files / "debiased.safetensors")
    arguments = [str(files / "debiased.safetensors"), str(files / "out"), "--clip-config", str(files / "clip.json")]
    result = CliRunner().invoke(app, ["convert", *arguments, "--lora", "adapter"])
    assert result.exit_code == 2
    assert "becomes a plain CLIP, which has no adapter: omit --lora, or give --preset" in result.output
    assert nothing_written(files)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--preset", "base-unc"], "Give either --preset or --args"),
        (["--args", "nothing.json"], "File not found: nothing.json, which --args names"),
        (["--alpha", "x"], "alpha"),
    ],
)
def test_options_that_cannot_be(files: Path, options: list[str], message: str) -> None:
    result = convert(files, *options)
    assert result.exit_code == 2
    assert message in result.output
    assert nothing_written(files)


def test_faulty_files_leave_no_folder(files: Path, case: OfficialCase) -> None:
    whole = (files / "official.safetensors").read_bytes()
    (files / "cut.safetensors").write_bytes(whole[:-100])
    save_file({n: t for n, t in case.state.items() if n != "reg_token.weight"}, files / "lacking.safetensors")
    save_file({"fc.weight": torch.zeros(1)}, files / "other.safetensors")
    (files / "wrong.json").write_text(json.dumps({**case.args, "dataset": "gref_umd"}))
    for file, options, message in (
        ("cut.safetensors", [], "not a whole safetensors file"),
        ("lacking.safetensors", [], "missing: grounding_head.reg_token.weight"),
        ("other.safetensors", [], "a checkpoint of another model"),
        ("none.pth", [], "File not found"),
        ("official.safetensors", ["--args", str(files / "wrong.json")], "is 1 in the file and 12 in the config"),
    ):
        result = convert(files, *options, file=file)
        assert result.exit_code == 2, file
        assert message in result.output.replace("\n", " "), file
        assert len(result.output.strip().splitlines()) == 1, result.output
        assert nothing_written(files), file


def test_an_existing_folder_is_not_touched(files: Path) -> None:
    (files / "out").mkdir()
    (files / "out" / "mine").touch()
    result = convert(files)
    assert result.exit_code == 2
    assert "exists; choose another folder" in result.output
    assert [path.name for path in (files / "out").iterdir()] == ["mine"]
