"""The bytes of a picture from a file, a URL, base64 text or a file object: bounded in number and in time."""

import base64
import binascii
import http.client
import io
import os
import queue
import re
import stat
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any, BinaryIO

# Larger than any picture within the limit on pixels needs, and small enough to be held in memory.
MAX_BYTES = 2**29
DOWNLOAD_TIMEOUT_SECONDS = 30.0
CHUNK_BYTES = 2**20
SHORTEST_BASE64 = 64  # characters; the smallest pictures take about as many
FIRST_BYTES = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*")
SPECIAL_FILES = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def open_regular_file(path: str | os.PathLike[str]) -> BinaryIO:
    """Open an image file for reading; whether it holds an image is not looked at.

    Raises:
        FileNotFoundError: If nothing has this name.
        ValueError: If it is a folder, a pipe, a device or a socket, is empty, or exceeds `MAX_BYTES`.
        OSError: If it may not be read.
    """
    path = os.fsdecode(path)
    try:
        status = os.stat(path)
        if stat.S_ISREG(status.st_mode) and 0 < status.st_size <= MAX_BYTES:
            return open(path, "rb")
    except PermissionError:
        raise PermissionError(f"The image file {shown(path)} may not be read: permission denied.") from None
    except (OSError, ValueError):  # also a name that is too long, or has a NUL
        raise FileNotFoundError(f"Image file not found: {shown(path)}.") from None
    if stat.S_ISDIR(status.st_mode):
        raise ValueError(f"{shown(path)} is a folder, where one image file was expected.")
    if not stat.S_ISREG(status.st_mode):
        kind = SPECIAL_FILES.get(stat.S_IFMT(status.st_mode), "a special file")
        raise ValueError(f"{shown(path)} is {kind}, where an image file was expected.")
    if status.st_size == 0:
        raise ValueError(f"The image file {shown(path)} is empty (0 bytes).")
    raise ValueError(f"The image file {shown(path)} has {status.st_size} bytes, more than the {MAX_BYTES} allowed.")


def file_object_bytes(file: Any, name: str) -> bytes:
    """Everything in an open binary file, from its start where it can be rewound.

    Raises:
        TypeError: If it is open for text, or its `read` gives no bytes.
        ValueError: If it is closed, fails, or exceeds `MAX_BYTES`.
    """
    if isinstance(file, io.TextIOBase):
        raise TypeError(f"{capital(name)} is open for text: open it in binary mode, as in open(path, 'rb').")
    content = bytearray()
    try:
        if not hasattr(file, "seekable") or file.seekable():
            file.seek(0)  # as Pillow does: what was just written into a BytesIO is meant from its start
    except (AttributeError, OSError):
        pass
    except ValueError as error:
        raise ValueError(f"{capital(name)} cannot be read ({error}).") from None
    while True:
        try:
            chunk = file.read(CHUNK_BYTES)
        except Exception as error:  # any object with a `read` may be given
            raise ValueError(f"{capital(name)} cannot be read ({error}).") from None
        if not isinstance(chunk, (bytes, bytearray, memoryview, type(None))):
            raise TypeError(f"{capital(name)} gives {type(chunk).__name__} where bytes were expected.")
        if not chunk:
            return bytes(content)
        content += chunk
        if len(content) > MAX_BYTES:
            raise ValueError(f"{capital(name)} has more than the {MAX_BYTES} bytes allowed.")


def data_url_bytes(url: str) -> bytes:
    """The picture in a `data:image/...;base64,` URL, which may have line breaks and percent escapes."""
    header, _, payload = url.partition(",")
    header = header.strip().lower()
    if not header.startswith("data:image/") or not header.endswith(";base64"):
        raise ValueError(f"Expected a data URL 'data:image/...;base64,...', got {shown(url, 40)}.")
    return _decode_base64(urllib.parse.unquote(payload) if "%" in payload else payload, "The data URL")


def file_url_path(url: str) -> str:
    """The path that a `file:` URL names, as `Path.as_uri()` writes it.

    Raises:
        ValueError: If it names another machine.
    """
    rest = url.partition(":")[2]
    host, path = "", rest
    if rest.startswith("//"):
        host, slash, path = rest[2:].partition("/")
        path = slash + path
    if host.lower() not in ("", "localhost"):
        raise ValueError(f"The URL {shown(url)} names a file of the machine {shown(host)}: give a path on this one.")
    return urllib.request.url2pathname(path)


def base64_bytes(text: str) -> bytes | None:
    """The picture that a text holds in base64; None where the text does not begin as a picture does."""
    if len(text) < SHORTEST_BASE64:
        return None
    try:
        head = base64.b64decode(re.sub(r"\s", "", text[:200]).translate(URL_SAFE)[:16], validate=True)
    except (binascii.Error, ValueError):
        return None
    if not head.startswith(FIRST_BYTES) and head[4:8] != b"ftyp":
        return None
    return _decode_base64(text, "A text that begins as a base64 picture")


URL_SAFE = str.maketrans("-_", "+/")


def _decode_base64(text: str, name: str) -> bytes:
    if len(text) > MAX_BYTES * 3 // 2:
        raise ValueError(f"{name} has {len(text)} characters, more than the {MAX_BYTES * 3 // 2} allowed.")
    compact = re.sub(r"\s", "", text).translate(URL_SAFE)
    try:
        return base64.b64decode(compact + "=" * (-len(compact) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"{name} does not hold valid base64: {error}.") from None


def download(url: str, timeout: float | None = None) -> bytes:
    """Fetch a picture over HTTP, following redirects to HTTP only.

    Args:
        url: Where it is.
        timeout: Seconds for the whole download. Defaults to 30.

    Raises:
        ConnectionError: If it cannot be fetched in time, or exceeds `MAX_BYTES`.
    """
    seconds = timeout or DOWNLOAD_TIMEOUT_SECONDS
    outcome: queue.SimpleQueue[bytes | Exception] = queue.SimpleQueue()
    # A thread, since no timeout of a socket ends a name look-up or a server that sends a byte now and then.
    threading.Thread(target=lambda: outcome.put(_fetch(url, seconds)), daemon=True).start()
    try:
        result = outcome.get(timeout=seconds)
    except queue.Empty:
        result = TimeoutError(f"it took longer than {seconds:g} seconds")
    if isinstance(result, bytes):
        return result
    reason = f"HTTP {result.code} {result.reason}" if isinstance(result, urllib.error.HTTPError) else str(result)
    raise ConnectionError(f"The image {shown(url)} could not be fetched: {' '.join(reason.split())}.") from None


def _fetch(url: str, seconds: float) -> bytes | Exception:
    deadline = time.monotonic() + seconds
    content = bytearray()
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "hivg_hf"})
        with _http_opener().open(request, timeout=seconds) as response:
            expected = response.length
            if expected is not None and expected > MAX_BYTES:
                raise ValueError(f"it has {expected} bytes, more than the {MAX_BYTES} allowed")
            while chunk := response.read1(CHUNK_BYTES):
                content += chunk
                if len(content) > MAX_BYTES:
                    raise ValueError(f"it has more than the {MAX_BYTES} bytes allowed")
                if time.monotonic() > deadline:
                    raise TimeoutError(f"it took longer than {seconds:g} seconds")
        if expected is not None and len(content) < expected:
            raise ConnectionError(f"the connection ended after {len(content)} of {expected} bytes")
    except (OSError, ValueError, http.client.HTTPException) as error:
        return error
    return bytes(content)


def _http_opener() -> urllib.request.OpenerDirector:
    """HTTP and nothing else: urllib's default opener would follow a redirect to FTP."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPErrorProcessor,
        urllib.request.UnknownHandler,
    ):
        opener.add_handler(handler())
    return opener


def shown(text: str, limit: int = 200) -> str:
    """A name in quotes for a message: on one line, and not of any length."""
    return repr(text if len(text) <= limit else text[: limit - 3] + "...")


def capital(name: str) -> str:
    return name[:1].upper() + name[1:]


__all__ = [
    "MAX_BYTES",
    "base64_bytes",
    "data_url_bytes",
    "download",
    "file_object_bytes",
    "file_url_path",
    "open_regular_file",
]
