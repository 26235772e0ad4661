"""Archives from strangers: members are listed with limits and copied one by one to a path of our choice.

Nothing in an archive decides where anything is written: of a member's path only the last part is looked at. Links are
refused, and so is a member that is larger than it may be, by its own statement or while it is copied.
"""

import lzma
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from hivg_hf.utils.checked_tar import CheckedTar

MOST_MEMBERS = 10_000
CHUNK = 2**20
# Every file that torch.save writes is a zip as well, and has one of these inside.
TORCH_MEMBERS = ("data.pkl", "constants.pkl")
_DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    NotImplementedError,
    RuntimeError,
)


@dataclass(frozen=True)
class Member:
    """A file in an archive.

    Args:
        path: as the archive states it, for messages and for guessing what it is.
        size: bytes, as the archive states it.
        open: opens it for reading.
    """

    path: str
    size: int
    open: Callable[[], IO[bytes] | None]

    @property
    def name(self) -> str:
        """The last part of the path."""
        return re.split(r"[/\\]", self.path)[-1]

    def copy(self, target: Path, most_bytes: int) -> None:
        """Write the content to `target`.

        Raises:
            ValueError: it has more bytes than it may, or cannot be read.
        """
        copied = 0
        try:
            with target.open("wb") as file, self.open() as source:
                while chunk := source.read(CHUNK):
                    copied += len(chunk)
                    if copied > most_bytes:
                        raise ValueError(f"{self.path} has more than the {most_bytes:,} bytes that it may have.")
                    file.write(chunk)
        except _DAMAGE as error:
            raise ValueError(f"{self.path} cannot be read from its archive ({error}).") from None


@contextmanager
def open_archive(path: Path, most_bytes: int) -> Iterator[list[Member] | None]:
    """The `.pth` files of a zip or tar archive, compressed or not; None for a file that is not an archive.

    Args:
        path: the file; its name says nothing, its content decides.
        most_bytes: what a member may have.

    Raises:
        ValueError: the archive is damaged or has too many members; or a member is a link or too large.
    """
    with ExitStack() as stack:
        members: list[Member] | None = None
        try:
            if zipfile.is_zipfile(path):
                zip_file = stack.enter_context(zipfile.ZipFile(path))
                names = {re.split(r"[/\\]", name)[-1] for name in zip_file.namelist()}
                if names.isdisjoint(TORCH_MEMBERS):
                    members = _checked(path, _zip_members(zip_file), most_bytes)
            elif _is_tar(path):
                members = _checked(path, _tar_members(stack.enter_context(CheckedTar.open(path))), most_bytes)
        except _DAMAGE as error:
            raise ValueError(f"The archive {path} is damaged ({error}); delete it and fetch it again.") from None
        yield members


def _is_tar(path: Path) -> bool:
    try:
        CheckedTar.open(path).close()
    except tarfile.TarError:
        return False
    return True


def _zip_members(archive: zipfile.ZipFile) -> Iterator[tuple[Member, bool]]:
    for info in archive.infolist():
        if not info.is_dir():
            is_link = stat.S_ISLNK(info.external_attr >> 16)
            yield Member(info.filename, info.file_size, lambda info=info: archive.open(info)), is_link  # type: ignore[misc]


def _tar_members(archive: tarfile.TarFile) -> Iterator[tuple[Member, bool]]:
    for info in archive:
        if not info.isdir():
            member = Member(info.name, info.size, lambda info=info: archive.extractfile(info))  # type: ignore[misc]
            yield member, not info.isreg()


def _checked(path: Path, members: Iterator[tuple[Member, bool]], most_bytes: int) -> list[Member]:
    """The weights and tables among the members; what else is in the archive is not looked at."""
    wanted = []
    for count, (member, is_link) in enumerate(members, start=1):
        if count > MOST_MEMBERS:
            raise ValueError(
                f"The archive {path} has more than {MOST_MEMBERS:,} members; it is not the authors' file."
            )
        if member.size > most_bytes:  # of the others too: a compressed tar is read through them
            raise ValueError(
                f"The archive {path} has a member {member.path!r} of {member.size:,} bytes, more than the "
                f"{most_bytes:,} that one may have; it is not the authors' file."
            )
        if not member.name.endswith((".pth", ".pt")) or member.name.startswith("._"):  # macOS adds those
            continue
        if is_link:
            raise ValueError(
                f"The archive {path} has a member {member.path!r} that is a link and not a file; links are not "
                "followed."
            )
        wanted.append(member)
    return wanted
