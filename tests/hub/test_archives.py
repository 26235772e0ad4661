"""Archives from strangers: what is listed, what is refused, and that nothing is written where the archive says."""

import io
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

from hivg_hf.hub import archives
from hivg_hf.hub.archives import open_archive

LIMIT = 1000


def make_zip(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def make_tar(path: Path, mode: str, *entries: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, mode) as archive:
        for info, content in entries:
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def listed(path: Path, limit: int = LIMIT) -> list[str] | None:
    with open_archive(path, limit) as members:
        return None if members is None else [member.path for member in members]


def copy_all(path: Path, target: Path) -> None:
    with open_archive(path, LIMIT) as members:
        for member in members:
            member.copy(target, LIMIT)


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz", "w:bz2"])
def test_tar_members_are_copied_by_content(tmp_path: Path, mode: str) -> None:
    info = tarfile.TarInfo("../../out/unc/best_checkpoint.pth")
    path = make_tar(tmp_path / "no_suffix", mode, (info, b"weights"), (tarfile.TarInfo("log.txt"), b"x"))
    with open_archive(path, LIMIT) as members:
        (member,) = members
        assert member.name == "best_checkpoint.pth"
        member.copy(tmp_path / "copy", LIMIT)
    assert (tmp_path / "copy").read_bytes() == b"weights"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["copy", "no_suffix"]


def test_zip_members_are_weights_and_tables_alone(tmp_path: Path) -> None:
    members = {"a/unc_train.pth": b"1", "a\\unc_val.pth": b"2", "__MACOSX/a/._unc_val.pth": b"3", "run.py": b"4"}
    path = make_zip(tmp_path / "archive", **members)
    assert listed(path) == ["a/unc_train.pth", "a\\unc_val.pth"]
    with open_archive(path, LIMIT) as found:
        assert [member.name for member in found] == ["unc_train.pth", "unc_val.pth"]


def test_a_file_of_torch_is_no_archive_though_it_is_a_zip(tmp_path: Path) -> None:
    torch.save({"model": {}}, tmp_path / "new.pth")
    torch.save({"model": {}}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert zipfile.is_zipfile(tmp_path / "new.pth")
    assert listed(tmp_path / "new.pth") is None
    assert listed(tmp_path / "old.pth") is None


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_in_a_tar_are_refused(tmp_path: Path, kind: bytes) -> None:
    info = tarfile.TarInfo("unc/best_checkpoint.pth")
    info.type, info.linkname = kind, "/etc/passwd"
    with pytest.raises(ValueError, match=r"'unc/best_checkpoint.pth' that is a link and not a file"):
        listed(make_tar(tmp_path / "archive", "w", (info, b"")))


def test_links_in_a_zip_are_refused(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("best_checkpoint.pth")
    info.create_system, info.external_attr = 3, 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "archive", "w") as archive:
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(ValueError, match="is a link and not a file; links are not followed"):
        listed(tmp_path / "archive")


def test_a_member_that_says_it_is_too_large_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "archive", **{"best_checkpoint.pth": bytes(LIMIT + 1)})
    with pytest.raises(ValueError, match=r"of 1,001 bytes, more than the 1,000 that one may have"):
        listed(path)
    entry = (tarfile.TarInfo("anything.bin"), bytes(LIMIT + 1))  # a compressed tar is read through it
    with pytest.raises(ValueError, match=r"'anything.bin' of 1,001 bytes"):
        listed(make_tar(tmp_path / "tar", "w:gz", entry))


def test_a_member_that_is_larger_than_it_says_is_stopped(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "archive", **{"best_checkpoint.pth": bytes(500)})
    with open_archive(path, LIMIT) as members, pytest.raises(ValueError, match="has more than the 100 bytes"):
        members[0].copy(tmp_path / "copy", 100)


def test_too_many_members_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MOST_MEMBERS", 2)
    with pytest.raises(ValueError, match="has more than 2 members"):
        listed(make_zip(tmp_path / "archive", a=b"", b=b"", c=b""))


@pytest.mark.parametrize("suffix", ["zip", "tar.gz"])
def test_a_damaged_archive_is_named(tmp_path: Path, suffix: str) -> None:
    content = bytes(range(256)) * 3
    path = tmp_path / f"archive.{suffix}"
    if suffix == "zip":
        make_zip(path, **{"best_checkpoint.pth": content})
        data = bytearray(path.read_bytes())
        data[60:80] = bytes(20)
        path.write_bytes(data)
    else:
        make_tar(path, "w:gz", (tarfile.TarInfo("a.pth"), content), (tarfile.TarInfo("b.pth"), content))
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"is damaged|cannot be read from its archive"):
        copy_all(path, tmp_path / "copy")


def test_an_error_of_the_caller_is_not_taken_for_damage(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "archive", **{"best_checkpoint.pth": b"1"})
    with pytest.raises(RuntimeError, match="mine"), open_archive(path, LIMIT):
        raise RuntimeError("mine")
