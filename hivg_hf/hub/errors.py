"""What the Hub's client raises, said in one sentence: what was wrong, and what to do."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
from huggingface_hub import constants, get_session
from huggingface_hub.errors import (
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    StrictDataclassError,
    XetDownloadError,
)
from huggingface_hub.utils import parse_ratelimit_headers

# What the client and its storage layers raise when a connection breaks. RuntimeError is that of hf_xet, and OSError
# without a number that of a download of another length than was announced.
BROKEN_CONNECTION = (httpx2.RequestError, XetDownloadError, OSError, RuntimeError)
# What the client stumbles over where something else answers in the Hub's place: a page of HTML, JSON of other shape.
NOT_THE_HUB = (json.JSONDecodeError, FileMetadataError, KeyError, TypeError, AttributeError, AssertionError)
# Seconds without a byte after which a request is given up; the client itself waits for an answer without end.
PATIENCE, PATIENCE_WITH_UPLOADS = 60, 300
_SECRETS = re.compile(r"hf_\w+|Bearer [^\s'\"]+|(?<=\?)(X-|Policy=|Signature=|Expires=)[^\s'\"]+", re.IGNORECASE)

_LONGEST = 1_000  # characters of a message that passes as it is; ours name weights and folders, both long
_QUOTED = 600  # characters of a library's message inside a sentence of ours
TOKEN_HELP = "log in with `hf auth login`, set HF_TOKEN, or pass a token"


def checked_token(token: str | None) -> str | None:
    """A token without the line end of the file that it was pasted from.

    Raises:
        ValueError: It holds what no header can carry; the message does not show it.
    """
    token = token and token.strip()
    if token and not re.fullmatch(r"[!-~]+", token):
        raise ValueError(f"The token holds spaces or letters that no token has; {TOKEN_HELP}.")
    return token


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
    except RecursionError as error:
        raise ValueError(
            f"The model '{name}' cannot be opened, since one of its files is nested too deeply; save or download it "
            "again."
        ) from error
    except StrictDataclassError as error:  # wraps the refusal of a field in the name of its check
        message = " ".join(str(error.__cause__ or error).split()).partition(" Errors: ")[0].rstrip(".")
        raise ValueError(
            f"The model '{name}' cannot be opened, since its config.json cannot be used: {_cut(message)}."
        ) from error
    except Exception as error:
        message = " ".join(str(error).split())
        is_sentence = bool(message) and "\n" not in str(error).strip() and len(message) <= _LONGEST
        if isinstance(error, json.JSONDecodeError | UnicodeDecodeError):  # names no file
            is_sentence = False
        if is_sentence and (isinstance(error, (ValueError, RuntimeError)) or "unexpected keyword" in message):
            raise
        if "contains custom code which must be executed" in message:
            raise ValueError(
                f"The model '{name}' asks for code of its own, and none was run: pass trust_remote_code=True if you "
                "trust its authors."
            ) from error
        raise ValueError(
            f"The model '{name}' cannot be opened, since one of its files is damaged ({type(error).__name__}: "
            f"{_cut(message)}); save or download it again."
        ) from error


@contextmanager
def hub_errors(repo_id: str, uploading: bool) -> Iterator[None]:
    """Turn the client's errors inside the block into sentences about `repo_id`.

    Args:
        repo_id: the repository that the block works on.
        uploading: whether the block writes to it, for what a refusal and a broken connection mean.

    Raises:
        ValueError: the name, the revision or the token is at fault.
        PermissionError: the token does not reach as far as the block.
        ConnectionError: the connection broke or the Hub has a fault; the same call may succeed later.
        OSError: what the system says of a file, such as a full disk.
    """
    try:
        with _patience(PATIENCE_WITH_UPLOADS if uploading else PATIENCE):
            yield
    except Exception as error:
        refusal = _sentence(repo_id, uploading, _behind(error))
        if refusal is None:
            raise
        # A cause that holds a secret would show it in a traceback.
        raise refusal from (None if _SECRETS.search(str(error)) else error)


@contextmanager
def _patience(seconds: float) -> Iterator[None]:
    """Limit how long requests wait that have no limit: the client asks for none when it reads and writes listings."""

    def limit(request: httpx2.Request) -> None:
        given = request.extensions.get("timeout", {})
        kinds = ("connect", "read", "write", "pool")
        request.extensions["timeout"] = {kind: given.get(kind) or seconds for kind in kinds}

    hooks = get_session().event_hooks["request"]
    hooks.append(limit)
    try:
        yield
    finally:
        hooks.remove(limit)


def _behind(error: BaseException) -> BaseException:
    """The fault for which the client looked into its cache in vain, or gave up an upload."""
    while isinstance(error, LocalEntryNotFoundError | RuntimeError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _sentence(repo_id: str, uploading: bool, error: BaseException) -> Exception | None:
    """The error to raise for one of the client's; None for one that says what is needed itself."""
    words = _words(error)
    if isinstance(error, HFValidationError):
        return ValueError(f"{repo_id!r} is not a name of a repository ({words}); write it as owner/name.")
    if isinstance(error, OfflineModeIsEnabled) or (
        isinstance(error, LocalEntryNotFoundError) and constants.HF_HUB_OFFLINE
    ):
        if uploading:
            return ConnectionError(f"The Hub is needed for {repo_id}, but HF_HUB_OFFLINE is set; unset it.")
        return ValueError(
            f"The repository {repo_id} is not in the cache, and HF_HUB_OFFLINE forbids to fetch it; unset it, or "
            "name a folder."
        )
    if isinstance(error, HfHubHTTPError):
        return _refusal(repo_id, uploading, error, words)
    if isinstance(error, NOT_THE_HUB):
        return ConnectionError(
            f"What answers at {constants.ENDPOINT} about {repo_id} does not speak as the Hub does "
            f"({type(error).__name__}: {words}); a network's log-in page or a proxy may stand between: open that "
            "address in a browser, then run the same again."
        )
    if isinstance(error, httpx2.TooManyRedirects):
        return ConnectionError(
            f"The Hub's answers about {repo_id} lead in a circle ({words}); check proxies and HF_ENDPOINT "
            f"({constants.ENDPOINT}), then run the same again."
        )
    if isinstance(error, BROKEN_CONNECTION) and not isinstance(error, PermissionError) and not _is_of_a_file(error):
        effect = "nothing incomplete is visible there" if uploading else "nothing incomplete was kept"
        return ConnectionError(
            f"The connection to {constants.ENDPOINT} broke while working on {repo_id} ({words}); {effect}. Run the "
            "same again."
        )
    return None


def _is_of_a_file(error: BaseException) -> bool:
    """Whether the system refused a file or folder, which no network can heal."""
    is_network = isinstance(error, ConnectionError | TimeoutError | LocalEntryNotFoundError)
    return isinstance(error, OSError) and error.errno is not None and not is_network


def _words(error: BaseException) -> str:
    """The first sentence of what an error says, without secrets and addresses' signatures."""
    message = error.server_message if isinstance(error, HfHubHTTPError) and error.server_message else str(error)
    lines = message.strip().splitlines() or [type(error).__name__]
    first = _SECRETS.sub("***", lines[0].partition(". ")[0].rstrip("."))
    return _cut(first)


def _refusal(repo_id: str, uploading: bool, error: HfHubHTTPError, words: str) -> Exception:
    """The sentence for an answer of the Hub that is an error."""
    status = error.response.status_code
    if isinstance(error, RevisionNotFoundError):
        url = _SECRETS.sub("***", str(error.response.url))
        return ValueError(f"The repository {repo_id} has no such branch, tag or commit: {url}.")
    if isinstance(error, GatedRepoError):
        return PermissionError(
            f"The repository {repo_id} is open to those whom its owner has granted access ({words}); ask for it at "
            f"{constants.ENDPOINT}/{repo_id}, then {TOKEN_HELP}."
        )
    if isinstance(error, RepositoryNotFoundError):
        return ValueError(
            f"There is no repository {repo_id} at {constants.ENDPOINT}, or it is private and the token does not open "
            f"it; check the name, or {TOKEN_HELP}."
        )
    if status == 401:
        return ValueError(
            f"The Hub refuses the token ({words}); make one with the right to {'write' if uploading else 'read'} at "
            f"{constants.ENDPOINT}/settings/tokens and {TOKEN_HELP}."
        )
    if status == 403:
        advice = "a name space of your own, or a token with the right to write there"
        if not uploading:
            advice = "a token that may read it, or ask its owner"
        return PermissionError(f"The token may not do this to {repo_id} ({words}); use {advice}.")
    if status in (409, 412):
        return ValueError(
            f"The repository {repo_id} changed meanwhile ({words}); look at it, then run the same again."
        )
    if status >= 500 or status in (408, 429):
        return ConnectionError(f"The Hub cannot serve {repo_id} now ({words}); run the same again {_when(error)}.")
    return ValueError(f"The Hub refuses the request about {repo_id}: {words}.")


def _when(error: HfHubHTTPError) -> str:
    """When to come back, where the Hub says so."""
    headers = error.response.headers
    limit = parse_ratelimit_headers(headers)
    seconds = headers.get("retry-after", "") if limit is None else str(limit.reset_in_seconds)
    return f"in {seconds} seconds" if seconds.isdecimal() and len(seconds) <= 6 else "later"


def _cut(message: str) -> str:
    return message if len(message) <= _QUOTED else message[:_QUOTED] + " ..."
