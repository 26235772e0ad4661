"""What the Hub's client raises, said in one sentence: what was wrong, and what to do."""

import json
from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
from huggingface_hub import constants
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    XetDownloadError,
)

# What the client and its storage layers raise when a connection breaks. RuntimeError is that of hf_xet.
BROKEN_CONNECTION = (
    httpx2.TransportError,
    LocalEntryNotFoundError,
    XetDownloadError,
    ConnectionError,
    TimeoutError,
    RuntimeError,
)

_LONGEST = 1_000  # characters of a message that passes as it is; ours name weights and folders, both long
_QUOTED = 600  # characters of a library's message inside a sentence of ours
TOKEN_HELP = "log in with `hf auth login`, set HF_TOKEN, or pass a token"


@contextmanager
def damaged_files(name: object) -> Iterator[None]:
    """Turn what libraries raise at a damaged or hostile file of a model into one sentence that names the model.

    Refusals that are one sentence already pass as they are, and so do a caller's own misspelt options.

    Raises:
        ValueError: A file of the model cannot be read as what it should be.
    """
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        said = " ".join(str(error).split())
        is_sentence = bool(said) and "\n" not in str(error).strip() and len(said) <= _LONGEST
        if isinstance(error, json.JSONDecodeError | UnicodeDecodeError):  # names no file
            is_sentence = False
        if is_sentence and (isinstance(error, (ValueError, RuntimeError)) or "unexpected keyword" in said):
            raise
        short = said if len(said) <= _QUOTED else said[:_QUOTED] + " ..."
        raise ValueError(
            f"The model '{name}' cannot be opened, since one of its files is damaged ({type(error).__name__}: {short})"
            "; save or download it again."
        ) from error


@contextmanager
def hub_errors(repo_id: str, uploading: bool) -> Iterator[None]:
    """Turn the client's errors inside the block into sentences about `repo_id`.

    Args:
        repo_id: the repository that the block works on.
        uploading: whether the block writes to it, for what a broken connection means.

    Raises:
        ValueError: the name, the revision or the token is at fault.
        PermissionError: the token does not reach as far as the block.
        ConnectionError: the connection broke or the Hub has a fault; the same call may succeed later.
    """
    try:
        yield
    except HFValidationError as error:
        raise ValueError(f"{repo_id!r} is no name of a repository ({error}); write it as owner/name.") from error
    except OfflineModeIsEnabled:
        raise ConnectionError(f"The Hub is needed for {repo_id}, but HF_HUB_OFFLINE is set; unset it.") from None
    except RevisionNotFoundError as error:
        raise ValueError(
            f"The repository {repo_id} has no such branch, tag or commit: {error.response.url}."
        ) from error
    except RepositoryNotFoundError as error:
        raise ValueError(
            f"There is no repository {repo_id} at {constants.ENDPOINT}, or it is private and the token does not open "
            f"it; check the name, or {TOKEN_HELP}."
        ) from error
    except HfHubHTTPError as error:
        raise _refusal(repo_id, error) from error
    except BROKEN_CONNECTION as error:
        if isinstance(error, LocalEntryNotFoundError) and constants.HF_HUB_OFFLINE:
            raise ValueError(
                f"The repository {repo_id} is not in the cache, and HF_HUB_OFFLINE forbids to fetch it; unset it, or "
                "name a folder."
            ) from error
        effect = "nothing of the upload is visible there" if uploading else "nothing incomplete was kept"
        raise ConnectionError(
            f"The connection to {constants.ENDPOINT} broke while working on {repo_id} "
            f"({str(error).splitlines()[0] if str(error) else type(error).__name__}); {effect}. Run the same again."
        ) from error


def _refusal(repo_id: str, error: HfHubHTTPError) -> Exception:
    """The sentence for an answer of the Hub that is an error."""
    status = error.response.status_code
    words = (error.server_message or str(error).strip().splitlines()[0]).partition(". ")[0].rstrip(".")
    if status == 401:
        return ValueError(
            f"The Hub refuses the token ({words}); make one with the right to write at "
            f"{constants.ENDPOINT}/settings/tokens and {TOKEN_HELP}."
        )
    if status == 403:
        return PermissionError(
            f"The token may not do this to {repo_id} ({words}); use a name space of your own, or a token with the "
            "right to write there."
        )
    if status in (409, 412):
        return ValueError(
            f"The repository {repo_id} changed meanwhile ({words}); look at it, then run the same again."
        )
    if status >= 500 or status == 429:
        return ConnectionError(f"The Hub cannot serve {repo_id} now ({words}); run the same again later.")
    return ValueError(f"The Hub refuses the request about {repo_id}: {words}.")
