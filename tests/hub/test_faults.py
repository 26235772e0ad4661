"""A Hub that refuses, stalls, loops or is not there: each fault is one sentence that says what to do."""

import re
from pathlib import Path
from typing import Any

import pytest

from helpers.hub_client import push, pushed
from helpers.hub_state import Hub
from helpers.interpreter import Interpreter

pytestmark = pytest.mark.xdist_group("hub")  # one pair of interpreters, on one worker

# The client waits seconds between tries, and a minute for an answer: not here.
IMPATIENT = """
import tempfile
from huggingface_hub import constants, file_download
from huggingface_hub.utils import _http
from hivg_hf.hub import errors
class Time:
    sleep = staticmethod(lambda seconds: None)
file_download.time = _http.time = Time
constants.HF_HUB_DOWNLOAD_TIMEOUT = constants.HF_HUB_ETAG_TIMEOUT = 0.2
errors.PATIENCE = errors.PATIENCE_WITH_UPLOADS = {patience}
"""

OPEN = (
    IMPATIENT.format(patience=0.2)
    + """
from typer.testing import CliRunner
from hivg_hf.cli import app
cache, constants.HF_HUB_CACHE = constants.HF_HUB_CACHE, folder or tempfile.mkdtemp()
done = CliRunner().invoke(app, ["ground", picture, "the red star", "--no-pictures", "--model", "alice/tiny"])
constants.HF_HUB_CACHE = cache
result = {"status": done.exit_code, "lines": done.output.splitlines()}
"""
)
PORTAL = {"status": 200, "headers": {"Content-Type": "text/html"}, "body": b"<html>Accept the terms</html>"}
BUSY = {"status": 429, "headers": {"Retry-After": "7"}}
API, HEADERS, FILE = "GET /api/models/", "HEAD .*/resolve/.*safetensors", "GET /_large"
CLOSED = "use a token that may read it, or ask its owner."
AGAIN = r"nothing incomplete was kept\. Run the same again\."
NOT_THE_HUB = r"does not speak as the Hub does \(.*\); a network's log-in page or a proxy may stand between: .*again\."


@pytest.mark.parametrize(
    ("request_", "fault", "sentence"),
    [
        (API, {"status": 403}, rf"The token may not do this to alice/tiny \(.*403.*\); {CLOSED}"),
        (HEADERS, {"status": 403}, rf"The token may not do this to alice/tiny \(.*403.*\); {CLOSED}"),
        (FILE, {"status": 403}, rf"The token may not do this to alice/tiny \(.*403.*\); {CLOSED}"),
        (API, {"status": 401}, r"The Hub refuses the token \(.*\); make one with the right to read at .*"),
        (
            API,
            {"status": 403, "headers": {"X-Error-Code": "GatedRepo", "X-Error-Message": "Ask for it"}},
            r"The repository alice/tiny is open to those whom its owner has granted access \(Ask for it\); ask .*",
        ),
        (API, BUSY, r"The Hub cannot serve alice/tiny now \(429 Too .*\); run the same again in 7 seconds\."),
        (HEADERS, BUSY, r"The Hub cannot serve alice/tiny now \(429 Too .*\); run the same again in 7 seconds\."),
        (FILE, {"status": 429, "headers": {"RateLimit": '"api";r=0;t=55'}}, r".*run the same again in 55 seconds\."),
        (API, {"status": 429, "headers": {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}}, r".*same again later\."),
        (API, {"status": 500}, r"The Hub cannot serve alice/tiny now \(.*500.*\); run the same again later\."),
        (HEADERS, {"status": 503}, r"The Hub cannot serve alice/tiny now \(.*503.*\); run the same again later\."),
        (API, PORTAL, rf"What answers at \S+ about alice/tiny {NOT_THE_HUB}"),
        (HEADERS, PORTAL, rf"What answers at \S+ about alice/tiny {NOT_THE_HUB}"),
        ("/tree/", {"status": 200, "body": b'{"a": 1}'}, rf"What answers at \S+ about alice/tiny {NOT_THE_HUB}"),
        (API, {"status": 200, "body": b"{}"}, rf"What answers at \S+ about alice/tiny {NOT_THE_HUB}"),
        (FILE, PORTAL, rf"The connection to \S+ broke while working on alice/tiny \(Consistency check.*\); {AGAIN}"),
        ("/tree/", {"status": 200, "body": b"[]"}, r"The repository alice/tiny has no model: none of its files.*"),
        (API, {"halve": True}, rf"The connection to \S+ broke while working on alice/tiny \(.*\); {AGAIN}"),
        (FILE, {"halve": True}, rf"The connection to \S+ broke while working on alice/tiny \(.*\); {AGAIN}"),
        (API, {"stall": 0.5}, rf"The connection to \S+ broke while working on alice/tiny \(timed out\); {AGAIN}"),
        (FILE, {"stall": 0.5}, rf"The connection to \S+ broke while working on alice/tiny \(timed out\); {AGAIN}"),
    ],
    ids=str,
)
def test_fault_while_loading_is_one_sentence(
    request_: str, fault: dict[str, Any], sentence: str, hub: Hub, home: Interpreter, folder: Path, picture: str
) -> None:
    pushed(home, folder, "alice/tiny")
    hub.fail(request_, **fault)
    done = home.run(OPEN, picture=picture, folder=None)
    assert done["status"] == 2
    said = [line for line in done["lines"] if not line.startswith("Fetching") and line]
    assert len(said) == 1
    assert re.fullmatch(f"hivg: {sentence}", said[0])


@pytest.mark.parametrize("request_", [API, HEADERS, FILE])
def test_redirects_in_a_circle_are_named(
    request_: str, hub: Hub, home: Interpreter, folder: Path, picture: str
) -> None:
    pushed(home, folder, "alice/tiny")
    place = {API: "/api/models/x/y", HEADERS: "/x/y/resolve/main/z.safetensors", FILE: "/_large/x"}[request_]
    hub.fail(request_, status=307, headers={"Location": place})
    done = home.run(OPEN, picture=picture, folder=None)
    assert done["status"] == 2
    assert re.match(
        r"hivg: The Hub's answers about alice/tiny lead in a circle \(Exceeded .* redirects", done["lines"][-1]
    )


def test_a_broken_download_is_whole_the_next_time(
    hub: Hub, home: Interpreter, folder: Path, picture: str, tmp_path: Path
) -> None:
    pushed(home, folder, "alice/tiny")
    hub.fail(FILE, halve=True)
    assert home.run(OPEN, picture=picture, folder=str(tmp_path))["status"] == 2
    assert not list(tmp_path.rglob("model.safetensors"))
    hub.heal()
    assert home.run(OPEN, picture=picture, folder=str(tmp_path))["status"] == 0


@pytest.mark.parametrize("fault", [BUSY, {"status": 500}, PORTAL, {"stall": 0.5}], ids=str)
def test_a_cached_model_opens_while_the_hub_is_down(
    fault: dict[str, Any], hub: Hub, home: Interpreter, folder: Path, picture: str, tmp_path: Path
) -> None:
    pushed(home, folder, "alice/tiny")
    assert home.run(OPEN, picture=picture, folder=str(tmp_path))["status"] == 0
    hub.fail("/tree/", **fault)  # what checksums are compared with
    done = home.run(OPEN, picture=picture, folder=str(tmp_path))
    assert done["status"] == 0, done["lines"]


UPLOAD = "nothing incomplete is visible there. Run the same again."


@pytest.mark.parametrize(
    ("request_", "fault", "sentence"),
    [
        ("/preupload/", {"status": 403}, "use a name space of your own, or a token with the right to write there."),
        ("/commit/", BUSY, "run the same again in 7 seconds."),
        ("/commit/", {"status": 502}, "run the same again later."),
        ("/commit/", {"stall": 1.5}, UPLOAD),
        ("PUT /_large/", {"status": 500}, "run the same again later."),
        ("/objects/batch", {"halve": True}, UPLOAD),
        ("/api/whoami-v2", PORTAL, "then run the same again."),
        ("/repos/create", {"status": 500}, "run the same again later."),
    ],
    ids=str,
)
def test_fault_while_pushing_leaves_nothing_and_the_same_command_succeeds(
    request_: str, fault: dict[str, Any], sentence: str, hub: Hub, home: Interpreter, folder: Path
) -> None:
    hub.fail(request_, **fault)
    home.run(IMPATIENT.format(patience=1))
    done = push(home, folder, "alice/tiny", "--no-check")
    assert done["status"] == 2
    *_, said = done["output"].partition("hivg: ")  # behind a bar of progress
    assert said.endswith(f"{sentence}\n")
    assert said.count("\n") == 1
    repository = hub.repositories.get("alice/tiny")
    assert repository is None or repository.head.files.keys() == {".gitattributes"}
    hub.heal()
    pushed(home, folder, "alice/tiny")
    assert "model.safetensors" in hub.repositories["alice/tiny"].head.files


def test_a_commit_whose_answer_was_lost_is_found_by_the_next_push(hub: Hub, home: Interpreter, folder: Path) -> None:
    hub.fail("/commit/", halve=True)
    done = push(home, folder, "alice/tiny", "--no-check")
    assert done["status"] == 2
    assert done["output"].splitlines()[-1].endswith(UPLOAD)
    hub.heal()
    done = push(home, folder, "alice/tiny", "--no-check")
    assert done["status"] == 0
    assert "held already" in done["output"]
    assert len(hub.repositories["alice/tiny"].commits) == 2


def test_of_two_pushes_at_once_the_later_one_is_refused(hub: Hub, home: Interpreter, folder: Path) -> None:
    pushed(home, folder, "alice/tiny")
    theirs = {"README.md": b"theirs", ".gitattributes": b""}
    hub.before_commit = lambda: hub.repositories["alice/tiny"].commit("theirs", theirs) and None
    (folder / "README.md").write_text((folder / "README.md").read_text() + "\nmine\n")
    done = push(home, folder, "alice/tiny", "--update", "--no-check")
    assert done["status"] == 2
    assert done["output"].splitlines()[-1] == (
        "hivg: The repository alice/tiny changed meanwhile (A commit has happened since); look at it, then run the "
        "same again."
    )
    assert hub.repositories["alice/tiny"].head.files == theirs


@pytest.mark.parametrize("token", ["hf_alice secret", "hf_älice", "hf_al\x00ice"])
def test_a_token_that_no_header_can_carry_is_not_shown(token: str, hub: Hub, home: Interpreter, folder: Path) -> None:
    done = home.run(
        "from typer.testing import CliRunner\nfrom hivg_hf.cli import app\n"
        "done = CliRunner().invoke(app, ['push', folder, 'alice/tiny', '--token', token])\n"
        "result = {'status': done.exit_code, 'output': done.output}",
        folder=str(folder),
        token=token,
    )
    assert done["status"] == 2
    assert done["output"].startswith("hivg: The token holds spaces or letters that no token has; log in with")
    assert token not in done["output"]
    assert hub.requests == []


LOUD = """
import contextlib, io, logging, os, tempfile, traceback, pathlib
from hivg_hf.hub import download_checked, push_folder
heard, cache = io.StringIO(), tempfile.mkdtemp()
logger, handler = logging.getLogger(), logging.StreamHandler(heard)
logger.addHandler(handler)
# Not below INFO for the rest: the transport's own DEBUG lines show what a server sent, an echo of the token included.
levels = {"": logging.INFO, "hivg_hf": logging.DEBUG, "huggingface_hub": logging.DEBUG}
before = {name: logging.getLogger(name).level for name in levels}
for name, level in levels.items():
    logging.getLogger(name).setLevel(level)
with contextlib.redirect_stderr(heard), contextlib.redirect_stdout(heard):
    for work in (
        lambda: push_folder(folder, "alice/tiny", token=token, check=False, update=True),
        lambda: download_checked("alice/tiny", token=token, cache_dir=cache),
    ):
        try:
            work()
        except Exception:
            traceback.print_exc(file=heard)
logger.removeHandler(handler)
for name, level in before.items():
    logging.getLogger(name).setLevel(level)
written = [path for path in pathlib.Path(cache).rglob("*") if path.is_file() and token.encode() in path.read_bytes()]
result = [heard.getvalue(), [str(path) for path in written]]
"""
ECHO = {"X-Error-Message": "Invalid token hf_alice (Bearer hf_alice)"}


@pytest.mark.parametrize(
    ("request_", "fault"),
    [
        ("nothing", {}),
        (".", {"status": 403, "headers": ECHO}),
        (".", {"status": 400, "headers": ECHO}),
        ("/commit/|HEAD", {"status": 500, "headers": ECHO}),
        ("/tree/", PORTAL),
    ],
    ids=str,
)
def test_tokens_are_in_no_log_error_file_or_card(
    request_: str, fault: dict[str, Any], hub: Hub, home: Interpreter, folder: Path
) -> None:
    home.run(IMPATIENT.format(patience=1))
    hub.fail(request_, **fault)
    heard, files = home.run(LOUD, folder=str(folder), token="hf_alice")
    assert "hf_alice" not in heard
    assert files == []
    if "alice/tiny" in hub.repositories:
        assert not any(b"hf_alice" in data for data in hub.repositories["alice/tiny"].head.files.values())
