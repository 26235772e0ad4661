"""A client of the demo page that speaks raw HTTP, so that it can send what no browser sends."""

import http.client
import io
import json
import socket
from typing import Any, NamedTuple

import numpy as np
import PIL.Image

MARK = {"_type": "gradio.FileData"}


class Reply(NamedTuple):
    status: int
    body: bytes
    headers: dict[str, str]

    @property
    def sentence(self) -> str:
        return json.loads(self.body)["detail"]


class Client:
    """A client that sends what it is given, unchanged; with cookies where `page` was opened first."""

    def __init__(self, port: int, opens_page: bool = False):
        self.port = port
        self.cookie = ""
        if opens_page:
            self.cookie = self.send("GET", "/").headers["set-cookie"].split(";")[0]

    def send(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection._validate_path = lambda url: None  # type: ignore[attr-defined]
        headers = {**(headers or {}), **({"Cookie": self.cookie} if self.cookie else {})}
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        reply = Reply(answer.status, answer.read(), {name.lower(): value for name, value in answer.getheaders()})
        connection.close()
        return reply

    def post(self, path: str, content: Any) -> Reply:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        return self.send("POST", path, body, {"Content-Type": "application/json"})

    def upload(self, data: bytes, name: str = "photo.png") -> Reply:
        head = f'--edge\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
        body = head.encode() + data + b"\r\n--edge--\r\n"
        return self.send("POST", "/gradio_api/upload", body, {"Content-Type": "multipart/form-data; boundary=edge"})

    def uploaded(self, data: bytes) -> dict[str, Any]:
        return {"path": json.loads(self.upload(data).body)[0], "meta": MARK}

    def ask(
        self, image: Any, lines: str = "the star", threshold: Any = 0, mask: Any = True, multiple: Any = False
    ) -> Reply:
        """The refusal, or the event stream of the answer."""
        reply = self.post("/gradio_api/call/answer", {"data": [image, lines, threshold, mask, multiple]})
        if reply.status != 200:
            return reply
        return self.send("GET", f"/gradio_api/call/answer/{json.loads(reply.body)['event_id']}")

    def answer(self, *values: Any) -> list[Any]:
        events = self.ask(*values).body.decode().strip().split("\n\n")
        # the server says every 15 seconds that it is still there
        (event,) = (event for event in events if not event.startswith("event: heartbeat"))
        assert event.startswith("event: complete"), event
        return json.loads(event.partition("data: ")[2])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def encoded(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "png")
    return file.getvalue()
