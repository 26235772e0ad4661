"""The demo page against strangers: raw HTTP clients that try what no browser sends."""

import errno
import http.client
import http.server
import io
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from helpers.web_client import MARK, Client, encoded, free_port
from hivg_hf import HiVGForVisualGrounding, HiVGProcessor, VisualGroundingPipeline
from hivg_hf.inference.web_page import build_page, serve

REFUSED = "The picture must be an example or one that you uploaded on this page: upload it again."
MOST_UPLOAD_MB = 1

pytest.importorskip("gradio", reason="gradio is not installed: pip install 'hivg_hf[demo]'")


class Slow:
    """A pipeline that does not answer the expression "stuck" until it is released."""

    def __init__(self, pipe: VisualGroundingPipeline):
        self.pipe = pipe
        self.release = threading.Event()
        self.started = threading.Semaphore(0)

    def __call__(self, image: Any, expressions: list[str], **options: Any) -> Any:
        if expressions == ["stuck"]:
            self.started.release()
            self.release.wait(60)
        return self.pipe(image, expressions, **options)


@pytest.fixture(scope="module")
def slow_pipe(tiny_model: HiVGForVisualGrounding, tiny_processor: HiVGProcessor) -> Slow:
    return Slow(VisualGroundingPipeline(tiny_model, processor=tiny_processor, device="cpu"))


@pytest.fixture(scope="module")
def port(slow_pipe: Slow) -> Iterator[int]:
    page, port = build_page(slow_pipe, "tiny", seconds=2), free_port()
    serve(page, port=port, queue_size=4, max_upload_mb=MOST_UPLOAD_MB, prevent_thread_lock=True, quiet=True)
    yield port
    slow_pipe.release.set()
    page.close()


@pytest.fixture
def client(port: int) -> Client:
    return Client(port)


@pytest.fixture(scope="module")
def photo() -> bytes:
    return encoded(np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8))


@pytest.fixture
def trap() -> Iterator[Any]:
    """A web server of this machine that must not be reached; `trap.paths` says what was asked of it."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            trap.paths.append(self.path)
            self.send_error(404)

        do_HEAD = do_POST = do_GET  # noqa: N815

        def log_message(self, *arguments: Any) -> None:
            pass

    trap = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    trap.paths = []
    threading.Thread(target=trap.serve_forever, daemon=True).start()
    yield trap
    trap.shutdown()
    trap.server_close()


@pytest.mark.parametrize("opens_page", [True, False], ids=["browser", "script"])
def test_an_honest_visitor_is_answered(port: int, photo: bytes, opens_page: bool) -> None:
    visitor = Client(port, opens_page)
    picture, heatmaps, table, message = visitor.answer(visitor.uploaded(photo), "the star\nthe red")
    assert [row[0] for row in table["data"]] == ["the star", "the red"]
    assert len(heatmaps) == 2
    assert message == ""
    drawn = visitor.send("GET", f"/gradio_api/file={picture['path']}")
    assert drawn.status == 200
    assert PIL.Image.open(io.BytesIO(drawn.body)).size == (480, 320)


def outside_files(tmp_path: Path) -> dict[str, Any]:
    """Payloads of the picture that name what no visitor uploaded; pairs of existing and missing ones."""
    folder = Path(os.environ["GRADIO_TEMP_DIR"])
    secret = tmp_path / "secret.png"
    secret.write_bytes(encoded(np.zeros((9, 9, 3), dtype=np.uint8)))
    link, planted, fifo = folder / "link.png", folder / "planted.png", folder / "fifo.png"
    if not link.is_symlink():
        link.symlink_to(secret)
        os.mkfifo(fifo)
        planted.write_bytes(secret.read_bytes())
    paths = {
        "existing": secret,
        "missing": tmp_path / "missing.png",
        "system file": "/etc/passwd",
        "missing system file": "/etc/no-such-file",
        "endless device": "/dev/zero",
        "standard input": "/dev/stdin",
        "process": "/proc/self/environ",
        "fifo": fifo,
        "link out": link,
        "planted inside": planted,
        "parent": f"{folder}/../{folder.name}/planted.png",
        "climbing": f"{folder}/../../etc/passwd",
        "folder": folder,
        "file URL": f"file://{secret}",
        "relative": "secret.png",
        "blank": "",
        "NUL": f"{folder}/\0.png",
        "lone surrogate": f"{folder}/\ud800.png",
        "long": f"{folder}/" + "a" * 5000,
        "data URL": "data:image/png;base64,iVBORw0KGgo=",
    }
    payloads: dict[str, Any] = {name: {"path": str(path), "meta": MARK} for name, path in paths.items()}
    payloads |= {f"{name} without mark": {"path": str(path)} for name, path in paths.items()}
    payloads |= {f"{name} as string": str(path) for name, path in paths.items()}
    payloads |= {
        "list": [{"path": str(secret)}],
        "number": 7,
        "true": True,
        "no path": {"meta": MARK},
        "path is a list": {"path": [str(secret)], "meta": MARK},
        "other mark": {"path": str(secret), "meta": {"_type": "gradio.Other"}},
        "stream": {"path": str(secret), "meta": MARK, "is_stream": True},
        "base64": {"url": "data:image/png;base64,iVBORw0KGgo="},
    }
    return payloads


def test_only_uploads_are_opened_and_all_else_is_refused_alike(client: Client, tmp_path: Path) -> None:
    for name, payload in outside_files(tmp_path).items():
        start = time.perf_counter()
        reply = client.ask(payload)
        assert (reply.status, reply.sentence) == (403, REFUSED), name
        assert time.perf_counter() - start < 2, name


@pytest.mark.parametrize("path", ["/gradio_api/queue/join", "/gradio_api/call/answer", "/gradio_api/run/answer"])
def test_no_entrance_takes_a_foreign_file(client: Client, tmp_path: Path, path: str) -> None:
    payloads = outside_files(tmp_path)
    for name in ("existing", "missing", "existing without mark", "endless device"):
        for place in range(5):
            data = [None, "the star", 0, True, False]
            data[place] = payloads[name]
            reply = client.post(path, {"data": data, "fn_index": 0, "session_hash": "abc"})
            assert (reply.status, reply.sentence) == (403, REFUSED), (name, place)
        for length in range(1, 8):  # whatever the form has
            longer = {"data": [payloads[name], *[0] * (length - 1)], "fn_index": 0, "session_hash": "abc"}
            assert client.post(path, longer).sentence == REFUSED, (name, length)
        nested = {"data": [None, [[payloads[name]]], 0, True, False], "fn_index": 0, "session_hash": "abc"}
        assert client.post(path, nested).sentence == REFUSED


def test_no_url_in_a_payload_is_fetched(client: Client, photo: bytes, trap: Any) -> None:
    url = f"http://127.0.0.1:{trap.server_port}/x.png"
    own = client.uploaded(photo)
    for payload in ({"path": url, "meta": MARK}, {"path": url}, url, {"url": url}, {"url": url, "meta": MARK}):
        assert client.ask(payload).sentence == REFUSED
    closed = f"http://127.0.0.1:{free_port()}/x.png"
    assert client.ask({"path": closed, "meta": MARK}).sentence == REFUSED  # as for an open port
    client.answer({**own, "url": url})  # the own upload is opened, whatever else the payload says
    client.answer(own, url)  # an expression that looks like an address is an expression
    for route in ("file=", "file/", "proxy=", "stream/"):
        for address in (url, url.replace("127.0.0.1", "localhost"), url.replace("http:", "http:/"), closed):
            reply = client.send("GET", f"/gradio_api/{route}{address}")
            assert reply.status == 404
            assert "127.0.0.1" not in reply.body.decode()
    assert trap.paths == []


def test_files_are_served_to_those_who_know_them_only(client: Client, tmp_path: Path) -> None:
    replies = set()
    for payload in outside_files(tmp_path).values():
        if not isinstance(payload, str) or "planted" in payload or not payload.isprintable() or not payload:
            continue
        for form in (payload, payload.replace("/", "%2f"), payload.replace("/", "%252f"), f"/{payload}"):
            reply = client.send("GET", f"/gradio_api/file={form}")
            replies.add((reply.status, reply.body))
    assert replies == {(404, json.dumps({"detail": REFUSED}).encode())}


@pytest.mark.parametrize("method", ["GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS"])
def test_routes_that_the_page_does_not_need_are_closed(client: Client, method: str) -> None:
    paths = """/monitoring /monitoring/summary /monitoring/key /gradio_api/component_server /gradio_api/deep_link
    /gradio_api/process_recording /gradio_api/vibe-edit /gradio_api/vibe-code /gradio_api/vibe-starter-queries
    /gradio_api/dev/reload /gradio_api/stream/abc /gradio_api/stream/a/b/0/playlist.m3u8 /gradio_api/mcp
    /gradio_api/custom_component/x/client/component/../../../secret.py /gradio_api/openapi.json /docs /redoc
    /gradio_api/call/v2/answer /gradio_api/file/etc/passwd /gradio_api/proxy=http://127.0.0.1 /openapi.json
    /gradio_api/runs /gradio_api/run-history/buckets /gradio_api/profiling/traces /pwa_icon/99999
    /assets/../../routes.py /assets/%2e%2e/%2e%2e/routes.py /static/..%2f..%2froutes.py //etc/passwd""".split()
    for path in paths:
        reply = client.send(method, path)
        assert reply.status in (404, 405), path
        assert b"gradio" not in reply.body
        assert b"Traceback" not in reply.body


def test_one_visitor_cannot_open_what_another_uploaded(port: int) -> None:
    first, second, script = Client(port, True), Client(port, True), Client(port)
    assert len({first.cookie, second.cookie}) == 2
    own = first.uploaded(encoded(np.full((20, 30, 3), 7, dtype=np.uint8)))
    assert first.send("GET", f"/gradio_api/file={own['path']}").status == 200
    assert first.answer(own)[2]["data"]
    for other in (second, script):
        assert other.ask(own).sentence == REFUSED
        assert other.send("GET", f"/gradio_api/file={own['path']}").sentence == REFUSED
    assert own == second.uploaded(encoded(np.full((20, 30, 3), 7, dtype=np.uint8)))  # who has the same bytes has them
    assert second.answer(own)[2]["data"]


def test_names_of_uploads_stay_inside_the_folder(client: Client, photo: bytes) -> None:
    folder = os.environ["GRADIO_TEMP_DIR"]
    for name in ("../../escaped.png", "/etc/escaped.png", "..", ".bashrc", "a\\..\\b.png", "<img src=x>.png", ""):
        reply = client.upload(photo, name)
        if reply.status == 200:
            (path,) = json.loads(reply.body)
            assert os.path.realpath(path).startswith(folder + os.sep)
            assert client.answer({"path": path, "meta": MARK})[2]["data"]
        else:
            assert reply.status in (400, 422)
            assert folder not in reply.body.decode()


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        (b'{"data": ["' + b"x" * 70_000 + b'"]}', 413, "What was sent is larger than 64 KB"),
        (b"[" * 60_000, 400, "must be a JSON object with a list `data`"),
        (b'{"data": ' + b"[" * 20_000 + b"]" * 20_000 + b"}", 400, "must be a JSON object"),
        (b'{"data": {}}', 400, "must be a JSON object"),
        (b"[]", 400, "must be a JSON object"),
        (b"", 400, "must be a JSON object"),
        (b"\xff\xfe", 400, "must be a JSON object"),
        (b'{"data": [1e999999, NaN', 400, "must be a JSON object"),
    ],
)
def test_bodies_that_are_no_question_are_refused(client: Client, body: bytes, status: int, sentence: str) -> None:
    reply = client.post("/gradio_api/call/answer", body)
    assert reply.status == status
    assert sentence in reply.sentence


def own_question(own: Any, **changed: Any) -> dict[str, Any]:
    values = {"image": own, "lines": "the star", "threshold": 0, "mask": True, "multiple": False, **changed}
    return {"data": list(values.values())}


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"lines": 7}, "The value of 'Expressions, one per line' must be a string, got 7."),
        ({"lines": ["a"]}, 'must be a string, got ["a"].'),
        ({"threshold": "high"}, 'must be a number from 0 to 1, got "high".'),
        ({"threshold": None}, "must be a number from 0 to 1, got null."),
        ({"threshold": True}, "must be a number from 0 to 1, got true."),
        ({"threshold": -1}, "must be a number from 0 to 1, got -1."),
        ({"threshold": float("nan")}, "must be a number from 0 to 1, got NaN."),
        ({"threshold": 10**400}, "must be a number from 0 to 1, got an integer of many digits."),
        ({"mask": "yes"}, "The value of 'Tint the object's pixels' must be true or false, got \"yes\"."),
        ({"multiple": {}}, "must be true or false, got {}."),
        ({"more": 0}, "`data` must have a value for each of 'Picture', "),
    ],
)
def test_values_of_a_wrong_type_are_refused_before_gradio_sees_them(
    client: Client, photo: bytes, capfd: pytest.CaptureFixture[str], changed: dict[str, Any], sentence: str
) -> None:
    question = own_question(client.uploaded(photo), **changed)
    for path, more in (("call/answer", {}), ("queue/join", {"fn_index": 1, "session_hash": "abc"})):
        reply = client.post(f"/gradio_api/{path}", question | more)
        assert reply.status == 400
        assert sentence in reply.sentence
    assert "Traceback" not in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    ("path", "more", "status", "sentence"),
    [
        ("call/nothing", {}, 404, "Unknown API name '/nothing': this page has /answer, /answer_1."),
        ("run/nothing", {}, 404, "Unknown API name '/nothing'"),
        ("call/" + "x" * 999, {}, 404, f"Unknown API name '/{'x' * 30}'"),
        ("queue/join", {"fn_index": 99, "session_hash": "abc"}, 404, "This page has no function 99."),
        ("queue/join", {"fn_index": -1, "session_hash": "abc"}, 404, "This page has no function -1."),
        ("run/predict", {"fn_index": 10**40}, 404, "This page has no function an integer of many digits."),
        ("queue/join", {"fn_index": "x", "session_hash": "abc"}, 400, '`fn_index` must be an integer, got "x".'),
        ("queue/join", {"fn_index": True, "session_hash": "abc"}, 400, "`fn_index` must be an integer, got true."),
        ("queue/join", {"session_hash": "abc"}, 400, "A question needs `fn_index`"),
        ("queue/join", {"fn_index": 1}, 400, "Session hash not found"),
        (
            "queue/join",
            {"fn_index": 1, "session_hash": "a" * 65},
            400,
            "`session_hash` must be a string of at most 64",
        ),
        ("queue/join", {"fn_index": 1, "session_hash": ""}, 400, "`session_hash` must be a string of at most 64"),
        ("queue/join", {"fn_index": 1, "session_hash": "\ud800"}, 400, "at most 64 letters, digits, - or _"),
        ("queue/join", {"fn_index": 1, "session_hash": "../../x"}, 400, "at most 64 letters, digits, - or _"),
        ("queue/join", {"fn_index": 1, "session_hash": "a\r\nb"}, 400, "at most 64 letters, digits, - or _"),
        ("queue/join", {"fn_index": 1, "session_hash": 7}, 400, "`session_hash` must be a string"),
        ("queue/join", {"fn_index": 1, "trigger_id": [], "session_hash": "a"}, 400, "`trigger_id` must be an integer"),
        ("run/load_example", {"data": [99]}, 400, "must be the number of an example, got 99."),
        ("run/load_example", {"data": [-1]}, 400, "must be the number of an example, got -1."),
        ("call/load_example", {"data": [None]}, 400, "must be the number of an example, got null."),
        ("call/load_example", {"data": [True]}, 400, "must be the number of an example, got true."),
        ("cancel", {}, 422, "The request lacks a field or has one of a wrong type."),
        ("cancel", {"event_id": "\ud800"}, 400, "The request lacks a field or has one of a wrong type."),
        ("reset", {"event_id": 7}, 422, "The request lacks a field or has one of a wrong type."),
    ],
)
def test_unknown_functions_and_sessions_are_refused_in_a_sentence(
    client: Client, photo: bytes, capfd: pytest.CaptureFixture[str], path: str, more: Any, status: int, sentence: str
) -> None:
    reply = client.post(f"/gradio_api/{path}", own_question(client.uploaded(photo)) | more)
    assert reply.status == status
    assert sentence in reply.sentence
    assert "Traceback" not in "".join(capfd.readouterr())


def test_what_a_script_says_of_its_upload_beside_the_path_is_not_read(
    client: Client, photo: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    own = client.uploaded(photo)
    for more in ({"orig_name": 5}, {"size": "big"}, {"mime_type": []}, {"is_stream": "x"}, {"url": "http://a/"}):
        assert client.answer({**own, **more})[2]["data"], more
    assert "Traceback" not in "".join(capfd.readouterr())


def test_addresses_that_gradio_trips_over_leave_no_traceback(
    client: Client, capfd: pytest.CaptureFixture[str]
) -> None:
    for path in ("queue/data?session_hash=nobody", "call/answer/nothing", "call/nothing/nothing"):
        stream = client.send("GET", f"/gradio_api/{path}")  # http.client raises where the answer is cut off
        assert b"404" in stream.body or b"event: error" in stream.body
    long_id = "/gradio_api/upload_progress?upload_id=" + "a" * 65
    for path in ("/assets/" + "a" * 300, "/static/" + "a/" * 3000, long_id):
        assert client.send("GET", path).status == 404
    assert client.send("GET", "/gradio_api/queue/data").status == 422
    assert client.send("GET", "/?" + "a" * 60_000).status == 200
    assert "Traceback" not in "".join(capfd.readouterr())


def part(disposition: str, data: bytes = b"abc") -> bytes:
    return b"--edge\r\nContent-Disposition: form-data; " + disposition.encode() + b"\r\n\r\n" + data + b"\r\n"


@pytest.mark.parametrize(
    ("kind", "body", "status"),
    [
        ("multipart/form-data", b"x", 400),
        ("multipart/form-data; boundary=", b"x", 400),
        ("multipart/form-data; boundary=" + "a" * 71, b"x", 400),
        ("application/json", b"{}", 400),
        ("", b"x", 400),
        ("multipart/form-data; boundary=edge", part('name="files"') + b"--edge--\r\n", 400),
        ("multipart/form-data; boundary=edge", b"\0" * 999, 400),
        ('multipart/form-data; charset=utf-8; boundary="edge"', part('name="files"; filename="a"') + b"--edge--", 200),
        ("multipart/form-data; boundary=edge", part('name="other"; filename="a"') + b"--edge--\r\n", 200),
        ("multipart/form-data; boundary=edge", part('name="files"; filename="a"'), 200),  # the end is missing
    ],
)
def test_odd_uploads_are_refused_and_leave_no_file(
    client: Client, capfd: pytest.CaptureFixture[str], kind: str, body: bytes, status: int
) -> None:
    reply = client.send("POST", "/gradio_api/upload", body, {"Content-Type": kind} if kind else {})
    assert reply.status == status
    wait_until(lambda: not unfinished())
    assert "Traceback" not in "".join(capfd.readouterr())


def unfinished() -> list[str]:
    return [path.name for path in Path(os.environ["GRADIO_TEMP_DIR"]).glob("tmp*") if path.is_file()]


def break_off(port: int, path: str, kind: str, sent: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port))
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nContent-Length: 100000\r\n\r\n"
    connection.sendall(head.encode() + sent)
    return connection


def test_uploads_and_questions_that_break_off_leave_nothing(
    client: Client, photo: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    upload = part('name="files"; filename="x.png"', bytes(20_000))
    waiting = break_off(client.port, "/gradio_api/upload", "multipart/form-data; boundary=edge", upload)
    wait_until(unfinished)
    for path in ("/gradio_api/upload", "/gradio_api/upload?upload_id=abc"):
        break_off(client.port, path, "multipart/form-data; boundary=edge", upload).close()
    for path in ("/gradio_api/call/answer", "/gradio_api/cancel"):
        break_off(client.port, path, "application/json", b'{"data": ').close()
    assert client.answer(client.uploaded(photo))[2]["data"]
    assert unfinished()  # one is still coming
    waiting.close()
    wait_until(lambda: not unfinished())
    assert "Traceback" not in "".join(capfd.readouterr())


def test_uploads_that_never_end_have_a_limit_together(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hivg_hf.inference.web_guard.MOST_UPLOADED_BYTES", 50_000)
    upload = part('name="files"; filename="x.png"', bytes(60_000))
    waiting = break_off(client.port, "/gradio_api/upload", "multipart/form-data; boundary=edge", upload)
    wait_until(unfinished)
    wait_until(lambda: client.upload(b"abc").status == 429)
    monkeypatch.setattr("hivg_hf.inference.web_guard.UNFINISHED_SECONDS", -1)
    waiting.close()
    wait_until(lambda: client.upload(b"abc").status == 200)


def test_a_full_disk_is_named_to_the_visitor_and_in_one_line_of_the_log(
    client: Client, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("gradio.route_utils.NamedTemporaryFile", fail)
    reply = client.upload(b"abc")
    assert (reply.status, reply.sentence) == (503, "The page has no room for uploads at the moment: try again later.")
    logged = "".join(capfd.readouterr())
    assert "Traceback" not in logged


def wait_until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("chunked", [False, True], ids=["length given", "chunked"])
def test_uploads_end_at_the_limit(client: Client, chunked: bool) -> None:
    assert client.upload(bytes(2**20 - 1000)).status == 200
    head = b'--edge\r\nContent-Disposition: form-data; name="files"; filename="x.png"\r\n\r\n'
    parts = [head, *[bytes(2**16)] * 64, b"\r\n--edge--\r\n"]
    reply = client.send(
        "POST",
        "/gradio_api/upload",
        iter(parts) if chunked else b"".join(parts),
        {"Content-Type": "multipart/form-data; boundary=edge"},
    )
    assert reply.status == 413
    assert "larger than 1 MB" in reply.sentence
    field = b'--edge\r\nContent-Disposition: form-data; name="text"\r\n\r\n' + bytes(2**21) + b"\r\n--edge--\r\n"
    reply = client.send("POST", "/gradio_api/upload", field, {"Content-Type": "multipart/form-data; boundary=edge"})
    assert reply.status == 413


def test_what_cannot_be_answered_names_no_path_of_the_server(client: Client, photo: bytes) -> None:
    folder = os.environ["GRADIO_TEMP_DIR"]
    own = client.uploaded(photo)
    for values in (
        (client.uploaded(b"no picture"), "the star"),
        (client.uploaded(photo[:100]), "the star"),
        (own, ""),
        (own, "x" * 501),
        (own, "a\n" * 17),
        (None, "the star"),
    ):
        stream = client.ask(*values).body.decode()
        assert folder not in stream
        assert "Traceback" not in stream
    for threshold in ("high", float("nan"), -1, 1e300, [], None):
        assert "Traceback" not in client.ask(own, "the star", threshold).body.decode()


def test_a_stuck_question_does_not_block_the_next_and_ends_with_a_sentence(
    client: Client, photo: bytes, slow_pipe: Slow
) -> None:
    own, said = client.uploaded(photo), []
    stuck = threading.Thread(target=lambda: said.append(client.answer(own, "stuck")[3]))
    stuck.start()
    assert slow_pipe.started.acquire(timeout=10)
    start = time.perf_counter()
    for _ in range(3):
        assert client.answer(own)[2]["data"][0][0] == "the star"
    assert time.perf_counter() - start < 2
    stuck.join(10)
    assert said == ["⚠ This took longer than 2 seconds: send a smaller picture or fewer expressions."]
    assert client.send("GET", "/health").status == 200
    assert client.answer(own)[2]["data"]


def test_a_page_under_a_path_answers_whether_or_not_the_proxy_takes_it_off(slow_pipe: Slow, photo: bytes) -> None:
    page, port = build_page(slow_pipe, "tiny"), free_port()
    serve(page, port=port, root_path="/hivg", prevent_thread_lock=True, quiet=True)
    try:
        client = Client(port)
        assert client.answer(client.uploaded(photo))[2]["data"]
        for path in ("/health", "/hivg/health", "/config", "/hivg/config"):
            assert client.send("GET", path).status == 200
        assert json.loads(client.send("GET", "/config").body)["root"].endswith("/hivg")
        for path in ("/hivg/monitoring", "/hivg/hivg/health", "/other/health", "/hivg/gradio_api/file=/etc/passwd"):
            assert client.send("GET", path).status == 404
    finally:
        page.close()


def test_the_oldest_uploads_make_room(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [client.uploaded(bytes([n]) * 1000)["path"] for n in range(3)]
    assert all(Path(path).is_file() for path in paths)
    monkeypatch.setattr("hivg_hf.inference.web_guard.MOST_UPLOADED_BYTES", 2500)
    newest = client.uploaded(bytes([9]) * 1000)["path"]
    assert [Path(path).is_file() for path in (*paths, newest)] == [False, False, True, True]


def test_a_full_queue_says_to_come_back(client: Client, photo: bytes, slow_pipe: Slow) -> None:
    own = client.uploaded(photo)
    question = {"data": [own, "stuck", 0, True, False]}
    replies = [client.post("/gradio_api/call/answer", question) for _ in range(8)]
    assert [reply.status for reply in replies][-1] == 429
    assert replies[-1].sentence == "Too many visitors are waiting: try again in a few seconds."
    assert int(replies[-1].headers["retry-after"]) > 0
    slow_pipe.release.set()
    deadline = time.monotonic() + 20
    while client.post("/gradio_api/call/answer", question).status != 200:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert json.loads(client.send("GET", "/health").body) == {"status": "ok"}
