"""Which files of a folder are sent, and which folders are refused before anything is sent."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from helpers.hub_client import PLANTED
from hivg_hf.hub import write_pushed
from hivg_hf.hub.files import files_to_push


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "model"))


def test_files_are_those_of_the_model_alone(folder: Path) -> None:
    names = {path.as_posix() for path in files_to_push(folder)}
    assert not names & PLANTED.keys()
    code = {name for name in names if name.endswith(".py")}
    assert code == {path.name for path in folder.glob("*_hivg.py")} - PLANTED.keys()
    assert names - code >= {"config.json", "model.safetensors", "tokenizer.json", "processor_config.json", "README.md"}


def test_files_do_not_depend_on_the_current_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    assert files_to_push(Path(folder.name)) == files_to_push(folder)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "processor_config.json", "tokenizer.json", "loss_hivg.py", "pipeline_hivg.py"]
)
def test_missing_file_is_named(name: str, copied: Path) -> None:
    (copied / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"The file {name} is missing from .*model; save the model"):
        files_to_push(copied)


def test_a_folder_without_any_code_is_completed_by_the_packages_own(copied: Path) -> None:
    with_code = files_to_push(copied)
    for path in copied.glob("*_hivg.py"):
        path.unlink()
    assert files_to_push(copied) == with_code


def test_missing_shard_is_named(copied: Path) -> None:
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (copied / "model.safetensors.index.json").write_text(json.dumps(index))
    (copied / "model.safetensors").rename(copied / "model-00001-of-00002.safetensors")
    with pytest.raises(FileNotFoundError, match=r"model-00002-of-00002\.safetensors is missing"):
        files_to_push(copied)


@pytest.mark.parametrize("damage", [lambda data: data[:-10], lambda data: b"PK" + data, lambda data: b""])
def test_damaged_weights_are_refused(damage: Callable[[bytes], bytes], copied: Path) -> None:
    weights = copied / "model.safetensors"
    weights.write_bytes(damage(weights.read_bytes()))
    with pytest.raises(ValueError, match=r"The weights .*model\.safetensors are damaged"):
        files_to_push(copied)


def test_damaged_config_is_refused(copied: Path) -> None:
    (copied / "config.json").write_text('{"model_type": ')
    with pytest.raises(ValueError, match=r"config\.json is not readable JSON"):
        files_to_push(copied)


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


PATHS = ["{outside}/secret.Model", "../secret.Model", "sub/secret.Model", "~/secret.Model", "a\0b.Model"]
OTHERS = [".secret.Model", "a.b.Model", "C:secret.Model", ".Model"]


@pytest.mark.parametrize("name", [*PATHS, *OTHERS])
@pytest.mark.parametrize("where", ["auto_map", "custom_pipelines", "nested", "processor"])
def test_code_that_lies_elsewhere_is_never_sent(name: str, where: str, copied: Path, tmp_path: Path) -> None:
    """Each of these names a file that exists."""
    (tmp_path / "secret.py").write_text("PASSWORD = 1")
    for path in (copied / "sub" / "secret.py", copied / ".secret.py", copied / "a.b.py", copied / ".py"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("PASSWORD = 1")
    name = name.format(outside=tmp_path)
    config, processor = copied / "config.json", copied / "processor_config.json"
    {
        "auto_map": lambda: edit(config, auto_map={"AutoModel": name}),
        "custom_pipelines": lambda: edit(config, custom_pipelines={"visual-grounding": {"impl": name}}),
        "nested": lambda: edit(config, clip_config={"auto_map": {"AutoModel": [None, name]}}),
        "processor": lambda: edit(processor, auto_map={"AutoProcessor": name}),
    }[where]()
    with pytest.raises(
        ValueError, match=r"The model's code would include .*, which is not a Python file beside"
    ) as info:
        files_to_push(copied)
    assert "\n" not in str(info.value)


@pytest.mark.parametrize("line", ["from .../secret import x", "from ..secret import x", "from ./../secret import x"])
def test_imports_do_not_lead_out_of_the_folder(line: str, copied: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.py").write_text("PASSWORD = 1")
    with (copied / "loss_hivg.py").open("a") as file:
        file.write(f"\n{line}\n")
    with pytest.raises(ValueError, match=r"The model's code would include '.*secret\.py'"):
        files_to_push(copied)


def test_imports_that_go_round_end(copied: Path) -> None:
    (copied / "loss_hivg.py").write_text("from .modeling_hivg import x\nfrom .extra import y\n")
    (copied / "extra.py").write_text("from .loss_hivg import z\n")
    assert {Path("extra.py"), Path("modeling_hivg.py")} <= set(files_to_push(copied))


@pytest.mark.parametrize("name", ["README.md", "LICENSE", "config.json", "model.safetensors", "loss_hivg.py"])
def test_links_out_of_the_folder_are_refused(name: str, copied: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    if (copied / name).exists():
        (copied / name).rename(outside)
    else:
        outside.write_text("secret")
    (copied / name).symlink_to(outside)
    with pytest.raises(ValueError, match=rf"The file {name} in .*model leads to .*outside, outside the folder"):
        files_to_push(copied)


def test_links_within_the_folder_and_to_it_are_files_of_the_model(copied: Path, tmp_path: Path) -> None:
    (copied / "card.md").write_text("# A model")
    (copied / "README.md").unlink()
    (copied / "README.md").symlink_to("card.md")
    (tmp_path / "link").symlink_to(copied)
    assert files_to_push(tmp_path / "link") == files_to_push(copied)
    assert Path("README.md") in files_to_push(copied)


@pytest.mark.parametrize(
    "name", ["../../x.safetensors", "/x.safetensors", ".x.safetensors", "x.bin", "a/b.safetensors", 5]
)
def test_shards_that_lie_elsewhere_are_refused(name: object, copied: Path) -> None:
    (copied / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(ValueError, match=r"index\.json names .*, which is not a shard such as"):
        files_to_push(copied)


@pytest.mark.parametrize("content", ['{"weight_map": []}', "{}", '{"weight_map": {}}'])
def test_an_index_without_shards_is_refused(content: str, copied: Path) -> None:
    (copied / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ValueError, match=r"index\.json names no shards"):
        files_to_push(copied)


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a":' * 100_000])
def test_deep_json_is_refused(content: str, copied: Path) -> None:
    (copied / "processor_config.json").write_text(content)
    with pytest.raises(ValueError, match=r"processor_config\.json is not readable JSON"):
        files_to_push(copied)


def test_a_map_of_classes_that_is_none_is_refused(copied: Path) -> None:
    edit(copied / "config.json", auto_map=["a.B"])
    with pytest.raises(ValueError, match=r"auto_map in the model's config must map names to classes. Got \['a.B'\]"):
        files_to_push(copied)


def test_weights_that_are_not_finite_are_refused(copied: Path) -> None:
    weights = load_file(copied / "model.safetensors")
    weights["clip.logit_scale"].fill_(float("nan"))
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 of \d+ hold NaN or infinite values .*\(clip\.logit_scale\)"):
        files_to_push(copied)


def test_folder_of_another_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(ValueError, match=r"is neither a HiVG model .* nor an adapter"):
        files_to_push(tmp_path)


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"Folder not found: .*absent"):
        files_to_push(tmp_path / "absent")


def test_onnx_files_are_sent_where_asked_for_and_others_beside_them_stay(copied: Path) -> None:
    plain = files_to_push(copied)
    with pytest.raises(FileNotFoundError, match=r"There is no onnx/model\.onnx in .*hivg export"):
        files_to_push(copied, onnx=True)
    (copied / "onnx").mkdir()
    for name in ("model.onnx", "model.onnx_data", "model_quantized.onnx", "grounding.json", "notes.txt", "other.onnx"):
        (copied / "onnx" / name).write_text("x")
    sent = {path.as_posix() for path in files_to_push(copied, onnx=True)} - {path.as_posix() for path in plain}
    names = ("grounding.json", "model.onnx", "model.onnx_data", "model_quantized.onnx")
    assert sent == {f"onnx/{name}" for name in names}
    assert files_to_push(copied) == plain
    trial = copied.parent / "trial"
    assert set(write_pushed(copied, trial, onnx=True)) == {path.as_posix() for path in plain} | sent
    assert {path.name for path in (trial / "onnx").iterdir()} == set(names)


def test_an_onnx_file_that_leads_out_of_the_folder_is_refused(copied: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    (copied / "onnx").mkdir()
    (copied / "onnx" / "model.onnx").symlink_to(tmp_path / "secret")
    with pytest.raises(ValueError, match="outside the folder"):
        files_to_push(copied, onnx=True)
