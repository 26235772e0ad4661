"""Loading what was pushed: `home` has the package installed, `away` has not."""

from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.hub_client import AUTO_CLASSES, PIPELINE, boxes, push, pushed
from helpers.hub_state import Hub
from helpers.interpreter import CodeFailedError, Interpreter
from hivg_hf.hub import download_checked, load_with_stages

pytestmark = pytest.mark.xdist_group("hub")  # one pair of interpreters, on one worker


def test_boxes_are_the_same_with_the_package_and_without(
    hub: Hub, home: Interpreter, away: Interpreter, folder: Path, picture: str
) -> None:
    pushed(home, folder, "alice/tiny")
    commit = hub.repositories["alice/tiny"].head.oid
    assert away.run("import importlib.util; result = importlib.util.find_spec('hivg_hf') is None")
    expected = boxes(home, PIPELINE, "alice/tiny", picture)
    assert expected.shape == (2, 5)
    for code in (PIPELINE, AUTO_CLASSES):
        found = boxes(away, code, "alice/tiny", picture, trust_remote_code=True, revision=commit)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(boxes(home, AUTO_CLASSES, "alice/tiny", picture), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("code", [PIPELINE, AUTO_CLASSES])
def test_bare_interpreter_must_trust_the_code(
    code: str, hub: Hub, home: Interpreter, away: Interpreter, folder: Path, picture: str
) -> None:
    pushed(home, folder, "alice/tiny")
    with pytest.raises(CodeFailedError, match="trust_remote_code=True") as caught:
        boxes(away, code, "alice/tiny", picture)
    assert caught.value.kind == "ValueError"


def test_damaged_download_does_not_stay_in_the_cache(hub: Hub, home: Interpreter, folder: Path) -> None:
    pushed(home, folder, "alice/tiny")
    hub.corrupt("model.safetensors", lambda data: data[:-1] + bytes([data[-1] ^ 1]))
    code = (
        "import pathlib\nfrom hivg_hf.hub.loading import download_checked\n"
        "path = pathlib.Path(download_checked('alice/tiny', cache_dir='damaged'))\n"
        "result = (path / 'model.safetensors').read_bytes().hex()"
    )
    with pytest.raises(
        CodeFailedError, match=r"model\.safetensors differs from its checksum and was removed"
    ) as caught:
        home.run(code)
    assert caught.value.kind == "ConnectionError"
    hub.heal()
    assert bytes.fromhex(home.run(code)) == (folder / "model.safetensors").read_bytes()


def test_model_loads_by_branch_tag_and_commit_and_offline(
    hub: Hub, home: Interpreter, folder: Path, picture: str
) -> None:
    pushed(home, folder, "alice/tiny", "--branch", "trial")
    repository = hub.repositories["alice/tiny"]
    assert repository.head.files.keys() == {".gitattributes"}
    commit = repository.tags["v1"] = repository.branches["trial"]
    found = [boxes(home, PIPELINE, "alice/tiny", picture, revision=name) for name in ("trial", "v1", commit)]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    hub.repositories.clear()
    offline = "import huggingface_hub.constants as c\nc.HF_HUB_OFFLINE = {}\n"
    home.run(offline.format(True))
    try:
        assert torch.equal(found[0], boxes(home, PIPELINE, "alice/tiny", picture, revision="v1"))
    finally:
        home.run(offline.format(False))


def test_private_repository_opens_with_its_token_alone(
    hub: Hub, home: Interpreter, away: Interpreter, folder: Path, picture: str
) -> None:
    done = push(home, folder, "alice/secret", "--private")
    assert done["status"] == 0, done["output"]
    assert hub.repositories["alice/secret"].private
    found = boxes(away, PIPELINE, "alice/secret", picture, trust_remote_code=True, token="hf_alice")
    assert found.shape == (2, 5)
    with pytest.raises(CodeFailedError, match="alice/secret"):
        boxes(home, AUTO_CLASSES, "alice/secret", picture, token="hf_bob")


def test_dtype_and_device_map_are_obeyed(hub: Hub, home: Interpreter, away: Interpreter, folder: Path) -> None:
    pushed(home, folder, "alice/tiny")
    code = """
from transformers import AutoModel
model = AutoModel.from_pretrained("alice/tiny", dtype="bfloat16", device_map="auto", **options)
result = [sorted({str(p.dtype) for p in model.parameters()}), sorted({str(p.device) for p in model.parameters()})]
"""
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    assert home.run(code, options={}) == [["torch.bfloat16"], [device]]
    assert away.run(code, options={"trust_remote_code": True}) == [["torch.bfloat16"], [device]]


def test_pickled_weights_are_never_opened(hub: Hub, home: Interpreter, folder: Path, tmp_path: Path) -> None:
    """A payload would write a file the moment it is unpickled."""
    trace = tmp_path / "trace"
    payload = b"cpathlib\nPath.touch\n(cpathlib\nPath\n(V" + str(trace).encode() + b"\ntRtR."
    pushed(home, folder, "alice/tiny")
    files = dict(hub.repositories["alice/tiny"].head.files)
    del files["model.safetensors"]
    hub.repositories["alice/tiny"].commit("pickle", files | {"pytorch_model.bin": payload})
    load = "from hivg_hf.hub.loading import load_with_stages\nload_with_stages('alice/tiny')"
    with pytest.raises(CodeFailedError, match=r"model\.safetensors"):
        home.run(load)
    with pytest.raises(CodeFailedError):
        home.run("from transformers import AutoModel\nAutoModel.from_pretrained('alice/tiny')")
    assert not trace.exists()


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (
            "pipeline('visual-grounding', model=folder)",
            {"model.safetensors", "processor_config.json", "pipeline_hivg.py"},
        ),
        ("AutoModel.from_pretrained(folder)", {"model.safetensors", "modeling_hivg.py"}),
        ("AutoProcessor.from_pretrained(folder)", {"tokenizer.json", "processing_hivg.py"}),
    ],
)
def test_push_to_hub_of_transformers_makes_one_loadable_commit(
    make: str, expected: set[str], hub: Hub, home: Interpreter, folder: Path
) -> None:
    code = (
        f"from transformers import AutoModel, AutoProcessor, pipeline\n{make}.push_to_hub('alice/x', token='hf_alice')"
    )
    home.run(code, folder=str(folder))
    repository = hub.repositories["alice/x"]
    assert len(repository.commits) == 2
    assert repository.head.files.keys() >= expected


GROUND = """
from typer.testing import CliRunner
from hivg_hf.cli import app
done = CliRunner().invoke(app, ["ground", picture, "the red star", "--json", "--no-pictures", "--model", name])
result = [done.exit_code, done.output.splitlines()]
"""


def test_ground_takes_a_repository_and_its_revision(hub: Hub, home: Interpreter, folder: Path, picture: str) -> None:
    pushed(home, folder, "alice/tiny")
    commit = hub.repositories["alice/tiny"].head.oid
    status, lines = home.run(GROUND, picture=picture, name=f"alice/tiny@{commit}")
    assert status == 0, lines
    assert any('"box"' in line for line in lines)  # among the progress of the download


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("alice/none", "hivg: There is no repository alice/none at http://127.0.0.1:"),
        ("alice/tiny@v9", "hivg: The repository alice/tiny has no such branch, tag or commit: http"),
    ],
)
def test_ground_names_what_is_not_on_the_hub(
    name: str, sentence: str, hub: Hub, home: Interpreter, folder: Path, picture: str
) -> None:
    pushed(home, folder, "alice/tiny")
    status, lines = home.run(GROUND, picture=picture, name=name)
    assert status == 2
    assert lines[-1].startswith(sentence)


def test_repository_that_is_not_cached_is_named_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="alice/none is not in the cache, and HF_HUB_OFFLINE forbids to fetch it"):
        download_checked("alice/none", cache_dir=tmp_path)


def test_a_folder_of_a_model_alone_says_that_its_processor_is_missing(tiny_model: Any, tmp_path: Path) -> None:
    tiny_model.save_pretrained(tmp_path / "alone")
    with pytest.raises(
        FileNotFoundError, match=r"alone has a model and no processor \(processor_config\.json\): save"
    ):
        load_with_stages(str(tmp_path / "alone"))
