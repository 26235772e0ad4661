"""`hivg push` against the true client over HTTP: what is sent, what is refused, what a fault leaves behind."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import hivg_hf
from helpers.hub_client import AUTO_CLASSES, PIPELINE, PLANTED, boxes, push, pushed
from helpers.hub_state import Hub
from helpers.interpreter import Interpreter

MODELING = Path(__file__).parents[2] / "modeling"
pytestmark = pytest.mark.xdist_group("hub")  # one pair of interpreters, on one worker


def test_push_makes_one_commit_of_the_models_own_files(hub: Hub, home: Interpreter, folder: Path) -> None:
    done = push(home, folder, "alice/tiny")
    assert done["status"] == 0, done["output"]
    repository = hub.repositories["alice/tiny"]
    assert len(repository.commits) == 2  # the Hub's own first one, and ours
    assert repository.head.oid in done["output"]
    assert "read back and working" in done["output"]
    names = repository.head.files.keys()
    assert not names & PLANTED.keys()
    assert names >= {"config.json", "model.safetensors", "processor_config.json", "tokenizer.json", "README.md"}
    assert names >= {"configuration_hivg.py", "modeling_hivg.py", "processing_hivg.py", "pipeline_hivg.py"}
    assert b"custom_pipelines" in repository.head.files["config.json"]
    assert b"model-index" in repository.head.files["README.md"]


def test_the_checkpoint_of_a_checkout_is_pushed_with_the_code_that_git_holds_once(
    hub: Hub, home: Interpreter, away: Interpreter, picture: str
) -> None:
    pushed(home, Path(hivg_hf.TINY_CHECKPOINT), "alice/shipped")
    files = hub.repositories["alice/shipped"].head.files
    sent = {name: content for name, content in files.items() if name.endswith(".py")}
    assert sent == {path.name: path.read_bytes() for path in MODELING.glob("*_hivg.py")}
    found = boxes(away, AUTO_CLASSES, "alice/shipped", picture, trust_remote_code=True)
    expected = boxes(home, AUTO_CLASSES, hivg_hf.TINY_CHECKPOINT, picture)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-6)


def test_the_card_of_a_run_names_the_repository_that_it_is_pushed_to(
    hub: Hub, home: Interpreter, folder: Path, tmp_path: Path
) -> None:
    merged = shutil.copytree(folder, tmp_path / "mine" / "merged")
    card = merged / "README.md"
    example = 'pipe = pipeline("visual-grounding", model="{}")\n'
    card.write_text(card.read_text() + example.format("runs/mine/merged") + example.format("other/merged"))
    assert push(home, merged, "alice/mugs", "--no-check")["status"] == 0
    sent = hub.repositories["alice/mugs"].head.files["README.md"].decode()
    assert sent.endswith(example.format("alice/mugs") + example.format("other/merged"))
    assert "runs/mine/merged" in card.read_text()  # the local folder stays as it is
    assert push(home, merged, "alice/mugs", "--no-check")["status"] == 0  # the same content: no second commit
    assert len(hub.repositories["alice/mugs"].commits) == 2


def test_missing_token_is_named_before_anything_is_sent(hub: Hub, home: Interpreter, folder: Path) -> None:
    done = push(home, folder, "alice/tiny", token="")
    assert done["status"] == 2
    assert done["output"].startswith("hivg: Uploading needs a token of the Hub and none was found; log in with")
    assert done["output"].count("\n") == 1
    assert hub.requests == []
    assert push(home, folder, "alice/tiny", "--no-check")["status"] == 0


def test_wrong_token_is_named(hub: Hub, home: Interpreter, folder: Path) -> None:
    done = push(home, folder, "alice/tiny", token="hf_wrong")
    assert done["status"] == 2
    assert done["output"].startswith("hivg: The Hub refuses the token (Invalid user token); make one")
    assert done["output"].count("\n") == 1
    assert hub.repositories == {}
    assert push(home, folder, "alice/tiny", "--no-check")["status"] == 0


def test_name_space_of_another_is_refused(hub: Hub, home: Interpreter, folder: Path) -> None:
    done = push(home, folder, "alice/tiny", token="hf_bob")
    assert done["status"] == 2
    assert done["output"].startswith("hivg: The token may not do this to alice/tiny (You don't have the rights")
    assert hub.repositories == {}


def test_taken_name_is_refused_and_left_alone(hub: Hub, home: Interpreter, folder: Path) -> None:
    hub.create("alice/tiny").commit("thesis", {"thesis.pdf": b"years"})
    done = push(home, folder, "alice/tiny")
    assert done["status"] == 2
    assert done["output"].startswith("hivg: The name alice/tiny is taken: its branch main holds 1 files")
    assert hub.repositories["alice/tiny"].head.files == {"thesis.pdf": b"years"}
    del hub.repositories["alice/tiny"]
    assert push(home, folder, "alice/tiny", "--no-check")["status"] == 0


def test_cut_upload_leaves_nothing_visible_and_the_same_command_succeeds(
    hub: Hub, home: Interpreter, folder: Path
) -> None:
    hub.cut_next("POST .*/commit/")
    done = push(home, folder, "alice/tiny")
    assert done["status"] == 2
    *progress, sentence = done["output"].splitlines()
    assert sentence.startswith("hivg: The connection to http://127.0.0.1:")
    assert sentence.endswith("nothing incomplete is visible there. Run the same again.")
    assert not any("Traceback" in line for line in progress)
    assert hub.repositories["alice/tiny"].head.files.keys() == {".gitattributes"}
    assert push(home, folder, "alice/tiny", "--no-check")["status"] == 0
    assert "model.safetensors" in hub.repositories["alice/tiny"].head.files


def test_cut_large_file_is_sent_again_by_the_client(hub: Hub, home: Interpreter, folder: Path) -> None:
    hub.cut_next("PUT /_large/")
    pushed(home, folder, "alice/tiny")
    repository = hub.repositories["alice/tiny"]
    assert repository.head.files["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert sum(request.startswith("PUT /_large/") for request in hub.requests) == 2


def test_a_model_that_is_not_whole_is_refused_before_anything_is_sent(
    hub: Hub, home: Interpreter, folder: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    whole = load_file(broken / "model.safetensors")
    for change, sentence in (
        ({name: tensor for name, tensor in whole.items() if "box_head" not in name}, r"missing \(.*box_head"),
        ({name: torch.full_like(tensor, torch.nan) for name, tensor in whole.items()}, r"hold NaN or infinite values"),
    ):
        save_file(change, broken / "model.safetensors", metadata={"format": "pt"})
        done = push(home, broken, "alice/tiny")
        assert done["status"] == 2
        assert re.search(sentence, done["output"].splitlines()[-1])
    assert hub.requests == []
    assert hub.repositories == {}


@pytest.mark.parametrize("path", ["model.safetensors", "modeling_hivg.py"])
def test_damaged_read_back_is_noticed_and_the_same_command_succeeds(
    path: str, hub: Hub, home: Interpreter, folder: Path
) -> None:
    hub.corrupt(path, lambda data: data[:-1] + bytes([data[-1] ^ 1]))
    done = push(home, folder, "alice/tiny")
    assert done["status"] == 2
    assert "is complete in alice/tiny, but reading it back failed" in done["output"]
    assert f"{path} differs from its checksum" in done["output"]
    hub.heal()
    done = push(home, folder, "alice/tiny")
    assert done["status"] == 0
    assert "held already" in done["output"]
    assert len(hub.repositories["alice/tiny"].commits) == 2


def test_update_replaces_weights_that_the_new_model_has_not(
    hub: Hub, home: Interpreter, away: Interpreter, folder: Path, tiny_model: Any, picture: str, tmp_path: Path
) -> None:
    sharded = tmp_path / "sharded"
    shutil.copytree(folder, sharded, ignore=shutil.ignore_patterns("model.safetensors", *PLANTED))
    tiny_model.save_pretrained(sharded, max_shard_size="200KB")
    shards = {path.name for path in sharded.glob("model-*.safetensors")}
    assert len(shards) > 1
    pushed(home, sharded, "alice/tiny")
    assert hub.repositories["alice/tiny"].head.files.keys() >= {*shards, "model.safetensors.index.json"}
    found = boxes(away, PIPELINE, "alice/tiny", picture, trust_remote_code=True)
    pushed(home, folder, "alice/tiny", "--update")
    left = hub.repositories["alice/tiny"].head.files.keys()
    assert "model.safetensors" in left
    assert not left & {*shards, "model.safetensors.index.json"}
    expected = boxes(home, PIPELINE, "alice/tiny", picture)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_a_path_in_place_of_a_repository_is_a_trial(home: Interpreter, folder: Path, hub: Hub, tmp_path: Path) -> None:
    out = tmp_path / "trial"
    done = push(home, folder, str(out), token="")
    assert done["status"] == 0, done["output"]
    assert f"Nothing was sent; this would be pushed: {out}" in done["output"]
    pushed(home, folder, "alice/tiny")
    sent = {path for path in hub.repositories["alice/tiny"].head.files if path != ".gitattributes"}
    assert {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()} == sent
    assert push(home, folder, str(out), token="")["status"] == 2
