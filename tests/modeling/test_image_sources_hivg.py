"""Bytes of pictures come from anywhere a user keeps them, and never without an end."""

import base64
import io
import os
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from hivg_hf.modeling import image_sources_hivg
from hivg_hf.modeling.image_loading_hivg import load_grounding_image


def encoded(format: str = "PNG", size: tuple[int, int] = (40, 30)) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", size, (200, 30, 60)).save(buffer, format)
    return buffer.getvalue()


@pytest.fixture
def small_limit(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(image_sources_hivg, "MAX_BYTES", 3_000_000)
    return 3_000_000


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        kind = self.path[1:]
        if kind == "ftp":
            self.send_response(302)
            self.send_header("Location", "ftp://127.0.0.1/picture.png")
            self.end_headers()
            return
        self.send_response(200)
        if kind == "announced":
            self.send_header("Content-Length", str(10**12))
        if kind == "cut":
            self.send_header("Content-Length", "5000")
        self.end_headers()
        try:
            if kind == "cut":
                self.wfile.write(encoded()[:50])
            while kind == "endless":
                self.wfile.write(b"\x89PNG" * 50_000)
            for _ in range(100 if kind == "dripping" else 0):
                self.wfile.write(b"\x89")
                self.wfile.flush()
                time.sleep(0.1)
        except OSError:
            pass

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    httpd.server_close()


@pytest.mark.parametrize("kind", ["endless", "announced"])
def test_a_body_without_end_is_refused_by_its_bytes(server: str, small_limit: int, kind: str) -> None:
    with pytest.raises(ConnectionError, match=rf"{kind}' could not be fetched: it has .*{small_limit}"):
        load_grounding_image(f"{server}/{kind}")


def test_a_body_that_drips_is_refused_by_the_clock(server: str) -> None:
    start = time.monotonic()
    with pytest.raises(ConnectionError, match=r"longer than 0\.5 seconds"):
        load_grounding_image(f"{server}/dripping", timeout=0.5)
    assert time.monotonic() - start < 3


def test_a_server_that_never_answers_is_refused_by_the_clock() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        with pytest.raises(ConnectionError, match="could not be fetched"):
            load_grounding_image(f"http://127.0.0.1:{silent.getsockname()[1]}/x.png", timeout=0.5)


def test_a_cut_body_and_other_protocols_are_named(server: str) -> None:
    with pytest.raises(ConnectionError, match="ended after 50 of 5000 bytes"):
        load_grounding_image(f"{server}/cut")
    with pytest.raises(ConnectionError, match="could not be fetched"):
        load_grounding_image(f"{server}/ftp")
    for url in ("ftp://127.0.0.1/x.png", "s3://bucket/x.png"):
        with pytest.raises(ValueError, match="neither a path nor an http"):
            load_grounding_image(url)


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(tmp_path / "s.png"))
        for name, kind in {"pipe.png": "a named pipe", "zero.png": "a device", "s.png": "a socket"}.items():
            with pytest.raises(ValueError, match=rf"{name}' is {kind}, where an image file was expected"):
                load_grounding_image(tmp_path / name)
    with (tmp_path / "sparse.png").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(ValueError, match=r"sparse\.png' has 1099511627776 bytes, more than"):
        load_grounding_image(tmp_path / "sparse.png")


@pytest.mark.parametrize("name", ["absent\0.png", "a" * 5000 + ".png", "absent\n.png", ""])
def test_impossible_names_are_not_found_in_one_line(name: str) -> None:
    with pytest.raises(FileNotFoundError, match="Image file not found: '") as caught:
        load_grounding_image(name)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_file_objects_are_read_from_their_start(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded())
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (40, 30)).save(buffer, "PNG")  # its position is now the end
    unbuffered = (tmp_path / "a.png").open("rb", buffering=0)
    read_end, write_end = os.pipe()
    os.write(write_end, encoded())
    os.close(write_end)
    with (tmp_path / "a.png").open("rb") as file, unbuffered, os.fdopen(read_end, "rb") as pipe:
        for source in (buffer, io.BytesIO(encoded()), file, unbuffered, pipe, file):
            assert load_grounding_image(source).size == (40, 30)


def test_file_objects_that_cannot_be_read_are_named(tmp_path: Path, small_limit: int) -> None:
    class Endless:
        def read(self, size: int) -> bytes:
            return b"\x89" * size

    class Coroutine:
        def read(self, size: int) -> Any:
            return object()

    closed = io.BytesIO(encoded())
    closed.close()
    with pytest.raises(TypeError, match="open for text"):
        load_grounding_image(io.StringIO("star"))
    with pytest.raises(ValueError, match=r"file object cannot be read \(I/O operation on closed file"):
        load_grounding_image(closed)
    with pytest.raises(ValueError, match=f"more than the {small_limit} bytes"):
        load_grounding_image(Endless())
    with pytest.raises(TypeError, match="gives object where bytes"):
        load_grounding_image(Coroutine())
    with pytest.raises(ValueError, match="empty"):
        load_grounding_image(io.BytesIO())


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "AVIF"])
def test_base64_of_every_format_is_a_picture(format: str) -> None:
    data = encoded(format)
    plain = base64.b64encode(data).decode()
    escaped = plain.replace("+", "%2B").replace("/", "%2F").replace("=", "%3D")
    for text in (
        plain,
        base64.encodebytes(data).decode(),
        base64.urlsafe_b64encode(data).decode().rstrip("="),
        f"data:image/{format.lower()};base64,{plain}",
        f"DATA:image/x;charset=utf-8;BASE64,{escaped}",
        f"data:image/x;base64,\n{base64.encodebytes(data).decode()}",
    ):
        assert load_grounding_image(text).size == (40, 30)


def test_text_that_is_not_base64_is_a_file_that_is_missing() -> None:
    for text in ("photos/holidays/twentytwentyfive/summer/beach/withthechildren/IMG00012", "the star " * 20):
        with pytest.raises(FileNotFoundError, match="Image file not found"):
            load_grounding_image(text)
    damaged = base64.b64encode(encoded()).decode()
    with pytest.raises(ValueError, match="begins as a base64 picture does not hold valid base64"):
        load_grounding_image(damaged[:80] + "?" + damaged[80:])
    with pytest.raises(ValueError, match="The image given as base64 is truncated"):
        load_grounding_image(damaged[:100])
    with pytest.raises(ValueError, match=r"Expected a data URL 'data:image/\.\.\.;base64,\.\.\.', got 'data:text"):
        load_grounding_image("data:text/html;base64,AAAA")
