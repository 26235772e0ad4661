"""`official:NAME`: what the authors publish, downloaded once, converted once, then a folder like any other.

    HF_HOME/hivg/official/downloads/mixup_pretraining_base    the file as it came
    HF_HOME/hivg/official/base-mixup                          the converted model with its processor
    HF_HOME/hivg/official/annotations/unc/unc_train.pth       the tables, as `--data unc` reads them
    HF_HOME/hivg/official/sha256.json                         SHA-256 of each first download

The archives' inner layout is not documented: which of their files is a variant's is decided by the arguments that each
file holds, and folder names only say where to look first.
"""

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from hivg_hf.conversion.files import CLIP_ALONE, WHOLE_MODEL, OfficialFile, read_official_file
from hivg_hf.conversion.published import (
    ANNOTATIONS,
    CLIP,
    OFFICIAL_MODELS,
    OTHER_NAMES,
    PREFIX,
    PUBLISHED_FILES,
    published_file,
)
from hivg_hf.modeling.presets_hivg import OFFICIAL_TEXT_LAYERS
from hivg_hf.utils.atomic import atomic_folder, write_json
from hivg_hf.utils.imports import require_package

from .archives import Member, open_archive
from .drive import check_sha256, download_official, official_cache
from .loading import download_checked

BEST_CHECKPOINT = "best_checkpoint.pth"
TOKENIZER = "openai/clip-vit-base-patch16"
TOKENIZER_FILES = ("tokenizer*.json", "special_tokens_map.json", "vocab.json", "merges.txt", "config.json")
ORIGIN_FILE = "official.json"


def open_official(name: str, file: Path | None = None) -> Path:
    """The folder of a converted official model, or of the official annotations.

    Args:
        name: `base-mixup`, `large-unc+`, ..., `base-clip`, `annotations`; see `hivg_hf.conversion.published`.
        file: the published file where it was downloaded by hand.

    Raises:
        FileNotFoundError: `file` is not there.
        ValueError: the name is unknown; the site gives no file, or another one than the first time; or the file does
            not hold what was asked for.
        ConnectionError: the download broke; the same call resumes it.
    """
    key, target = published_file(name), official_cache() / name
    if target.is_dir():
        return target
    if file is not None and not file.is_file():
        raise FileNotFoundError(f"File not found: {file}.")
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.parent / f"{key}.lock"):  # the second of two processes finds what the first made
        if not target.is_dir():
            if file is None and not (official_cache() / "downloads" / key).is_file():
                require_package("gdown", extra="official")  # now, and not after minutes
            # The processor first: without its tokenizer a gigabyte would be fetched for nothing.
            tokenizer = None if name == ANNOTATIONS else _tokenizer(name)
            path = file or download_official(key, PREFIX + name)
            origin = {"name": PREFIX + name, "drive_id": PUBLISHED_FILES[key].drive_id}
            origin["sha256"] = check_sha256(key, path)
            with atomic_folder(target) as folder:
                if name == ANNOTATIONS:
                    _unpack_annotations(path, folder, PUBLISHED_FILES[key].most_unpacked)
                else:
                    with _checkpoint_in(path, name, PUBLISHED_FILES[key].most_unpacked) as (found, place):
                        origin["member"] = place
                        _convert(found, name, folder, tokenizer)
                write_json(folder / ORIGIN_FILE, origin)
    return target


def _tokenizer(name: str) -> Any:
    """The tokenizer that all official models share, from the Hub or its cache; at once, not file by file."""
    from hivg_hf.conversion import official_processor
    from hivg_hf.modeling import HiVGConfig

    try:
        folder = download_checked(TOKENIZER, patterns=TOKENIZER_FILES)
    except (ConnectionError, ValueError) as error:
        raise type(error)(
            f"{error} {PREFIX}{name} needs the tokenizer in it. Without a connection: run hivg get {PREFIX}{name} "
            f"where there is one, and copy HF_HOME/hivg/official/{name} from there to {official_cache() / name}."
        ) from None
    return official_processor(HiVGConfig.preset("base-mixup"), folder).tokenizer


def _convert(file: OfficialFile, name: str, folder: Path, tokenizer: Any) -> None:
    from hivg_hf.conversion import (
        convert_official_checkpoint,
        official_clip,
        official_processor,
        published_clip_config,
    )
    from hivg_hf.modeling import HiVGConfig

    if file.kind == CLIP_ALONE:
        clip_config = published_clip_config(file, OFFICIAL_MODELS[name.partition("-")[0]])
        official_clip(file, clip_config)[0].save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return
    model = convert_official_checkpoint(file, HiVGConfig.preset(name) if file.args is None else None).model
    model.save_pretrained(folder)
    official_processor(model.config, tokenizer).save_pretrained(folder)


@contextmanager
def _checkpoint_in(path: Path, name: str, most_bytes: int) -> Iterator[tuple[OfficialFile, str]]:
    """The file of a variant, and where it stood: the download itself, or a member of it.

    Raises:
        ValueError: nothing in it is the variant's.
    """
    with open_archive(path, most_bytes) as members:
        if members is None:
            file = read_official_file(path)
            if reason := _why_not(file, name):
                raise ValueError(f"{path} is not the file of {PREFIX}{name}: {reason}; delete it and fetch it again.")
            yield file, ""
            return
        others: dict[str, str] = {}
        for group in _likely_first(members, name):
            best: tuple[OfficialFile, str] | None = None
            for member in group:
                file_or_reason = _read_member(member, name, path.parent, most_bytes)
                if isinstance(file_or_reason, str):
                    others[member.path] = file_or_reason
                elif best is None or _stage(file_or_reason) > _stage(best[0]):
                    best = file_or_reason, member.path
            if best is not None:
                yield best
                return
        found = "; ".join(f"{place}: {reason}" for place, reason in others.items()) or "it has no .pth file"
        raise ValueError(f"{PREFIX}{name} not found in the archive {path} ({found}).")


def _likely_first(members: list[Member], name: str) -> list[list[Member]]:
    """Members in groups to try one after the other: those that are called like the dataset before the rest."""
    dataset = name.partition("-")[2]
    called = "|".join(map(re.escape, (dataset, *OTHER_NAMES.get(dataset, ()))))
    likely = [member for member in members if re.search(rf"(^|[/\\_.-])({called})([/\\_.-]|$)", member.path)]
    rest = [member for member in members if member not in likely]
    groups = []
    for group in (likely, rest):
        best = [member for member in group if member.name == BEST_CHECKPOINT]
        groups += [best, [member for member in group if member not in best]]
    return [group for group in groups if group]


def _read_member(member: Member, name: str, folder: Path, most_bytes: int) -> OfficialFile | str:
    """The member as an official file, or why it is not the one."""
    with tempfile.TemporaryDirectory(dir=folder) as workplace:
        copy = Path(workplace) / BEST_CHECKPOINT
        try:
            member.copy(copy, most_bytes)
            file = read_official_file(copy)
        except ValueError as error:
            return str(error).replace(str(copy), "it")
    return _why_not(file, name) or file


def _why_not(file: OfficialFile, name: str) -> str | None:
    """Why a file is not that of a name; None where it is. Without arguments, kind and CLIP's size decide."""
    size, _, dataset = name.partition("-")
    wanted = CLIP_ALONE if dataset == CLIP else WHOLE_MODEL
    if file.kind != wanted:
        return f"it holds {file.kind}, and {wanted} was expected"
    if file.args is None or dataset == CLIP:
        return None  # the conversion compares all shapes with the variant's
    found = getattr(file.args, "dataset", None), getattr(file.args, "model", None)
    if found != (dataset, OFFICIAL_MODELS[size]):
        return f"its arguments describe {found[1]} on {found[0]}, not {OFFICIAL_MODELS[size]} on {dataset}"
    return None


def _stage(file: OfficialFile) -> int:
    """The HiLoRA stage that a file was saved in: of one dataset's files, the last stage is the finished one."""
    stage = getattr(file.args, "hi_lora_stage", 0)
    return stage if isinstance(stage, int) else 0


def _unpack_annotations(path: Path, folder: Path, most_bytes: int) -> None:
    """Every `<dataset>_<split>.pth` of the archive to `<dataset>/<dataset>_<split>.pth`, whatever folder it was in.

    Raises:
        ValueError: it is not an archive, has no such file, or one of them twice.
    """
    with open_archive(path, most_bytes) as members:
        tables = [member for member in members or () if member.name.rpartition("_")[0] in OFFICIAL_TEXT_LAYERS]
        if not tables:
            raise ValueError(f"{path} has no annotations such as unc_train.pth; delete it and fetch it again.")
        for member in tables:
            target = folder / member.name.rpartition("_")[0] / member.name
            if target.exists():
                raise ValueError(f"{path} holds {member.name} twice; it is not the authors' file.")
            target.parent.mkdir(exist_ok=True)
            member.copy(target, most_bytes)
