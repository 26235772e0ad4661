"""`official:NAME` against a site that behaves like Google Drive: from nothing to a box, and what can go wrong."""

import argparse
import copy
import io
import json
import os
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from parity.official_cases import made_case
from PIL import Image

from benchmarks.speed.official_reference import OfficialLayers
from helpers.drive_server import LEAD_TO, QUOTA, SIGN_IN, Drive, serve_drive
from helpers.hub_state import Hub
from helpers.interpreter import CodeFailedError, Interpreter
from hivg_hf.conversion.published import OFFICIAL_NAMES, PUBLISHED_FILES

MIXUP = PUBLISHED_FILES["mixup_pretraining_base"].drive_id
FINE_TUNED = PUBLISHED_FILES["fine_tuning_base"].drive_id
CLIP_FILE = PUBLISHED_FILES["debiased_clip_base"].drive_id
CHUNK = 512 * 1024  # gdown's
TABLES = PUBLISHED_FILES["annotations"].drive_id
MIXUP_LAYERS = OfficialLayers([0, 3, 7, 11], [1, 4, 8, 12], [12])
TOKENIZER_REPOSITORY = "openai/clip-vit-base-patch16"

# In the interpreter under test: CLIPs as small as those of the test's files.
SMALL = """
from hivg_hf.modeling import presets_hivg
clip = presets_hivg.PUBLISHED_CLIPS["ViT-B/16"]
clip.clear()
clip.update(clip_config)
for name, (args, config) in presets_hivg.OFFICIAL_VARIANTS.items():
    if name.startswith("base-"):
        args.update(vl_hidden_dim=clip_config["projection_dim"], imsize=64, vl_nheads=2, vl_dim_feedforward=64)
"""
# For each test: a cache of its own, and sizes of the files as they are.
ANEW = """
from dataclasses import replace
from huggingface_hub import constants
from hivg_hf.conversion import published
from hivg_hf.hub import drive as drive_module
constants.HF_HOME = home
for key, file in published.PUBLISHED_FILES.items():
    published.PUBLISHED_FILES[key] = replace(file, size=sizes.get(file.drive_id, file.size), most_unpacked=limit)
drive_module.RETRIES = retries
"""
RUN = """
import contextlib, io, sys, huggingface_hub.constants as constants
from hivg_hf.cli import main
import hivg_hf.cli
out, err = io.StringIO(), io.StringIO()
with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
    try:
        main(arguments)
    except SystemExit as ended:
        status = ended.code or 0
result = {"status": status, "out": out.getvalue(), "err": err.getvalue()}
"""


@pytest.fixture(scope="module")
def drive_and_address() -> Iterator[tuple[Drive, str]]:
    with serve_drive() as served:
        yield served


@pytest.fixture
def drive(drive_and_address: tuple[Drive, str]) -> Drive:
    """The Drive, emptied."""
    drive = drive_and_address[0]
    for part in (drive.files, drive.pages, drive.cuts, drive.requests):
        part.clear()
    return drive


@pytest.fixture(scope="module")
def vocabulary(tiny_tokenizer: Any) -> int:
    return len(tiny_tokenizer)


def official_file(vocabulary: int, dataset: str, stage: int = 0, seed: int = 0, with_args: bool = True) -> bytes:
    """A random file of the official layout, as torch.save writes it."""
    text_layers = {"unc": [12], "unc+": [6, 12], "mixup": [12]}[dataset]
    case = made_case(
        OfficialLayers([0, 3, 7, 11], [1, 4, 8, 12], text_layers),
        seed=seed,
        vocab_size=vocabulary,
        dataset=dataset,
        hi_lora_stage=stage,
        mixup_pretrain=dataset == "mixup",
        enable_adaptive_weights=dataset != "mixup",
    )
    buffer = io.BytesIO()
    content = {"model": case.state, "args": argparse.Namespace(**case.args)} if with_args else {"model": case.state}
    torch.save(content, buffer)
    return buffer.getvalue()


def zipped(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tarred(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture(scope="module")
def start_process(
    served: tuple[Hub, str], drive_and_address: tuple[Drive, str], tmp_path_factory: pytest.TempPathFactory,
    vocabulary: int,
) -> Iterator[Callable[[bool], Interpreter]]:  # fmt: skip
    """Start an interpreter whose site is the loopback server, and, offline, nothing at all."""
    clip_config = made_case(MIXUP_LAYERS, vocab_size=vocabulary).clip_config
    folder = tmp_path_factory.mktemp("official")
    started = []

    def start_process(offline: bool) -> Interpreter:
        environment = {
            "HF_ENDPOINT": served[1],
            "HF_HOME": str(folder),
            "HF_HUB_OFFLINE": "1" if offline else "0",
            "HF_HUB_DISABLE_XET": "1",
        }
        process = Interpreter(folder, with_package=True, environment=environment)
        started.append(process)
        drive = "http://127.0.0.1:9" if offline else drive_and_address[1]
        process.run(LEAD_TO + SMALL, drive=drive, clip_config=clip_config)
        return process

    yield start_process
    for process in started:
        process.close()


@pytest.fixture(scope="module")
def online(start_process: Callable[[bool], Interpreter]) -> Interpreter:
    return start_process(False)


@pytest.fixture
def start(
    hub: Hub, drive: Drive, tmp_path: Path, tiny_tokenizer: Any, online: Interpreter,
    start_process: Callable[[bool], Interpreter],
) -> Callable[..., Interpreter]:  # fmt: skip
    """An interpreter with an empty cache of the test's own; the Hub holds CLIP's tokenizer, here a tiny one."""
    tiny_tokenizer.save_pretrained(tmp_path / "tokenizer")
    files = {path.name: path.read_bytes() for path in (tmp_path / "tokenizer").iterdir()}
    files["config.json"] = json.dumps({"model_type": "clip"}).encode()
    hub.create(TOKENIZER_REPOSITORY).commit("tokenizer", files)

    def start(offline: bool = False, retries: int = 0, limit: int = 10**8) -> Interpreter:
        process = start_process(True) if offline else online
        sizes = {key: len(content) for key, content in drive.files.items()}
        process.run(ANEW, home=str(tmp_path / "home"), sizes=sizes, limit=limit, retries=retries)
        return process

    return start


def hivg(process: Interpreter, *arguments: str) -> dict[str, Any]:
    return process.run(RUN, arguments=list(arguments))


def test_from_nothing_to_a_box_and_again_offline(start: Any, drive: Drive, picture: str, vocabulary: int) -> None:
    drive.files[MIXUP] = zipped(**{
        "mixup/log.txt": b"epoch 1", "mixup/best_checkpoint.pth": official_file(vocabulary, "mixup"),
    })  # fmt: skip
    command = ("ground", picture, "the red star", "--model", "official:base-mixup", "--device", "cpu", "--json")
    first = hivg(start(), *command, "--no-pictures")
    assert first["status"] == 0, first["err"]
    box = json.loads(first["out"])["results"][0]["box"]
    assert set(box) == {"xmin", "ymin", "xmax", "ymax"}
    assert "rendered shapes" not in first["err"]
    assert [request.split()[0] for request in drive.requests] == ["drive.google.com", "drive.usercontent.google.com"]
    drive.files.clear()
    second = hivg(start(offline=True), *command, "--no-pictures")
    assert second["status"] == 0, second["err"]
    assert json.loads(second["out"])["results"] == json.loads(first["out"])["results"]
    assert len(drive.requests) == 2


def test_the_converted_model_computes_what_the_file_computes(
    start: Any, drive: Drive, tmp_path: Path, vocabulary: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    drive.files[MIXUP] = official_file(vocabulary, "mixup", seed=3)  # a bare .pth
    done = hivg(start(), "get", "official:base-mixup")
    assert done["status"] == 0, done["err"]
    folder = Path(done["out"].splitlines()[0].partition(": ")[2])
    assert folder == tmp_path / "home" / "hivg" / "official" / "base-mixup"
    from hivg_hf import HiVGForVisualGrounding, HiVGProcessor
    from hivg_hf.conversion import load_official_checkpoint

    clip_config = made_case(MIXUP_LAYERS, vocab_size=vocabulary).clip_config
    (tmp_path / "file.pth").write_bytes(drive.files[MIXUP])
    expected = load_official_checkpoint(tmp_path / "file.pth", clip_config=clip_config).state_dict()
    loaded = HiVGForVisualGrounding.from_pretrained(folder).state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)
    assert HiVGProcessor.from_pretrained(folder).image_processor.image_mean[0] == pytest.approx(0.485)
    origin = json.loads((folder / "official.json").read_text())
    assert origin["name"] == "official:base-mixup"
    record = json.loads((folder.parent / "sha256.json").read_text())
    assert origin["sha256"] == record["mixup_pretraining_base"]["sha256"]


def test_of_many_checkpoints_the_right_one_is_found_by_its_own_arguments(
    start: Any, drive: Drive, tmp_path: Path, vocabulary: int
) -> None:
    files = {
        "a/unc/stage_1/best_checkpoint.pth": official_file(vocabulary, "unc", stage=1),
        "a/unc/stage_3/best_checkpoint.pth": official_file(vocabulary, "unc", stage=3, seed=1),
        "a/unc/stage_3/checkpoint.pth": official_file(vocabulary, "unc", stage=3, seed=2),
        # the folder misleads: arguments decide
        "a/misnamed/best_checkpoint.pth": official_file(vocabulary, "unc+", stage=2),
    }
    drive.files[FINE_TUNED] = tarred(**files)
    process = start()
    for name, member in (
        ("base-unc", "a/unc/stage_3/best_checkpoint.pth"),
        ("base-unc+", "a/misnamed/best_checkpoint.pth"),
    ):
        done = hivg(process, "get", f"official:{name}")
        assert done["status"] == 0, done["err"]
        folder = tmp_path / "home" / "hivg" / "official" / name
        assert json.loads((folder / "official.json").read_text())["member"] == member
    assert len(drive.requests) == 2  # one archive, fetched once
    done = hivg(process, "get", "official:base-referit")
    assert done["status"] == 2
    assert "official:base-referit not found in the archive" in done["err"]
    assert "its arguments describe ViT-B/16 on unc, not ViT-B/16 on referit" in done["err"]
    assert not (tmp_path / "home" / "hivg" / "official" / "base-referit").exists()


def test_a_broken_download_is_resumed(start: Any, drive: Drive, vocabulary: int) -> None:
    data = drive.files[MIXUP] = official_file(vocabulary, "mixup")
    drive.cuts = [2 * CHUNK + 1000]
    assert len(data) > 3 * CHUNK
    process = start()
    done = hivg(process, "get", "official:base-mixup")
    assert done["status"] == 2
    assert "The download of official:base-mixup from Google Drive broke" in done["err"]
    assert "run the same again to resume it, or open https://drive.google.com/file/d/" in done["err"]
    assert hivg(process, "get", "official:base-mixup")["status"] == 0
    assert drive.requests[-1].endswith(f"bytes={2 * CHUNK}-")  # what was received whole is not fetched again


def test_a_short_break_is_retried_in_the_same_run(start: Any, drive: Drive, vocabulary: int) -> None:
    drive.files[MIXUP] = official_file(vocabulary, "mixup")
    drive.cuts = [CHUNK + 1000]
    assert hivg(start(retries=1), "get", "official:base-mixup")["status"] == 0
    assert drive.requests[-1].endswith(f"bytes={CHUNK}-")


def test_a_site_that_gives_no_connection_is_said_after_the_first_try(
    start: Any, drive: Drive, drive_and_address: tuple[Drive, str], vocabulary: int
) -> None:
    drive.files[MIXUP] = official_file(vocabulary, "mixup")
    process = start(retries=9)  # which would take minutes
    process.run(LEAD_TO, drive="http://127.0.0.1:9")
    done = hivg(process, "get", "official:base-mixup")
    process.run(LEAD_TO, drive=drive_and_address[1])
    assert done["status"] == 2
    said = done["err"].strip().splitlines()[-1]
    assert said.startswith("hivg: Google Drive was not reached for official:base-mixup (tried 127.0.0.1: ")
    assert said.endswith(
        f"Connection refused); connect and run the same again, or open https://drive.google.com/file/d/{MIXUP}/view "
        "in a browser, download the file, and run: hivg get official:base-mixup --file DOWNLOADED_FILE"
    )
    assert not drive.requests
    assert hivg(process, "get", "official:base-mixup")["status"] == 0


def test_a_hub_that_gives_no_connection_is_asked_once_and_another_way_named(start: Any, served: Any) -> None:
    """transformers asks for each file of a tokenizer, and waits half a minute for each."""
    process = start()
    process.run("import huggingface_hub.constants as c\nc.ENDPOINT = 'http://127.0.0.1:9'\nc.HF_HUB_CACHE = 'none'")
    done = hivg(process, "get", "official:base-mixup")
    process.run("import huggingface_hub.constants as c\nc.ENDPOINT = site\nc.HF_HUB_CACHE = 'hub'", site=served[1])
    assert done["status"] == 2
    said = done["err"].strip().splitlines()
    assert len(said) == 1  # no line about each try
    assert "The connection to http://127.0.0.1:9 broke while working on openai/clip-vit-base-patch16" in said[0]
    assert (
        "official:base-mixup needs the tokenizer in it. Without a connection: run hivg get official:base-mixup where"
        in said[0]
    )
    assert said[0].endswith("/hivg/official/base-mixup.")


@pytest.mark.parametrize(
    ("page", "reason"),
    [
        (QUOTA, "Too many users have viewed or downloaded this file recently"),
        (SIGN_IN, "Cannot retrieve the public link of the file"),
        (None, "Cannot retrieve the public link of the file"),  # it is gone
    ],
)
def test_a_page_instead_of_the_file_names_the_steps_by_hand(
    start: Any, drive: Drive, tmp_path: Path, vocabulary: int, page: str | None, reason: str
) -> None:
    if page is not None:
        drive.pages[MIXUP] = page
    process = start()
    done = hivg(process, "get", "official:base-mixup")
    assert done["status"] == 2
    assert done["err"].strip().splitlines()[-1] == (
        f"hivg: Google Drive does not give out the file of official:base-mixup ({reason}); open "
        f"https://drive.google.com/file/d/{MIXUP}/view in a browser, download the file, and run: "
        "hivg get official:base-mixup --file DOWNLOADED_FILE"
    )
    (tmp_path / "by hand").write_bytes(official_file(vocabulary, "mixup"))
    by_hand = hivg(process, "get", "official:base-mixup", "--file", str(tmp_path / "by hand"))
    assert by_hand["status"] == 0, by_hand["err"]


def test_another_file_than_the_first_time_is_refused(
    start: Any, drive: Drive, tmp_path: Path, vocabulary: int
) -> None:
    drive.files[MIXUP] = official_file(vocabulary, "mixup")
    process = start()
    assert hivg(process, "get", "official:base-mixup")["status"] == 0
    cache = tmp_path / "home" / "hivg" / "official"
    (cache / "base-mixup").rename(tmp_path / "aside")
    (cache / "downloads" / "mixup_pretraining_base").unlink()
    drive.files[MIXUP] = official_file(vocabulary, "mixup", seed=1)
    done = hivg(process, "get", "official:base-mixup")
    assert done["status"] == 2
    assert "is not the file that was downloaded first" in done["err"]
    assert not (cache / "base-mixup").exists()


def test_a_file_of_quite_another_size_is_deleted(start: Any, drive: Drive, tmp_path: Path, vocabulary: int) -> None:
    drive.files[MIXUP] = official_file(vocabulary, "mixup")
    process = start()
    drive.files[MIXUP] = drive.files[MIXUP][:1000]
    done = hivg(process, "get", "official:base-mixup")
    assert done["status"] == 2
    assert "has 1,000 bytes instead of about" in done["err"]
    assert list((tmp_path / "home" / "hivg" / "official" / "downloads").iterdir()) == []


def test_a_hostile_checkpoint_runs_nothing(start: Any, drive: Drive, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "was run"),)

    buffer = io.BytesIO()
    torch.save({"model": Bomb()}, buffer)
    drive.files[MIXUP] = zipped(**{"best_checkpoint.pth": buffer.getvalue()})
    done = hivg(start(), "get", "official:base-mixup")
    assert done["status"] == 2
    assert "Nothing in it was run" in done["err"]
    assert not (tmp_path / "was run").exists()


def test_the_debiased_clip_becomes_a_plain_clip(start: Any, drive: Drive, vocabulary: int) -> None:
    case = made_case(OfficialLayers([], [1, 4, 8, 12], [12]), vocab_size=vocabulary)
    nesting = "clip.base_model.model."
    state = {n.removeprefix(nesting): t for n, t in case.state.items() if n.startswith(nesting)}
    buffer = io.BytesIO()
    torch.save({"model": state}, buffer)
    drive.files[CLIP_FILE] = buffer.getvalue()
    done = hivg(start(), "get", "official:base-clip")
    assert done["status"] == 0, done["err"]
    folder = Path(done["out"].splitlines()[0].partition(": ")[2])
    assert json.loads((folder / "config.json").read_text())["model_type"] == "clip"
    assert (folder / "tokenizer.json").is_file()


def test_annotations_are_unpacked_as_the_reader_wants_them(start: Any, drive: Drive, tmp_path: Path) -> None:
    rows = [("COCO_train2014_1.jpg", {"height": 40, "width": 60}, [1, 2, 10, 20], "the star", [[1, 2, 11, 2, 11, 22]])]
    buffer = io.BytesIO()
    torch.save(rows, buffer)
    tables = {"ref_data_shuffled/unc/unc_val.pth": buffer.getvalue(), "ref_data_shuffled/read.me": b""}
    drive.files[TABLES] = tarred(**tables)
    done = hivg(start(), "get", "official:annotations")
    assert done["status"] == 0, done["err"]
    folder = Path(done["out"].splitlines()[0].partition(": ")[2])
    assert (folder / "unc" / "unc_val.pth").read_bytes() == buffer.getvalue()
    from hivg_hf.data.readers.official_splits import read_official_split

    (tmp_path / "pictures").mkdir()
    assert len(read_official_split("val", source="unc", root=folder, images=tmp_path / "pictures").records) == 1


def test_offline_without_the_cache_says_what_is_missing(start: Any) -> None:
    code = "import huggingface_hub.constants as constants\nfrom hivg_hf.hub import open_official\n"
    code += "constants.HF_HUB_OFFLINE = True\ntry:\n    open_official('annotations')\n"
    code += "finally:\n    constants.HF_HUB_OFFLINE = False"
    with pytest.raises(CodeFailedError, match="official:annotations is not in the cache, and HF_HUB_OFFLINE forbids"):
        start().run(code)


def test_every_name_has_a_file_and_a_preset() -> None:
    from hivg_hf.modeling.presets_hivg import OFFICIAL_VARIANTS

    models = {name for name in OFFICIAL_NAMES if not name.endswith("-clip") and name != "annotations"}
    assert models <= OFFICIAL_VARIANTS.keys()
    assert set(OFFICIAL_NAMES.values()) == PUBLISHED_FILES.keys()
    assert len({file.drive_id for file in copy.copy(PUBLISHED_FILES).values()}) == len(PUBLISHED_FILES)


PUBLISH = """
import contextlib, io, os
from scripts.publish_official import main
os.environ["HF_TOKEN"] = "hf_alice"
out = io.StringIO()
try:
    with contextlib.redirect_stdout(out):
        status = main(arguments)
finally:
    del os.environ["HF_TOKEN"]
result = {"status": status, "out": out.getvalue()}
"""

EXPORTED = """
from huggingface_hub import cached_assets_path
result = [str(path) for path in cached_assets_path("hivg_hf", "onnx", "any").parent.rglob("*.onnx")]
"""


def test_the_owner_publishes_with_one_command_and_everybody_grounds(
    start: Any, drive: Drive, hub: Hub, tmp_path: Path, picture: str, vocabulary: int
) -> None:
    drive.files[MIXUP] = zipped(**{"best_checkpoint.pth": official_file(vocabulary, "mixup")})
    process = start()
    arguments = ["--namespace", "alice", "--only", "base-mixup", "--out", str(tmp_path / "published"), "--no-onnx"]
    refused = process.run(PUBLISH, arguments=arguments)
    assert refused["status"] == 2
    assert "Name a license for the weights" in refused["out"]
    assert "alice/hivg-base-mixup" not in hub.repositories
    assert drive.requests == []
    done = process.run(PUBLISH, arguments=[*arguments, "--license", "apache-2.0"])
    assert done["status"] == 0
    assert "alice/hivg-base-mixup now holds" in done["out"]
    files = hub.repositories["alice/hivg-base-mixup"].head.files
    card = files["README.md"].decode()
    assert "license: apache-2.0" in card
    assert "**not measured with this repository**" in card
    assert "| refcoco val | 90.56 |" in card
    assert "They do not state a license of the weights" in card
    assert "model-index" not in card  # figures of the authors are no results of this repository
    assert not any("onnx" in name for name in files)
    assert "onnx" not in card
    command = ("ground", picture, "the red star", "--device", "cpu", "--json", "--no-pictures", "--model")
    grounded = [hivg(process, *command, model) for model in ("alice/hivg-base-mixup", "official:base-mixup")]
    assert [one["status"] for one in grounded] == [0, 0], grounded[0]["err"]
    assert json.loads(grounded[0]["out"])["results"] == json.loads(grounded[1]["out"])["results"]
    again = process.run(PUBLISH, arguments=[*arguments, "--license", "apache-2.0"])
    assert "alice/hivg-base-mixup held already" in again["out"]


@pytest.mark.slow  # twelve layers are exported
@pytest.mark.timeout(1200)
def test_a_published_model_brings_onnx_files_that_answer_as_it_does(
    start: Any, drive: Drive, hub: Hub, tmp_path: Path, picture: str, vocabulary: int
) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    drive.files[MIXUP] = zipped(**{"best_checkpoint.pth": official_file(vocabulary, "mixup")})
    process = start()
    arguments = ["--namespace", "alice", "--license", "apache-2.0", "--only", "base-mixup"]
    arguments += ["--out", str(tmp_path / "published")]
    done = process.run(PUBLISH, arguments=arguments)
    assert done["status"] == 0
    files = hub.repositories["alice/hivg-base-mixup"].head.files
    in_onnx = {name.removeprefix("onnx/") for name in files if name.startswith("onnx/")}
    assert in_onnx >= {"model.onnx", "model_quantized.onnx", "grounding.json"}
    assert "`onnx/` has the same model for onnxruntime" in files["README.md"].decode()
    command = ("ground", picture, "the red star", "--device", "cpu", "--json", "--no-pictures", "--model")
    expected = box_in(hivg(process, *command, "official:base-mixup"))
    for precision, tolerance in (("fp32", 0.01), ("int8", 3.0)):  # pixels of a picture of 60 x 40
        by_onnx = hivg(process, *command, "alice/hivg-base-mixup", "--backend", "onnx", "--precision", precision)
        assert by_onnx["status"] == 0, by_onnx["err"]
        assert box_in(by_onnx) == pytest.approx(expected, abs=tolerance)
    assert process.run(EXPORTED) == []  # the published files answer
    graph = tmp_path / "published" / "hivg-base-mixup" / "onnx" / "model.onnx"
    written = graph.stat().st_mtime_ns
    again = process.run(PUBLISH, arguments=arguments)
    assert "alice/hivg-base-mixup held already" in again["out"]
    assert graph.stat().st_mtime_ns == written  # not exported again


def box_in(done: dict[str, Any]) -> list[float]:
    """The box in what `hivg ground --json` printed, in pixels."""
    return list(json.loads(done["out"])["results"][0]["box"].values())


def test_where_the_pictures_are_the_card_has_measured_figures_beside_the_authors(
    start: Any, drive: Drive, hub: Hub, tmp_path: Path, vocabulary: int
) -> None:
    drive.files[FINE_TUNED] = tarred(**{"unc/best_checkpoint.pth": official_file(vocabulary, "unc")})
    rows = [("COCO_train2014_1.jpg", {"height": 40, "width": 60}, [1, 2, 10, 20], "the star", [[1, 2, 11, 2, 11, 22]])]
    buffer = io.BytesIO()
    torch.save(rows, buffer)
    drive.files[TABLES] = zipped(**{f"unc_{split}.pth": buffer.getvalue() for split in ("val", "testA", "testB")})
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (60, 40), "white").save(tmp_path / "pictures" / "COCO_train2014_1.jpg")
    arguments = ["--namespace", "alice", "--license", "apache-2.0", "--only", "base-unc", "--no-onnx"]
    arguments += ["--out", str(tmp_path / "published"), "--images", str(tmp_path / "pictures")]
    done = start().run(PUBLISH, arguments=arguments)
    assert done["status"] == 0
    card = hub.repositories["alice/hivg-base-unc"].head.files["README.md"].decode()
    measured = sorted(path.name for path in (tmp_path / "published" / "results" / "base-unc").iterdir())
    assert measured == ["01-unc val.json", "02-unc testA.json", "03-unc testB.json"]
    assert "| unc val | 1 |" in card
    assert "| refcoco val | 87.32 | 87.32 |" in card
    assert "model-index" in card
