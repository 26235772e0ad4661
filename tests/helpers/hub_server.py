"""A small Hub on the loopback interface: it speaks what `huggingface_hub` sends, so that tests run the true client.

Everything is in memory. `serve_hub` starts it and yields its state, which tests read and prepare directly.
"""

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import parse_qs, unquote, urlsplit

from .hub_state import Hub, HubRefusalError, file_entry

DATE = "2026-01-01T00:00:00.000Z"


class HubHandler(BaseHTTPRequestHandler):
    """HTTP in front of a `Hub`; one method per kind of request, chosen by `ROUTES`."""

    protocol_version = "HTTP/1.1"
    hub: Hub
    query: dict[str, list[str]]
    body: bytes
    user: str | None
    halved: bool

    def log_message(self, *_: object) -> None:
        """Stay quiet: tests read `Hub.requests`."""

    def handle_request(self) -> None:
        parts = urlsplit(self.path)
        path, self.query = parts.path, parse_qs(parts.query)
        request = f"{self.command} {unquote(path)}"
        self.hub.requests.append(request)
        fault = self.hub.fault_of(request)
        self.halved = fault is not None and fault.halve
        try:
            self.read_body(cut=self.hub.is_cut(request))
            if fault is not None and fault.stall:
                time.sleep(fault.stall)
                raise ConnectionAbortedError("stalled by the test")
            if fault is not None and fault.status:
                return self.reply(fault.body, fault.status, fault.headers)
            self.identify()
            for methods, pattern, answer in self.ROUTES:
                match = re.fullmatch(pattern, path)
                if match and self.command in methods.split():
                    return answer(self, *(unquote(group) for group in match.groups("")))
            raise HubRefusalError(404, message=f"The test Hub does not know {request}")
        except HubRefusalError as refusal:
            headers = {"X-Error-Code": refusal.code, "X-Error-Message": refusal.message}
            headers |= {"X-Repo-Commit": refusal.commit} if refusal.commit else {}
            self.reply({"error": refusal.message}, refusal.status, {k: v for k, v in headers.items() if v})
        except ConnectionAbortedError:
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = handle_request  # noqa: N815 (names of the base class)

    def read_body(self, cut: bool) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length // 2 if cut else length)
        if cut:
            raise ConnectionAbortedError("cut by the test")

    def identify(self) -> None:
        scheme, _, token = (self.headers.get("Authorization") or "").partition(" ")
        self.user = self.hub.users.get(token)
        # Stored large files are fetched by signed addresses, without a token.
        if scheme and self.user is None:
            raise HubRefusalError(401, message="Invalid credentials in Authorization header")

    def reply(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[: len(data) // 2] if self.halved else data)
        self.close_connection = self.close_connection or self.halved

    @property
    def address(self) -> str:
        return f"http://{self.headers['Host']}"

    def whoami(self) -> None:
        if self.user is None:
            raise HubRefusalError(401, message="Invalid username or password.")
        token = {"accessToken": {"displayName": "test", "role": "write"}}
        self.reply({"type": "user", "name": self.user, "fullname": self.user, "orgs": [], "auth": token})

    def validate_card(self) -> None:
        self.reply({"errors": [], "warnings": []})

    def create_repository(self) -> None:
        wish = json.loads(self.body)
        repo_id = f"{wish.get('organization') or self.user}/{wish['name']}"
        self.hub.may_write(self.user, repo_id)
        kind = "datasets/" if wish.get("type") == "dataset" else ""
        answer = {"url": f"{self.address}/{kind}{repo_id}", "name": repo_id, "id": repo_id}
        if repo_id in self.hub.repositories:
            return self.reply(answer | {"error": "You already created this model repo"}, 409)
        self.hub.create(repo_id, private=bool(wish.get("private")) or wish.get("visibility") == "private")
        self.reply(answer)

    def preupload(self, repo_id: str, revision: str) -> None:
        self.hub.may_write(self.user, repo_id)
        _, commit = self.hub.revision(self.user, repo_id, revision)
        files = [
            {
                "path": wish["path"],
                "uploadMode": "lfs" if self.hub.lfs_pattern.search(wish["path"]) else "regular",
                "shouldIgnore": False,
                "oid": file_entry(commit, wish["path"])["oid"] if wish["path"] in commit.files else None,
            }
            for wish in json.loads(self.body)["files"]
        ]
        self.reply({"files": files})

    def large_file_batch(self, repo_id: str) -> None:
        self.hub.may_write(self.user, repo_id)
        objects = []
        for wish in json.loads(self.body)["objects"]:
            upload = {"href": f"{self.address}/_large/{wish['oid']}", "header": {}}
            actions = {} if wish["oid"] in self.hub.large_files else {"actions": {"upload": upload}}
            objects.append({"oid": wish["oid"], "size": wish["size"], **actions})
        self.reply({"transfer": "basic", "objects": objects})

    def put_large_file(self, sha256: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != sha256:
            raise HubRefusalError(400, message="The content does not have the announced checksum")
        self.hub.large_files[sha256] = self.body
        self.reply(b"")

    def get_large_file(self, path_hint: str, sha256: str) -> None:
        self.reply_file(self.hub._damages.get(path_hint, bytes)(self.hub.large_files[sha256]), {})

    def commit(self, repo_id: str, revision: str) -> None:
        self.hub.may_write(self.user, repo_id)
        if self.hub.before_commit is not None:
            rival, self.hub.before_commit = self.hub.before_commit, None
            rival()
        repository, parent = self.hub.revision(self.user, repo_id, revision)
        files, lfs, title = dict(parent.files), set(parent.lfs), ""
        for line in self.body.splitlines():
            kind, value = (operation := json.loads(line))["key"], operation["value"]
            if kind == "header":
                title = value["summary"]
                if value.get("parentCommit", parent.oid) != parent.oid:
                    raise HubRefusalError(412, message="A commit has happened since. Please refresh and try again.")
            elif kind == "file":
                files[value["path"]] = base64.b64decode(value["content"])
                lfs.discard(value["path"])
            elif kind == "lfsFile":
                if value["oid"] not in self.hub.large_files:
                    raise HubRefusalError(400, message=f"The large file of {value['path']} was never uploaded")
                files[value["path"]] = self.hub.large_files[value["oid"]]
                lfs.add(value["path"])
            elif kind == "deletedFile":
                files.pop(value["path"], None)
            else:
                raise HubRefusalError(400, message=f"Unknown operation {kind}")
        oid = repository.commit(title, files, frozenset(lfs), branch=revision)
        kind = "datasets/" if self.path.startswith("/api/datasets/") else ""
        answer = {"commitOid": oid, "commitUrl": f"{self.address}/{kind}{repo_id}/commit/{oid}", "hookOutput": ""}
        self.reply({"success": True, **answer})

    def branch(self, repo_id: str, name: str) -> None:
        self.hub.may_write(self.user, repo_id)
        start = json.loads(self.body or b"{}").get("startingPoint", "main")
        repository, commit = self.hub.revision(self.user, repo_id, start)
        repository.branches[name] = commit.oid
        self.reply({})

    def tag(self, repo_id: str, revision: str) -> None:
        self.hub.may_write(self.user, repo_id)
        repository, commit = self.hub.revision(self.user, repo_id, revision)
        repository.tags[json.loads(self.body)["tag"]] = commit.oid
        self.reply({})

    def info(self, repo_id: str, revision: str = "") -> None:
        repository, commit = self.hub.revision(self.user, repo_id, revision or "main")
        siblings = [{"rfilename": path} for path in sorted(commit.files)]
        answer = {"id": repo_id, "modelId": repo_id, "sha": commit.oid, "siblings": siblings, "tags": []}
        answer |= {"private": repository.private, "disabled": False, "gated": False, "downloads": 0, "likes": 0}
        self.reply(answer | {"_id": repo_id, "createdAt": DATE, "lastModified": DATE})

    def tree(self, repo_id: str, revision: str, folder: str = "") -> None:
        _, commit = self.hub.revision(self.user, repo_id, revision)
        prefix = f"{folder.strip('/')}/" if folder.strip("/") else ""
        inside = sorted(path for path in commit.files if path.startswith(prefix))
        if prefix and not inside:
            raise HubRefusalError(404, "EntryNotFound", f"{folder} does not exist on {revision}")
        entries = [file_entry(commit, path) for path in inside]
        if self.query.get("recursive", ["false"])[0].lower() not in ("true", "1"):
            folders = {prefix + path[len(prefix) :].partition("/")[0] for path in inside if "/" in path[len(prefix) :]}
            entries = [entry for entry in entries if "/" not in entry["path"][len(prefix) :]]
            entries += [{"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in sorted(folders)]
        self.reply(entries)

    def paths_info(self, repo_id: str, revision: str) -> None:
        _, commit = self.hub.revision(self.user, repo_id, revision)
        wanted = parse_qs(self.body.decode())["paths"] if b"paths=" in self.body else json.loads(self.body)["paths"]
        entries = [file_entry(commit, path) for path in wanted if path in commit.files]
        folders = [path for path in wanted if any(file.startswith(f"{path}/") for file in commit.files)]
        self.reply([*entries, *({"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in folders)])

    def resolve(self, repo_id: str, revision: str, path: str) -> None:
        _, commit = self.hub.revision(self.user, repo_id, revision)
        if path not in commit.files:
            raise HubRefusalError(404, "EntryNotFound", "Entry not found", commit=commit.oid)
        entry = file_entry(commit, path)
        headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{entry["oid"]}"'}
        if "lfs" not in entry:
            return self.reply_file(self.hub.content(commit, path), headers)
        sha256 = entry["lfs"]["oid"]
        headers |= {"X-Linked-ETag": f'"{sha256}"', "X-Linked-Size": str(entry["size"])}
        # Another host, as with the real Hub's storage: the client follows redirects of the same host when it asks for
        # headers, and keeps its token to itself on another.
        storage = self.address.replace("127.0.0.1", "localhost")
        self.reply(b"", 302, headers | {"Location": f"{storage}/_large/{path}/{sha256}"})

    def reply_file(self, data: bytes, headers: dict[str, str]) -> None:
        headers = {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream", **headers}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if not wanted:
            return self.reply(data, 200, headers)
        start, end = int(wanted[1]), int(wanted[2] or len(data) - 1)
        self.reply(data[start : end + 1], 206, headers | {"Content-Range": f"bytes {start}-{end}/{len(data)}"})

    # Methods, pattern of the quoted path, and who answers; the groups of the pattern are unquoted arguments.
    ROUTES: ClassVar[list[tuple[str, str, Callable[..., None]]]] = [
        ("GET", "/api/whoami-v2", whoami),
        ("POST", "/api/validate-yaml", validate_card),
        ("POST", "/api/repos/create", create_repository),
        ("POST", r"/api/(?:models|datasets)/([^/]+/[^/]+)/preupload/([^/]+)", preupload),
        ("POST", r"/(?:datasets/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch", large_file_batch),
        ("PUT", "/_large/([0-9a-f]{64})", put_large_file),
        ("GET HEAD", "/_large/(.+)/([0-9a-f]{64})", get_large_file),
        ("POST", r"/api/(?:models|datasets)/([^/]+/[^/]+)/commit/([^/]+)", commit),
        ("POST", r"/api/(?:models|datasets)/([^/]+/[^/]+)/branch/([^/]+)", branch),
        ("POST", r"/api/(?:models|datasets)/([^/]+/[^/]+)/tag/([^/]+)", tag),
        ("GET HEAD", r"/api/(?:models|datasets)/([^/]+/[^/]+)(?:/revision/([^/]+))?", info),
        ("POST", r"/api/(?:models|datasets)/([^/]+/[^/]+)/paths-info/([^/]+)", paths_info),
        ("GET HEAD", r"/api/(?:models|datasets)/([^/]+/[^/]+)/tree/([^/]+)(/.*)?", tree),
        ("GET HEAD", r"/(?:datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", resolve),
    ]


@contextmanager
def serve_hub(users: dict[str, str], lfs_pattern: str = r"\.(safetensors|parquet)$") -> Iterator[tuple[Hub, str]]:
    """Serve a new Hub on a free port of the loopback interface; yields its state and its address.

    Args:
        users: token to user name; a user may write in the name space of that name.
        lfs_pattern: paths that are stored as large files, by regular expression.
    """
    hub = Hub(users, lfs_pattern)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (HubHandler,), {"hub": hub}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub, f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
