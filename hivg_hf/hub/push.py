"""Sharing on the Hub: one commit with the model's own files, and a check that loads what arrived.

`model.push_to_hub`, `processor.push_to_hub` and `pipeline.push_to_hub` of transformers work as they are; `push_folder`
does more: it refuses an incomplete folder before anything is sent, sends files by an allow-list, leaves nothing half
visible, and reads the commit back.
"""

import hashlib
import logging
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard, RepoFile, get_token
from huggingface_hub.errors import HfHubHTTPError
from PIL import Image

from hivg_hf.utils.atomic import atomic_folder, write_json

from .errors import TOKEN_HELP, checked_token, hub_errors
from .files import ADAPTER_CONFIG_FILE, CARD_FILE, REPLACED, files_to_push, folder_kind, located, read_json
from .loading import download_checked, load_with_stages, split_revision

logger = logging.getLogger(__name__)

MADE_BY_THE_HUB = ".gitattributes"  # in every new repository


@dataclass(frozen=True)
class PushReport:
    """What a push left on the Hub.

    Attributes:
        repo_id: the repository.
        commit: the id of the commit that holds the files; pin it with `revision=`.
        files: the paths of the pushed folder that the commit holds.
        changed: False where the repository already held exactly these files, and no commit was made.
    """

    repo_id: str
    commit: str
    files: tuple[str, ...]
    changed: bool


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    token: str | None = None,
    private: bool = False,
    branch: str = "main",
    message: str = "Upload HiVG",
    base: str | None = None,
    update: bool = False,
    check: bool = True,
    onnx: bool = False,
) -> PushReport:
    """Upload a model or adapter folder in one commit, and load it back.

    Args:
        folder: what `save_pretrained` wrote: a model with its processor, or a PEFT adapter (`exports/stage_k`).
        repo_id: `owner/name` on the Hub; the repository is made where there is none.
        token: an access token with the right to write; by default the one you are logged in with.
        private: whether a new repository is visible to you alone.
        branch: the branch to commit to, made from `main` where there is none.
        message: the title of the commit.
        base: for an adapter, the repository of the model it belongs to, `owner/name` or `owner/name@revision`; without
            one, the adapter's own config must name a repository.
        update: allow a commit on top of a repository that holds other files. Its weights and code are replaced.
        check: download the commit to a temporary place, compare checksums, load the model and ground one picture.
        onnx: also the ONNX files in `onnx/` of the folder.

    Returns:
        The commit.

    Raises:
        FileNotFoundError: the folder, or a file that the model needs, is missing.
        ValueError: the folder cannot be read, its model is not whole, the token is missing or refused, or the name is
            taken.
        PermissionError: the token may not write there.
        ConnectionError: the connection broke, or what was downloaded is damaged; the same call resumes.
    """
    folder = Path(folder)
    contents = {path.as_posix(): located(folder, path) for path in files_to_push(folder, onnx)}
    if CARD_FILE not in contents:
        logger.warning("%s has no model card (%s): readers will not know what the model is.", folder, CARD_FILE)
    token = require_token(token)
    if folder_kind(folder) == "model":
        load_with_stages(str(folder))  # a model that is not whole is refused while nobody can see it
    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as workplace:
        if folder_kind(folder) == "adapter":
            contents |= _name_base(contents, base, Path(workplace))
        with hub_errors(repo_id, uploading=True):
            repo_id = create_repository(api, repo_id, private)
            contents |= _name_repository(contents, folder, repo_id, Path(workplace))
            _create_branch(api, repo_id, branch)
            report = _commit(api, repo_id, branch, contents, message, update)
    if check:
        check_pushed(report, token=token)
    return report


def write_pushed(
    folder: str | Path, out: str | Path, base: str | None = None, *, onnx: bool = False
) -> tuple[str, ...]:
    """Write what `push_folder` would upload to a folder, with the same checks; nothing is sent.

    Args:
        folder: a model or adapter folder.
        out: the folder to write; it appears whole or not at all.
        base, onnx: as for `push_folder`.

    Returns:
        The paths that a repository would hold. The card of a run still names its local folder in the example: which
        repository it will name, nobody has said.

    Raises:
        FileExistsError: `out` is there already.
        FileNotFoundError, ValueError: as `push_folder`.
    """
    folder, out = Path(folder), Path(out)
    if out.exists():
        raise FileExistsError(f"{out} exists; choose another folder, or remove it first.")
    contents = {path.as_posix(): located(folder, path) for path in files_to_push(folder, onnx)}
    with tempfile.TemporaryDirectory() as workplace, atomic_folder(out) as written:
        if folder_kind(folder) == "adapter":
            contents |= _name_base(contents, base, Path(workplace))
        else:
            load_with_stages(str(folder))
        for path, source in contents.items():
            (written / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, written / path)
    return tuple(contents)


def check_pushed(report: PushReport, token: str | None = None) -> None:
    """Download a commit to a temporary place, compare checksums, load the model and ground one picture with it.

    Raises:
        ConnectionError: the download failed or is damaged.
        ValueError: what arrived cannot be loaded, or does not ground.
    """
    name = f"{report.repo_id}@{report.commit}"
    with tempfile.TemporaryDirectory() as cache:
        try:
            download_checked(name, token, cache, patterns=report.files)
            model, processor = load_with_stages(name, token=token, cache_dir=cache)
            result = model.ground(Image.new("RGB", (64, 48), "white"), "the red star", processor)
        except ConnectionError as error:
            raise ConnectionError(
                f"The commit {report.commit} is complete in {report.repo_id}, but reading it back failed: {error}"
            ) from error
        except Exception as error:
            raise ValueError(
                f"The commit {report.commit} is complete in {report.repo_id}, but what was read back does not work: "
                f"{error}"
            ) from error
    logger.info("%s was read back and grounds: %s", name, result)


def require_token(token: str | None) -> str:
    token = checked_token(token) or get_token()
    if not token:
        raise ValueError(f"Uploading needs a token of the Hub and none was found; {TOKEN_HELP}.")
    return token


def create_repository(api: HfApi, repo_id: str, private: bool, repo_type: str = "model") -> str:
    """Make the repository where there is none; returns its full name."""
    user = api.whoami()["name"]  # tells a wrong token from a name space of somebody else
    repo_id = repo_id if "/" in repo_id else f"{user}/{repo_id}"
    try:
        api.create_repo(repo_id, private=private, repo_type=repo_type)
    except HfHubHTTPError as error:
        if error.response.status_code != 409:
            raise
    return repo_id


def _create_branch(api: HfApi, repo_id: str, branch: str) -> None:
    if branch != "main":
        api.create_branch(repo_id, branch=branch, exist_ok=True)


def _commit(
    api: HfApi, repo_id: str, branch: str, contents: dict[str, Path], message: str, update: bool
) -> PushReport:
    """Commit the files, on top of exactly the state that was looked at."""
    head = api.repo_info(repo_id, revision=branch).sha
    entries = api.list_repo_tree(repo_id, recursive=True, revision=head)
    remote = {entry.path: entry for entry in entries if isinstance(entry, RepoFile) and entry.path != MADE_BY_THE_HUB}
    if remote.keys() >= contents.keys() and all(_is_same(contents[path], remote[path]) for path in contents):
        return PushReport(repo_id, head, tuple(contents), changed=False)
    if remote and not update:
        raise ValueError(
            f"The name {repo_id} is taken: its branch {branch} holds {len(remote)} files that are not these; choose "
            "another name, or allow a new commit on top of them with update=True."
        )
    adds = [CommitOperationAdd(path, file) for path, file in contents.items()]
    stale = [CommitOperationDelete(path) for path in remote if path not in contents and REPLACED.fullmatch(path)]
    commit = api.create_commit(repo_id, [*adds, *stale], commit_message=message, revision=branch, parent_commit=head)
    return PushReport(repo_id, commit.oid, tuple(contents), changed=True)


def _is_same(file: Path, entry: RepoFile) -> bool:
    """Whether a file has the content that the Hub lists: by sha256 of large files, by git's id of the others."""
    data = file.read_bytes()
    if entry.lfs is not None:
        return hashlib.sha256(data).hexdigest() == entry.lfs.sha256
    return hashlib.sha1(b"blob %d\0%s" % (len(data), data)).hexdigest() == entry.blob_id


def _name_repository(contents: dict[str, Path], folder: Path, repo_id: str, workplace: Path) -> dict[str, Path]:
    """A copy of the card that a run wrote, whose example opens the repository and not the run's local folder."""
    if CARD_FILE not in contents:
        return {}
    card, local = contents[CARD_FILE].read_bytes(), "/".join(folder.resolve().parts[-2:])
    named = re.sub(rb'model="(?:[^"\n]*/)?' + re.escape(local.encode()) + b'"', f'model="{repo_id}"'.encode(), card)
    if named == card:
        return {}
    copy = workplace / CARD_FILE
    copy.write_bytes(named)
    return {CARD_FILE: copy}


def _name_base(contents: dict[str, Path], base: str | None, workplace: Path) -> dict[str, Path]:
    """Copies of an adapter's config and card that name its base by repository and revision."""
    config = read_json(contents[ADAPTER_CONFIG_FILE])
    if base is not None:
        config["base_model_name_or_path"], config["revision"] = split_revision(base)
    base_id = config.get("base_model_name_or_path") or ""
    if Path(base_id).exists() or base_id.count("/") != 1:
        raise ValueError(
            f"The adapter's base is {base_id!r}, which is not a repository of the Hub; push the base first, and "
            "name it (--base owner/name, or owner/name@revision)."
        )
    changed = {ADAPTER_CONFIG_FILE: workplace / ADAPTER_CONFIG_FILE}
    write_json(changed[ADAPTER_CONFIG_FILE], config)
    if CARD_FILE in contents:
        card = ModelCard.load(contents[CARD_FILE], ignore_metadata_errors=True)
        card.data.base_model = base_id
        changed[CARD_FILE] = workplace / CARD_FILE
        card.save(changed[CARD_FILE])
    return changed
