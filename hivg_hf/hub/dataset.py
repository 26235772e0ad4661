"""A dataset's files and card on the Hub, in one commit."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, DatasetCard, HfApi, RepoFile

from .errors import hub_errors
from .push import create_repository, require_token

DATA_FOLDER = "data/"


def push_dataset(
    files: Mapping[str, Path], card: DatasetCard, repo_id: str, *, private: bool = False, token: str | None = None
) -> str:
    """Upload a dataset; what its `data/` held before is replaced in the same commit.

    Args:
        files: Path in the repository to local file.
        card: Becomes README.md.
        repo_id: `owner/name`; made where there is none.
        private: Whether a new repository is visible to you alone.
        token: Access token that may write there. Defaults to that of the login.

    Returns:
        The repository and the commit, `owner/name@commit`.

    Raises:
        ValueError: If there is no token, or the Hub refuses it or the name; or somebody else has pushed meanwhile.
        PermissionError: If the token may not write there.
        ConnectionError: If the connection broke; the same call sends what is missing.
    """
    token = require_token(token)
    api = HfApi(token=token)
    with hub_errors(repo_id, uploading=True):
        repo_id = create_repository(api, repo_id, private, repo_type="dataset")
        head = api.repo_info(repo_id, repo_type="dataset").sha
        entries = api.list_repo_tree(repo_id, recursive=True, revision=head, repo_type="dataset")
        stale = [path for path in _data_files(entries) if path not in files]
        # Large files travel first, a few at a time; the commit that names them all comes last.
        adds = [CommitOperationAdd(path, file) for path, file in files.items()]
        adds.append(CommitOperationAdd("README.md", str(card).encode()))
        commit = api.create_commit(
            repo_id,
            [*adds, *map(CommitOperationDelete, stale)],
            commit_message="Upload grounded rows",
            parent_commit=head,  # what is replaced was listed there: a push between would be overwritten
            repo_type="dataset",
        )
    return f"{repo_id}@{commit.oid}"


def _data_files(entries: Iterable[object]) -> list[str]:
    return [entry.path for entry in entries if isinstance(entry, RepoFile) and entry.path.startswith(DATA_FOLDER)]
