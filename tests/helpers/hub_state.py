"""What the Hub of the tests remembers: users, repositories, large files, and the faults that tests ask for."""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Commit:
    """One state of a repository; `lfs` holds the paths that are stored as large files."""

    oid: str
    title: str
    files: dict[str, bytes]
    lfs: frozenset[str]


@dataclass
class Repository:
    """Commits in order, and the names (branches, tags) that point at them."""

    private: bool = False
    commits: list[Commit] = field(default_factory=list)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(
        self, title: str, files: dict[str, bytes], lfs: frozenset[str] = frozenset(), branch: str = "main"
    ) -> str:
        """Append a commit whose whole content is `files`, move the branch to it, and return its id."""
        oid = hashlib.sha1(f"{len(self.commits)} {title} {sorted(files)}".encode()).hexdigest()
        self.commits.append(Commit(oid, title, files, lfs & files.keys()))
        self.branches[branch] = oid
        return oid

    def find(self, revision: str) -> Commit | None:
        """The commit that a branch, a tag or an id names."""
        oid = self.branches.get(revision) or self.tags.get(revision) or revision
        return next((commit for commit in self.commits if commit.oid == oid), None)

    @property
    def head(self) -> Commit:
        """The newest commit of `main`."""
        commit = self.find("main")
        assert commit is not None
        return commit


class HubRefusalError(Exception):
    """An error answer, in the headers that the client reads."""

    def __init__(self, status: int, code: str = "", message: str = "", commit: str | None = None) -> None:
        super().__init__(message or code)
        self.status, self.code, self.message = status, code, message or code
        self.commit = commit


@dataclass
class Fault:
    """What requests get in place of an answer; `hub.fail` makes them.

    Attributes:
        request: "METHOD /path" of whom it concerns, a regular expression that is searched for.
        status, headers, body: the answer.
        stall: seconds to wait, after which the connection is closed without an answer.
        halve: do what was asked, and break the connection half-way through the true answer.
        times: requests left to fail; None for all of them.
    """

    request: re.Pattern[str]
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b"{}"
    stall: float = 0.0
    halve: bool = False
    times: int | None = None


class Hub:
    """Users, repositories, stored large files, and the faults that are waiting."""

    def __init__(self, users: dict[str, str], lfs_pattern: str) -> None:
        self.users = users  # token to user name
        self.lfs_pattern = re.compile(lfs_pattern)
        self.repositories: dict[str, Repository] = {}
        self.large_files: dict[str, bytes] = {}  # by sha256
        self.requests: list[str] = []  # "METHOD /path"
        self._cuts: list[re.Pattern[str]] = []
        self._damages: dict[str, Callable[[bytes], bytes]] = {}
        self._faults: list[Fault] = []
        self.before_commit: Callable[[], None] | None = None  # called once, when a commit has arrived

    def create(self, repo_id: str, private: bool = False) -> Repository:
        """A new repository with the first commit that the Hub itself makes."""
        repository = self.repositories[repo_id] = Repository(private)
        repository.commit("initial commit", {".gitattributes": b"*.safetensors filter=lfs\n"})
        return repository

    def cut_next(self, request: str) -> None:
        """Break the next request whose "METHOD /path" contains the regular expression, half-way through its body."""
        self._cuts.append(re.compile(request))

    def is_cut(self, request: str) -> bool:
        """Whether this request is to be broken; an order is used up by it."""
        for pattern in self._cuts:
            if pattern.search(request):
                self._cuts.remove(pattern)
                return True
        return False

    def fail(self, request: str, **fault: Any) -> None:
        """Give requests whose "METHOD /path" contains the regular expression a `Fault`."""
        self._faults.append(Fault(re.compile(request), **fault))

    def fault_of(self, request: str) -> Fault | None:
        """The fault that this request gets, counted down."""
        for fault in self._faults:
            if fault.times != 0 and fault.request.search(request):
                fault.times = fault.times and fault.times - 1
                return fault
        return None

    def corrupt(self, path: str, damage: Callable[[bytes], bytes]) -> None:
        """Damage every download of the path until `heal`; the length must stay, as that alone the client checks."""
        self._damages[path] = damage

    def heal(self) -> None:
        """Forget every fault."""
        self._damages.clear()
        self._cuts.clear()
        self._faults.clear()
        self.before_commit = None

    def content(self, commit: Commit, path: str) -> bytes:
        """The bytes that a download of the path gets."""
        return self._damages.get(path, bytes)(commit.files[path])

    def may_write(self, user: str | None, repo_id: str) -> None:
        """Refuse, as the Hub does, whoever has no token or a name space of another."""
        if user is None:
            raise HubRefusalError(401, message="Invalid username or password.")
        if repo_id.partition("/")[0] != user:
            raise HubRefusalError(403, message=f"You don't have the rights to write to {repo_id}")

    def repository(self, user: str | None, repo_id: str) -> Repository:
        """A repository that the user may read; a private one of another looks as if it did not exist."""
        repository = self.repositories.get(repo_id)
        if repository is None or (repository.private and repo_id.partition("/")[0] != user):
            raise HubRefusalError(404 if user else 401, "RepoNotFound", "Repository not found")
        return repository

    def revision(self, user: str | None, repo_id: str, revision: str) -> tuple[Repository, Commit]:
        """A repository and the commit that a revision of it names."""
        repository = self.repository(user, repo_id)
        commit = repository.find(revision)
        if commit is None:
            raise HubRefusalError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return repository, commit


def file_entry(commit: Commit, path: str) -> dict[str, Any]:
    """A file as the Hub lists it: git's blob id, or the id of git's pointer and the sha256 of a large file."""
    data = commit.files[path]
    if path not in commit.lfs:
        return {"type": "file", "path": path, "size": len(data), "oid": git_blob_id(data)}
    sha256 = hashlib.sha256(data).hexdigest()
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(data)}\n".encode()
    lfs = {"oid": sha256, "size": len(data), "pointerSize": len(pointer)}
    return {"type": "file", "path": path, "size": len(data), "oid": git_blob_id(pointer), "lfs": lfs}


def git_blob_id(data: bytes) -> str:
    """The id under which git stores a file of this content."""
    return hashlib.sha1(b"blob %d\0%s" % (len(data), data)).hexdigest()
