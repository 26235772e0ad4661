"""The loopback Hub against the true client, with a plain CLIP: what the tests of sharing stand on."""

from pathlib import Path

import pytest

from helpers.hub_state import Hub
from helpers.interpreter import CodeFailedError, Interpreter

pytestmark = pytest.mark.xdist_group("hub")

UPLOAD = """
import pathlib
from huggingface_hub import CommitOperationAdd, HfApi
api = HfApi()
api.create_repo(repo_id, private=private, token=token, exist_ok=exist_ok)
adds = [CommitOperationAdd(path, content.encode()) for path, content in files.items()]
result = api.create_commit(repo_id, adds, commit_message="files", token=token).oid
"""

DOWNLOAD = """
import pathlib, tempfile
from huggingface_hub import hf_hub_download
with tempfile.TemporaryDirectory() as cache:
    result = pathlib.Path(hf_hub_download(repo_id, path, revision=revision, token=token, cache_dir=cache)).read_text()
"""


@pytest.fixture
def client(away: Interpreter) -> Interpreter:
    return away


def upload(client: Interpreter, repo_id: str, files: dict[str, str], token: str = "hf_alice", **options: bool) -> str:
    options = {"private": False, "exist_ok": False, **options}
    return client.run(UPLOAD, repo_id=repo_id, files=files, token=token, **options)


def download(client: Interpreter, repo_id: str, path: str, revision: str = "main", token: str | bool = False) -> str:
    return client.run(DOWNLOAD, repo_id=repo_id, path=path, revision=revision, token=token)


def test_bare_interpreter_cannot_import_the_package(client: Interpreter) -> None:
    assert client.run("import importlib.util; result = importlib.util.find_spec('hivg_hf') is None")


def test_uploaded_files_come_back_small_and_large(hub: Hub, client: Interpreter) -> None:
    oid = upload(client, "alice/mugs", {"config.json": "{}", "model.safetensors": "tensors", "sub/x.txt": "x"})
    repository = hub.repositories["alice/mugs"]
    assert [commit.title for commit in repository.commits] == ["initial commit", "files"]
    assert repository.head.oid == oid
    assert repository.head.lfs == {"model.safetensors"}
    assert download(client, "alice/mugs", "config.json") == "{}"
    assert download(client, "alice/mugs", "model.safetensors", revision=oid) == "tensors"
    assert download(client, "alice/mugs", "sub/x.txt") == "x"


def test_revisions_are_branches_tags_and_commits(hub: Hub, client: Interpreter) -> None:
    first = upload(client, "alice/mugs", {"x.txt": "first"})
    code = "from huggingface_hub import HfApi\napi = HfApi(token='hf_alice')\n"
    client.run(code + "api.create_tag('alice/mugs', tag='v1')\napi.create_branch('alice/mugs', branch='next')")
    upload(client, "alice/mugs", {"x.txt": "second"}, exist_ok=True)
    texts = {revision: download(client, "alice/mugs", "x.txt", revision) for revision in ("main", "v1", "next", first)}
    assert texts == {"main": "second", "v1": "first", "next": "first", first: "first"}
    with pytest.raises(CodeFailedError) as caught:
        download(client, "alice/mugs", "x.txt", "v2")
    assert caught.value.kind == "RevisionNotFoundError"


def test_private_repository_is_only_for_its_owner(hub: Hub, client: Interpreter) -> None:
    upload(client, "alice/secret", {"x.txt": "mine"}, private=True)
    assert download(client, "alice/secret", "x.txt", token="hf_alice") == "mine"
    for token in (False, "hf_bob"):
        with pytest.raises(CodeFailedError) as caught:
            download(client, "alice/secret", "x.txt", token=token)
        assert caught.value.kind == "RepositoryNotFoundError"


def test_writing_needs_the_token_of_the_owner(hub: Hub, client: Interpreter) -> None:
    for token, status in (("hf_nobody", "401"), ("hf_bob", "403")):
        with pytest.raises(CodeFailedError, match=status):
            upload(client, "alice/mugs", {"x.txt": "x"}, token=token)
    assert hub.repositories == {}


def test_cut_commit_leaves_nothing_and_the_next_one_succeeds(hub: Hub, client: Interpreter) -> None:
    hub.cut_next("POST .*/commit/")
    with pytest.raises(CodeFailedError) as caught:
        upload(client, "alice/mugs", {"x.txt": "x" * 1000})
    assert caught.value.kind in ("RemoteProtocolError", "ReadError", "WriteError")
    assert hub.repositories["alice/mugs"].head.files.keys() == {".gitattributes"}
    upload(client, "alice/mugs", {"x.txt": "x" * 1000}, exist_ok=True)
    assert download(client, "alice/mugs", "x.txt") == "x" * 1000


@pytest.mark.parametrize("path", ["x.txt", "x.safetensors"])
def test_damaged_download_is_what_the_client_gets_until_it_heals(path: str, hub: Hub, client: Interpreter) -> None:
    upload(client, "alice/mugs", {path: "whole"})
    hub.corrupt(path, lambda data: b"W" + data[1:])
    assert download(client, "alice/mugs", path) == "Whole"
    hub.heal()
    assert download(client, "alice/mugs", path) == "whole"


def test_client_verifies_checksums_against_the_listing(hub: Hub, client: Interpreter, tmp_path: Path) -> None:
    files = {"x.txt": "text", "folder/x.safetensors": "tensors"}
    upload(client, "alice/mugs", files)
    hub.corrupt("folder/x.safetensors", lambda data: b"T" + data[1:])
    code = (
        "from huggingface_hub import HfApi, snapshot_download\n"
        "folder = snapshot_download('alice/mugs', local_dir=folder)\n"
        "report = HfApi().verify_repo_checksums('alice/mugs', local_dir=folder)\n"
        "result = [report.checked_count, [m['path'] for m in report.mismatches], report.missing_paths]"
    )
    assert client.run(code, folder=str(tmp_path)) == [3, ["folder/x.safetensors"], []]


def test_plain_clip_round_trips_through_push_to_hub(hub: Hub, client: Interpreter) -> None:
    code = """
import torch
from transformers import CLIPConfig, CLIPModel
tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
vision = {**tower, "image_size": 16, "patch_size": 8}
model = CLIPModel(CLIPConfig(text_config={**tower, "vocab_size": 50}, vision_config=vision, projection_dim=8))
model.push_to_hub("alice/clip", token="hf_alice")
again = CLIPModel.from_pretrained("alice/clip")
other = again.state_dict()
result = [torch.equal(other[name], value) for name, value in model.state_dict().items()]
"""
    assert all(client.run(code))
    assert {"config.json", "model.safetensors"} <= hub.repositories["alice/clip"].head.files.keys()
