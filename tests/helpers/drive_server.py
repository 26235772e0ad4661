"""A small Google Drive on the loopback interface, so that tests run the true gdown.

It does what the site does, as gdown (6.5) knows it: large files answer with a page that asks for confirmation, whose
form leads to another host; a used-up quota and a file that is gone are pages as well, one with status 200, one with
404; ranges are served. `serve_drive` starts it; the code LEAD_TO sends an interpreter's requests there.
"""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

# The site writes a form in one line, and gdown reads line by line.
FORM = (
    '<form id="download-form" action="https://drive.usercontent.google.com/download" method="get">'
    '<input type="submit" id="uc-download-link" value="Download anyway"/>'
    '<input type="hidden" name="id" value="{id}"><input type="hidden" name="export" value="download">'
    '<input type="hidden" name="confirm" value="t"><input type="hidden" name="uuid" value="0-1-2"></form>'
)
CONFIRMATION = f"""<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning</title></head><body>
<p class="uc-warning-caption">Google Drive can't scan this file for viruses.</p>
{FORM}</body></html>"""
BUSY = "Too many users have viewed or downloaded this file recently. Please try accessing the file again later."
QUOTA = f"""<!DOCTYPE html><html><head><title>Google Drive - Quota exceeded</title></head><body>
<p class="uc-error-caption">Sorry, you can't view or download this file at this time.</p>
<p class="uc-error-subcaption">{BUSY}</p></body></html>"""
GONE = "<!DOCTYPE html><html><head><title>Error 404 (Not Found)!!1</title></head><body>Not found.</body></html>"
SIGN_IN = "<!DOCTYPE html><html><head><title>Sign in - Google Accounts</title></head><body>Sign in</body></html>"

# Runs in the interpreter under test: what it sends to the site goes to the loopback server, by plain HTTP.
LEAD_TO = """
import requests
from requests.adapters import HTTPAdapter
from urllib.parse import urlsplit

class ToLoopback(HTTPAdapter):
    def send(self, request, **options):
        asked, parts = request.url, urlsplit(request.url)
        request.url = drive + parts.path + ("?" + parts.query if parts.query else "")
        request.headers["X-Asked-Host"] = parts.hostname
        options["proxies"] = {}
        response = super().send(request, **options)
        response.url = asked
        return response

plain_init = requests.Session.__init__
def init(self):
    plain_init(self)
    for host in ("drive.google.com", "drive.usercontent.google.com"):
        self.mount("https://" + host, ToLoopback())
requests.Session.__init__ = init
"""


class Drive:
    """Files by id, and what goes wrong with them."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.pages: dict[str, str] = {}  # id to a page instead of the file: QUOTA or SIGN_IN
        self.cuts: list[int] = []  # for each of the next downloads: bytes after which the connection breaks
        self.requests: list[str] = []  # "HOST PATH RANGE"


class DriveHandler(BaseHTTPRequestHandler):
    """HTTP in front of a `Drive`."""

    protocol_version = "HTTP/1.1"
    drive: Drive

    def log_message(self, *_: object) -> None:
        """Stay quiet: tests read `Drive.requests`."""

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        host, wanted = self.headers.get("X-Asked-Host", ""), self.headers.get("Range", "")
        self.drive.requests.append(f"{host} {parts.path} {wanted}".strip())
        key = query.get("id", "")
        if key in self.drive.pages:
            self.reply(200, self.drive.pages[key].encode(), {"Content-Type": "text/html; charset=utf-8"})
        elif key not in self.drive.files:
            self.reply(404, GONE.encode(), {"Content-Type": "text/html; charset=utf-8"})
        elif host == "drive.usercontent.google.com" and query.get("confirm") == "t":
            self.reply_file(self.drive.files[key], wanted)
        else:
            self.reply(200, CONFIRMATION.format(id=key).encode(), {"Content-Type": "text/html; charset=utf-8"})

    def reply_file(self, data: bytes, wanted: str) -> None:
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Disposition": 'attachment; filename="from_the_authors"',
            "Accept-Ranges": "bytes",
            "Last-Modified": "Wed, 01 Jan 2025 00:00:00 GMT",
        }
        part = re.fullmatch(r"bytes=(\d+)-", wanted)
        start = int(part[1]) if part else 0
        self.close_connection = True  # a client that wanted the headers alone leaves the rest unread
        if part:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        # A client that only looks for the size of a resumed file reads no body: a cut is for one that does.
        cut = self.drive.cuts.pop(0) if self.drive.cuts else None
        self.reply(206 if part else 200, data[start:], headers, cut)

    def reply(self, status: int, data: bytes, headers: dict[str, str], cut: int | None = None) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        try:
            self.wfile.write(data[:cut])
        except OSError:  # the client has closed: it wanted the headers alone
            self.close_connection = True
        if cut is not None:
            self.close_connection = True


@contextmanager
def serve_drive() -> Iterator[tuple[Drive, str]]:
    """Serve a new Drive on a free port of the loopback interface; yields its state and its address."""
    drive = Drive()
    handler: Any = type("Handler", (DriveHandler,), {"drive": drive})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield drive, f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
