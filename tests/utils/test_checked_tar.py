"""Tars whose headers lie: reading ends, in one kind of error, and makes room for nothing."""

import io
import resource
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from hivg_hf.data import load_grounding_dataset
from hivg_hf.hub.archives import open_archive
from hivg_hf.utils.checked_tar import CheckedTar

HOLE = 200 * 2**20


def header(name: str, fill: Callable[[bytearray], None] = lambda block: None, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A header of 512 bytes, changed, with the checksum put right."""
    member = tarfile.TarInfo(name)
    member.type = kind
    block = bytearray(member.tobuf(tarfile.GNU_FORMAT)[:512])
    fill(block)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def size_of(number: int) -> Callable[[bytearray], None]:
    """A size in base 256, which may be negative."""

    def fill(block: bytearray) -> None:
        block[124:136] = (b"\x80\0\0\0" if number >= 0 else b"\xff" * 4) + struct.pack(">q", number)

    return fill


def hole(block: bytearray) -> None:
    """A sparse file of GNU tar: nothing stored, 200 MB to be made up."""
    block[386:410] = b"00000000000\0" * 2
    block[482:495] = b"\0%011o\0" % HOLE


def packed(members: dict[str, bytes], **pax: str) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size, member.pax_headers = len(data), pax
            tar.addfile(member, io.BytesIO(data))
    return file.getvalue()


def names_in(data: bytes) -> list[str]:
    """Read to the end, as long as there is one."""
    names: list[str] = []
    with CheckedTar.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        while (member := tar.next()) is not None:
            names.append(member.name)
            assert len(names) < 10_000
            tar.extractfile(member).read()
        tar.check_end()
    return names


GOOD = packed({"0.txt": b"the star", "1.txt": b"the cross"})
END = b"\0" * 1024
BEFORE_END = GOOD[:2048]
LONG_NAMES = (header("././@LongLink", size_of(4), tarfile.GNUTYPE_LONGNAME) + b"abc\0".ljust(512, b"\0")) * 5000
BAD = {
    "steps back for ever": (BEFORE_END + header("2.txt", size_of(-1536)) + END, "a member of -1536 bytes"),
    "steps back before the file": (packed({"0.txt": b"x"}, size="-99999"), "a member of -99999 bytes"),
    "names inside names": (LONG_NAMES + GOOD, "RecursionError"),
    "a hole": (header("0.txt", hole, tarfile.GNUTYPE_SPARSE) * 40 + END, "holes"),
    "holes in words": (packed({"0.txt": b"0\n".ljust(512, b"\0")}, **{"GNU.sparse.map": "a,b"}), "ValueError"),
    "a name of a petabyte": (header("0", size_of(2**50), tarfile.XHDTYPE) + END, "MemoryError|empty header"),
    "a file of a terabyte": (header("0.txt", size_of(2**40)) + END, "unexpected end"),
}
ONLY_READ_TO_THE_END = {
    "cut between members": (BEFORE_END, "no end mark, as one that was cut"),
    "a damaged header": (BEFORE_END + b"x" * 512 + END, "a header is damaged"),
    "two put together": (GOOD + GOOD, "more behind its end"),
}


@pytest.mark.parametrize("what", [*BAD, *ONLY_READ_TO_THE_END])
def test_what_is_wrong_with_a_tar_is_one_kind_of_error(what: str) -> None:
    data, message = {**BAD, **ONLY_READ_TO_THE_END}[what]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(tarfile.TarError, match=message):
        names_in(data)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < HOLE / 1024


@pytest.mark.parametrize("what", [*BAD, *ONLY_READ_TO_THE_END])
def test_a_shard_that_lies_is_named(what: str, tmp_path: Path) -> None:
    data, message = {**BAD, **ONLY_READ_TO_THE_END}[what]
    (tmp_path / "shard.tar").write_bytes(data)
    with pytest.raises(ValueError, match=f"shard.tar is not a whole tar file .*({message})"):
        load_grounding_dataset(str(tmp_path / "shard.tar"), "all", streaming=True)


@pytest.mark.parametrize("what", BAD)
def test_an_archive_that_lies_is_no_archive_or_damaged(what: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(BAD[what][0])
    said = {"steps back for ever": r"weights\.pth is damaged", "a file of a terabyte": "of 1,099,511,627,776 bytes"}
    if what in said:
        with pytest.raises(ValueError, match=said[what]), open_archive(path, 2**30):
            pass
    else:  # wrong from its first header on
        with open_archive(path, 2**30) as members:
            assert members is None


def test_a_whole_tar_is_read_as_ever() -> None:
    for end in (b"", b"\0" * 20480):  # writers fill up blocks of any size
        assert names_in(GOOD + end) == ["0.txt", "1.txt"]
