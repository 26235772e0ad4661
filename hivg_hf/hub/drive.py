"""The authors' files on Google Drive: downloaded once by gdown, resumed where it broke, and known by SHA-256."""

import hashlib
import json
import re
import shutil
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub import constants
from tqdm import tqdm

from hivg_hf.conversion.published import PUBLISHED_FILES, PublishedFile
from hivg_hf.utils.atomic import write_json
from hivg_hf.utils.imports import require_package

TIMEOUT = (30, 60)  # seconds to connect, and between bytes
RETRIES = 3  # of what began
FIRST_TIMEOUT = (5, 60)  # a site that cannot be reached is said at once
# Sizes in the table are rounded: a file outside of half to double of its size is something else, such as a web page.
SIZE_FACTOR = 2
# Beside the download a member of it and the converted model lie on the disk for a while.
ROOM_FACTOR = 3


def official_cache() -> Path:
    """Where downloads and what was made of them lie: in the cache of the Hugging Face libraries (`HF_HOME`)."""
    return Path(constants.HF_HOME) / "hivg" / "official"


def download_official(key: str, name: str) -> Path:
    """A published file from the cache, or from Google Drive.

    Args:
        key: of `PUBLISHED_FILES`.
        name: what the user asked for, `official:NAME`, for messages.

    Raises:
        ImportError: gdown is not installed.
        ValueError: Drive gives no file (a quota, a page that asks a person), or another file than the first time.
        ConnectionError: the site was not reached, or the connection broke; the same call resumes.
        OSError: the disk has no room for it.
    """
    published, path = PUBLISHED_FILES[key], official_cache() / "downloads" / key
    if not path.is_file():
        if constants.HF_HUB_OFFLINE:
            raise ValueError(
                f"{name} is not in the cache, and HF_HUB_OFFLINE forbids to download it; unset it once, or download "
                f"{published.page} elsewhere and run: {manual_command(name)}"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        _check_room(path.parent, published, name)
        _fetch(published, path, name)
        _check_size(published, path, name)
    return path


def check_sha256(key: str, path: Path) -> str:
    """Compare a file with the SHA-256 of its first download, or note it where this is the first.

    Returns:
        The SHA-256.

    Raises:
        ValueError: they differ.
    """
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    record = official_cache() / "sha256.json"
    known: dict[str, Any] = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    first = known.setdefault(
        key,
        {
            "drive_id": PUBLISHED_FILES[key].drive_id,
            "bytes": path.stat().st_size,
            "sha256": digest,
            "first_seen": datetime.now(UTC).isoformat(timespec="seconds"),
        },
    )
    if first["sha256"] != digest:
        raise ValueError(
            f"{path} is not the file that was downloaded first, on {first['first_seen'][:10]}: its SHA-256 is "
            f"{digest}, and that one's {first['sha256']}. If the authors have published it again, remove {key!r} from "
            f"{record}; otherwise delete the file."
        )
    write_json(record, known)
    return digest


def manual_command(name: str) -> str:
    """What to type when the file was downloaded by hand."""
    return f"hivg get {name} --file DOWNLOADED_FILE"


def _fetch(published: PublishedFile, path: Path, name: str) -> None:
    """Download by gdown, with a bar; what a broken connection left behind is resumed."""
    gdown = require_package("gdown", extra="official")
    from gdown.exceptions import DownloadError, FileURLRetrievalError
    from requests import RequestException

    def download(timeout: tuple[float, float], retries: int) -> None:
        gdown.download(
            id=published.drive_id,
            output=str(path),
            quiet=True,
            resume=True,
            use_cookies=False,
            timeout=timeout,
            retries=retries,
            progress=show,
        )

    with tqdm(desc=name, unit="B", unit_scale=True, file=sys.stderr, disable=None) as bar:

        def show(done: int, total: int | None) -> None:
            bar.total = total
            bar.update(done - bar.n)

        try:
            try:
                download(FIRST_TIMEOUT, retries=0)
            except (DownloadError, RequestException, KeyError) as error:
                if reason := _why_not_reached(error):
                    raise ConnectionError(
                        f"Google Drive was not reached for {name} ({reason}); connect and run the same again, or "
                        f"{_by_hand(published, name)}"
                    ) from None
                if not RETRIES:
                    raise
                download(TIMEOUT, retries=RETRIES - 1)
        except FileURLRetrievalError as error:
            raise ValueError(
                f"Google Drive does not give out the file of {name} ({_in_a_line(error.__context__ or error)}); "
                f"{_by_hand(published, name)}"
            ) from None
        except (DownloadError, RequestException, KeyError) as error:
            raise ConnectionError(
                f"The download of {name} from Google Drive broke ({_in_a_line(error)}); run the same again to resume "
                f"it, or {_by_hand(published, name)}"
            ) from None


def _why_not_reached(error: BaseException) -> str:
    """Which host gave no connection, and why; empty for what happened on one."""
    from urllib3.exceptions import ConnectTimeoutError, ProxyError  # what requests brings

    cause = error.args[0] if error.args else None
    reason, request = getattr(cause, "reason", None), getattr(error, "request", None)
    if not isinstance(reason, ConnectTimeoutError | ProxyError) or request is None:
        return ""
    words = str(reason.args[0]).rpartition("): ")[2]  # without the name of a class
    return f"tried {urlsplit(request.url).hostname}: {_in_a_line(ValueError(words))}"


def _by_hand(published: PublishedFile, name: str) -> str:
    return f"open {published.page} in a browser, download the file, and run: {manual_command(name)}"


def _in_a_line(error: BaseException) -> str:
    """What an error says, in a line, without the markup of web pages and the advice that follows it."""
    text = " ".join(re.sub(r"<[^>]*>", "", str(error)).split())
    return (re.split(r"(?<=[.!]) (?=[A-Z])", text)[0].rstrip(".") or type(error).__name__)[:200]


def _check_room(folder: Path, published: PublishedFile, name: str) -> None:
    needed, free = ROOM_FACTOR * published.size, shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            f"{name} needs about {needed / 1e9:.1f} GB in {folder} (download, unpacked file, converted model), and "
            f"{free / 1e9:.1f} GB are free; make room, or set HF_HOME to a folder on another disk."
        )


def _check_size(published: PublishedFile, path: Path, name: str) -> None:
    size = path.stat().st_size
    if not published.size / SIZE_FACTOR <= size <= published.size * SIZE_FACTOR:
        path.unlink()
        raise ValueError(
            f"What Google Drive gave for {name} has {size:,} bytes instead of about {published.size:,}, and was "
            f"deleted; {_by_hand(published, name)}"
        )
