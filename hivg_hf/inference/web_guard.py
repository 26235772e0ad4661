"""What stands between the network and gradio: which routes answer, which files may be opened, how much may be sent.

gradio serves far more than the page needs (a proxy, component functions, streams), fetches URLs that a payload names,
and takes request bodies of any size. This layer answers the page's own routes only, and lets a payload name a file
only if it is an example or was uploaded by the same visitor. What it refuses, it refuses with the same sentence
whether or not the file exists, and before the file system is asked about anything outside the page's folder.
"""

import json
import logging
import os
import re
import secrets
import stat
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from .web_questions import QuestionError, checked_question

logger = logging.getLogger(__name__)

COOKIE = "hivg_visitor"
FILE_MARK = {"_type": "gradio.FileData"}
FILE_KEYS = frozenset({"path", "url", "meta"})
# Expressions are short; the rest of a question is a file's name and gradio's own fields.
MOST_QUESTION_BYTES = 64 * 1024
# Multipart boundaries and headers around an upload.
UPLOAD_MARGIN_BYTES = 64 * 1024
# The oldest uploads are deleted where more are kept.
MOST_UPLOADS = 10_000
MOST_UPLOADED_BYTES = 2 * 2**30
# What gradio writes an upload to while it comes, and leaves there where it does not come whole.
UNFINISHED = re.compile(r"tmp[a-z0-9_]{8}")
UNFINISHED_SECONDS = 60
MOST_UPLOAD_ID = 64

_FILE = re.compile(r"/gradio_api/file=(?P<path>.+)", re.DOTALL)
_READABLE = re.compile(
    r"/|/config/?|/(assets|static|svelte)/[\w./-]{1,200}|/(gradio_api/)?theme\.css|/favicon\.ico|/robots\.txt|/manifest\.json"
    r"|/pwa_icon|/gradio_api/(info/?|app_id/?|startup-events|queue/data|queue/status|upload_progress)"
    r"|/gradio_api/heartbeat/\w{1,64}|/gradio_api/call/(?!v2/)\w+/\w+"
    r"|/(gradio_api/)?(user|token|login_check|logout)/?",
    re.ASCII,
)
# `run` chooses an example; gradio itself refuses questions there, which would pass by its queue.
_QUESTION = re.compile(r"/gradio_api/(queue/join|call/\w+|run/\w+)/?", re.ASCII)
_SMALL_POST = re.compile(r"/gradio_api/(cancel|reset)/?|/login/?", re.ASCII)
_UPLOAD = re.compile(r"/gradio_api/upload/?", re.ASCII)
_STREAM = re.compile(r"/gradio_api/(queue/data|call/\w+/\w+)", re.ASCII)
# RFC 2046, 5.1.1
_UPLOAD_TYPE = re.compile(r"multipart/form-data\s*;(.*;)?\s*boundary=(\"[^\"]{1,70}\"|[^\s\";]{1,70})\s*(;.*)?", re.I)

NOT_THIS_FILE = "The picture must be an example or one that you uploaded on this page: upload it again."
NOT_A_ROUTE = "This page does not serve that address."
NOT_A_QUESTION = "A question must be a JSON object with a list `data`, as gradio's clients send it."
NOT_AN_UPLOAD = "An upload must be a form (multipart/form-data) with the picture as its file `files`."
NOT_KEPT = "The page has no room for uploads at the moment: try again later."
NOT_UNDERSTOOD = "The request lacks a field or has one of a wrong type."
BUSY = "Too many visitors are waiting: try again in a few seconds."


# Uploads that are coming, by folder: pages of one process share theirs.
_uploading: Counter[str] = Counter()


class PageGuard:
    """ASGI middleware around gradio's app.

    Args:
        app: The application inside.
        folder: Where gradio keeps uploads, examples and answers. What is there when the guard is made are examples.
        most_upload_bytes: Largest upload.
        is_healthy: What `/health` reports: status 200 where it returns True, else 503.
        functions: What the page answers, by number: its `fns`.
    """

    def __init__(
        self,
        app: Any,
        folder: str | Path,
        most_upload_bytes: int,
        is_healthy: Callable[[], bool],
        functions: Mapping[int, Any],
    ):
        self._app = app
        self._functions = functions
        self._folder = os.path.realpath(folder)
        self._most_upload_bytes = most_upload_bytes
        self._is_healthy = is_healthy
        self._examples = frozenset(str(path) for path in Path(self._folder).rglob("*") if path.is_file())
        # Who uploaded a file; "" stands for clients that keep no cookies.
        self._uploaders: dict[str, set[str]] = {}
        self._bytes: dict[str, int] = {}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1008})
        # Proxies that show the page under a path take it off before they pass a request on, or leave it.
        path = scope["path"].removeprefix(scope.get("root_path") or "")
        method, visitor = scope["method"], _visitor(scope)
        if method in ("GET", "HEAD"):
            return await self._read(scope, receive, send, path, visitor)
        if method == "POST" and _UPLOAD.fullmatch(path):
            return await self._upload(scope, receive, send, visitor)
        if method == "POST" and _QUESTION.fullmatch(path):
            return await self._question(scope, receive, send, path, visitor)
        if method == "POST" and _SMALL_POST.fullmatch(path):
            return await self._limited(scope, receive, send, MOST_QUESTION_BYTES)
        await _refuse(send, 404, NOT_A_ROUTE)

    async def _read(self, scope: Any, receive: Any, send: Any, path: str, visitor: str) -> None:
        if path == "/health":
            healthy = self._is_healthy()
            return await _answer(send, 200 if healthy else 503, {"status": "ok" if healthy else "stuck"})
        if file := _FILE.fullmatch(path):
            if not self._may_open(file["path"], visitor, answers=True):
                return await _refuse(send, 404, NOT_THIS_FILE)
        elif not _READABLE.fullmatch(path) or ".." in path:
            return await _refuse(send, 404, NOT_A_ROUTE)
        if path == "/" and not visitor:
            send = _setting_cookie(send, secure=scope.get("scheme") == "https")
        if _STREAM.fullmatch(path):
            return await self._stream(scope, receive, send)
        if len(_upload_id(scope)) > MOST_UPLOAD_ID:
            return await _refuse(send, 404, NOT_A_ROUTE)
        await self._app(scope, receive, _in_a_sentence(send))

    async def _stream(self, scope: Any, receive: Any, send: Any) -> None:
        """Events of a session. Where there is none, gradio says so in an event, which browsers understand, and raises
        when it is too late for a status."""
        has_begun = False

        async def note(message: Any) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self._app(scope, receive, _in_a_sentence(note))
        except RuntimeError as error:
            if not has_begun or getattr(error.__cause__, "status_code", None) != 404:
                raise
            await send({"type": "http.response.body", "body": b""})

    async def _upload(self, scope: Any, receive: Any, send: Any, visitor: str) -> None:
        replies = bytearray()
        status = 0

        async def record(message: Any) -> None:
            nonlocal status
            status = message.get("status", status)
            replies.extend(message.get("body", b""))
            if message["type"] == "http.response.body" and not message.get("more_body") and status == 200:
                self._remember(json.loads(replies), visitor)
            await send(message)

        if not _UPLOAD_TYPE.fullmatch(_header(scope, b"content-type")) or len(_upload_id(scope)) > MOST_UPLOAD_ID:
            return await _refuse(send, 400, NOT_AN_UPLOAD)
        if sum(size for _, size, _ in self._unfinished()) > MOST_UPLOADED_BYTES:
            return await _refuse(send, 429, BUSY, [(b"retry-after", b"60")])
        _uploading[self._folder] += 1
        try:
            await self._limited(scope, receive, record, self._most_upload_bytes + UPLOAD_MARGIN_BYTES)
        finally:
            _uploading[self._folder] -= 1
            self._sweep()

    async def _question(self, scope: Any, receive: Any, send: Any, path: str, visitor: str) -> None:
        body = await _read_body(receive, MOST_QUESTION_BYTES)
        if body is None:
            return await _refuse(send, 413, _too_large(MOST_QUESTION_BYTES))
        try:
            question = json.loads(body)
            if not isinstance(question, dict) or not isinstance(question.get("data"), list):
                return await _refuse(send, 400, NOT_A_QUESTION)
            # What was clicked: nothing here reads it, and it may name files.
            question.pop("event_data", None)
            # The form's first value is a file, however many follow; an example that is clicked sends its number alone.
            first, *others = question["data"] or [None]
            is_form = bool(others) or not isinstance(first, int)
            named = [*_files_in(question), *([first] if is_form and first is not None else [])]
            if not all(self._is_upload(entry, visitor) for entry in named):
                return await _refuse(send, 403, NOT_THIS_FILE)
            body = json.dumps(checked_question(self._functions, path, question)).encode()
        except QuestionError as error:
            return await _refuse(send, error.status, str(error))
        except (ValueError, RecursionError):  # not JSON, not UTF-8, or nested too deeply
            return await _refuse(send, 400, NOT_A_QUESTION)
        headers = [(name, value) for name, value in scope["headers"] if name != b"content-length"]
        scope = {**scope, "headers": [*headers, (b"content-length", str(len(body)).encode())]}
        await self._app(scope, _replay(body, receive), _in_a_sentence(send))

    async def _limited(self, scope: Any, receive: Any, send: Any, most_bytes: int) -> None:
        """Pass the body on while it comes, up to a limit; what gradio cannot read is refused."""
        received, started, is_gone = 0, False, False

        async def count() -> Any:
            nonlocal received, is_gone
            message = await receive()
            received += len(message.get("body", b""))
            is_gone = is_gone or message["type"] == "http.disconnect"
            return message if received <= most_bytes else {"type": "http.disconnect"}

        async def note(message: Any) -> None:
            nonlocal started
            if received <= most_bytes:
                started = True
                await send(message)

        length = _header(scope, b"content-length")
        received = int(length) if length.isdigit() and int(length) > most_bytes else 0
        try:
            if not received:
                await self._app(scope, count, _in_a_sentence(note))
        except Exception as error:
            if started:
                raise
            if not is_gone and received <= most_bytes:
                logger.warning("%s was refused: %s: %s", scope["path"], type(error).__name__, error)
                full = isinstance(error, OSError)
                wrong = NOT_AN_UPLOAD if scope["path"].rstrip("/").endswith("/upload") else NOT_UNDERSTOOD
                return await _refuse(send, 503 if full else 400, NOT_KEPT if full else wrong)
        if received > most_bytes and not started:
            await _refuse(send, 413, _too_large(most_bytes))

    def _unfinished(self) -> list[tuple[str, int, float]]:
        """Path, bytes and time of the last of them, of what uploads have not finished."""
        found = []
        with os.scandir(self._folder) as entries:
            for entry in entries:
                if UNFINISHED.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                    state = entry.stat(follow_symlinks=False)
                    found.append((entry.path, state.st_size, state.st_mtime))
        return found

    def _sweep(self) -> None:
        """Delete what uploads that broke off left, which gradio forgets."""
        recent = time.time() - UNFINISHED_SECONDS
        for path, _, written in self._unfinished():
            if not _uploading[self._folder] or written < recent:
                Path(path).unlink(missing_ok=True)

    def _remember(self, paths: Iterable[str], visitor: str) -> None:
        for path in paths:
            self._uploaders.setdefault(path, set()).add(visitor)
            self._bytes[path] = os.path.getsize(path) if os.path.exists(path) else 0
        while len(self._bytes) > MOST_UPLOADS or sum(self._bytes.values()) > MOST_UPLOADED_BYTES:
            oldest = next(iter(self._bytes))
            del self._bytes[oldest], self._uploaders[oldest]
            Path(oldest).unlink(missing_ok=True)

    def _is_upload(self, entry: Any, visitor: str) -> bool:
        if not isinstance(entry, dict) or entry.get("meta") != FILE_MARK:
            return False
        return self._may_open(entry.get("path"), visitor, answers=False)

    def _may_open(self, path: Any, visitor: str, answers: bool) -> bool:
        """Whether a visitor may open a file: an example, an own upload or, for `answers`, a picture the page drew.

        Drawn pictures lie at paths made of a hash of their content, which only those who were shown them know.
        """
        if not isinstance(path, str) or not path.startswith(self._folder + os.sep) or "\0" in path:
            return False
        try:
            is_plain = os.path.realpath(path) == path and stat.S_ISREG(os.lstat(path).st_mode)
        except (OSError, ValueError):
            return False
        uploaders = self._uploaders.get(path)
        is_known = path in self._examples or (answers if uploaders is None else visitor in uploaders)
        return is_plain and is_known


def _files_in(value: Any) -> Iterator[Mapping[str, Any]]:
    """Every dict in a question that gradio could take for a file; the question itself is none."""
    stack = list(value.values())
    while stack:
        entry = stack.pop()
        if isinstance(entry, dict):
            if FILE_KEYS & entry.keys():
                yield entry
            stack.extend(entry.values())
        elif isinstance(entry, list):
            stack.extend(entry)


def _visitor(scope: Any) -> str:
    try:
        cookies = SimpleCookie(dict(scope["headers"]).get(b"cookie", b"").decode("latin-1"))
    except CookieError:
        return ""
    return cookies[COOKIE].value[:64] if COOKIE in cookies else ""


def _setting_cookie(send: Any, secure: bool) -> Any:
    cookie = f"{COOKIE}={secrets.token_urlsafe(24)}; Path=/; HttpOnly; SameSite=Lax{'; Secure' if secure else ''}"

    async def with_cookie(message: Any) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", []), (b"set-cookie", cookie.encode())]}
        await send(message)

    return with_cookie


def _in_a_sentence(send: Any) -> Any:
    """In place of gradio's own words: 429 where its queue is full, and a sentence where fields are wrong."""
    is_answered = False

    async def named(message: Any) -> None:
        nonlocal is_answered
        status = message.get("status") if message["type"] == "http.response.start" else None
        if status == 503:
            is_answered = True
            await _refuse(send, 429, BUSY, [(b"retry-after", b"5")])
        elif status == 422:
            is_answered = True
            await _refuse(send, 422, NOT_UNDERSTOOD)
        elif not is_answered:
            await send(message)

    return named


def _header(scope: Any, name: bytes) -> str:
    return dict(scope["headers"]).get(name, b"").decode("latin-1")


def _upload_id(scope: Any) -> str:
    """What gradio keeps for each upload, whatever its length."""
    fields = parse_qs(scope.get("query_string", b"").decode("latin-1"), max_num_fields=None)
    return max(fields.get("upload_id", [""]), key=len)


async def _read_body(receive: Any, most_bytes: int) -> bytes | None:
    body = bytearray()
    while True:
        message = await receive()
        body.extend(message.get("body", b""))
        if len(body) > most_bytes:
            return None
        if not message.get("more_body"):
            return bytes(body)


def _replay(body: bytes, receive: Any) -> Any:
    bodies = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Any:
        return bodies.pop() if bodies else await receive()

    return replay


def _too_large(most_bytes: int) -> str:
    size = f"{most_bytes // 2**20} MB" if most_bytes >= 2**20 else f"{most_bytes // 1024} KB"
    return f"What was sent is larger than {size}, the most this page takes: send a smaller picture or fewer words."


async def _refuse(send: Any, status: int, sentence: str, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
    await _answer(send, status, {"detail": sentence}, headers)


async def _answer(send: Any, status: int, content: Any, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
    body = json.dumps(content).encode()
    head = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *headers]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body})
