"""Loading from the Hub: checked downloads, and a base with its stages in one call."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, snapshot_download

from hivg_hf.modeling import HiVGForVisualGrounding, HiVGProcessor
from hivg_hf.modeling.processing_hivg import check_belongs
from hivg_hf.utils.whole_weights import load_whole

from .errors import checked_token, damaged_files, hub_errors
from .files import ADAPTER_CONFIG_FILE, folder_kind, read_json
from .tokenizer_check import check_tokenizer

logger = logging.getLogger(__name__)

# Tensors and settings; never a pickle, and code only by transformers' own way of asking for trust.
DOWNLOADED = ["*.safetensors", "*.json", "merges.txt"]
# Fields of a model's config that its processor works by.
PROCESSOR_FIELDS = {"image_size", "pad_align", "skip_padded_patches", "image_normalization"}


def split_revision(name: str) -> tuple[str, str | None]:
    """`owner/name@revision` to its two parts; without a revision the second is None."""
    repo_id, _, revision = name.partition("@")
    return repo_id, revision or None


def download_checked(
    name: str,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    patterns: Sequence[str] = DOWNLOADED,
) -> Path:
    """A folder with the files of a model: a local one as it is, one of the Hub from the cache, checksums compared.

    The Hub's client checks the length of a file, not its content. Offline, what is in the cache is taken as it is.

    Args:
        name: a folder, `owner/name`, or `owner/name@revision` with a branch, tag or commit.
        token: an access token, for a private repository; by default the one you are logged in with.
        cache_dir: where downloads are kept; by default the Hub's own cache.
        patterns: which files to fetch.

    Raises:
        ValueError: the repository or revision does not exist, or no model in it.
        PermissionError: the token does not open it.
        ConnectionError: the connection broke, or the download is damaged; damaged files are removed from the cache, so
            that the same call fetches them again.
    """
    if Path(name).is_dir():
        return Path(name)
    repo_id, revision = split_revision(name)
    token = checked_token(token)
    with hub_errors(repo_id, uploading=False):
        folder = Path(
            snapshot_download(
                repo_id, revision=revision, token=token, cache_dir=cache_dir, allow_patterns=list(patterns)
            )
        )
    if not folder.is_dir():
        raise ValueError(f"The repository {repo_id} has no model: none of its files is called {', '.join(patterns)}.")
    _verify(repo_id, folder, token, cache_dir)
    return folder


def load_with_stages(
    base: str,
    stages: Sequence[str] = (),
    *,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    **model_options: Any,
) -> tuple[HiVGForVisualGrounding, HiVGProcessor]:
    """A base with HiLoRA stages folded into it, ready for inference, and its processor.

    ```python
    model, processor = load_with_stages("me/hivg-base", ["me/hivg-stage-1", "me/hivg-stage-2"])
    model, processor = load_with_stages("me/hivg-refcoco")  # one exported adapter, which names its base and revision
    ```

    Args:
        base: a model folder or repository (`owner/name@revision` for a branch, tag or commit); or an adapter that
            names its base. (Plain `AutoModel.from_pretrained(adapter)` takes the newest state of that base; this call
            takes the revision that the adapter names.)
        stages: adapters to add to it, folders or repositories, in the order of training.
        token: an access token, for private repositories.
        cache_dir: where downloads are kept.
        model_options: for `from_pretrained` of the base, for example `dtype` or `device_map`; and fields of the
            config, such as `image_size=448`, which the processor then follows.

    Raises:
        FileNotFoundError: a folder has no weights.
        ValueError: no such repository; an adapter was trained with another bridge and head than the base, or
            is its own base; or weights are missing, renamed, of another shape, NaN or infinite.
        ConnectionError: a download failed; the same call tries again.
    """
    folder, adapters = _follow_bases(base, token, cache_dir)
    stage_folders = [*adapters, *(download_checked(stage, token, cache_dir) for stage in stages)]
    image_size = model_options.pop("image_size", None)
    with damaged_files(base):
        _refuse_subclass(base, folder)
        _check_processor_is_there(folder)
        model = load_whole(HiVGForVisualGrounding, folder, **model_options)
        if stage_folders:
            model = _fold_in(model, stage_folders)
        if image_size is not None:  # only now: stages belong to the positions that they were trained with
            model.resize_image(image_size)
        check_tokenizer(folder)
        processor = HiVGProcessor.from_pretrained(folder, trust_remote_code=False)
        if image_size is not None or PROCESSOR_FIELDS & model_options.keys():
            processor = HiVGProcessor.for_config(model.config, processor.tokenizer)
        check_belongs(processor, model.config, base)
        return model, processor


def _refuse_subclass(name: str, folder: Path) -> None:
    """Refuse a model of a class of somebody else's: what that class adds would be left out in silence."""
    classes = read_json(folder / "config.json").get("architectures") or [HiVGForVisualGrounding.__name__]
    if classes != [HiVGForVisualGrounding.__name__]:
        raise ValueError(
            f"The model {name} was saved by the class {', '.join(map(str, classes))[:100]}, of which hivg_hf would "
            "leave out what it adds: open it with that class's from_pretrained."
        )


def _check_processor_is_there(folder: Path) -> None:
    """Refuse a folder of a model alone, before transformers looks for its image processor on the Hub."""
    if not any((folder / name).is_file() for name in ("processor_config.json", "preprocessor_config.json")):
        raise FileNotFoundError(
            f"The folder {folder} has a model and no processor (processor_config.json): save that of the model it "
            f"comes from beside it, as in HiVGProcessor.from_pretrained(ORIGIN).save_pretrained({str(folder)!r})."
        )


def _follow_bases(name: str, token: str | None, cache_dir: str | Path | None) -> tuple[Path, list[Path]]:
    """The folder of a model and those of the adapters that stand between `name` and it, the deepest first."""
    adapters: list[Path] = []
    while folder_kind(folder := download_checked(name, token, cache_dir)) == "adapter":
        if folder.resolve() in [adapter.resolve() for adapter in adapters]:
            raise ValueError(
                f"The adapter {folder} is its own base ({' on '.join(map(str, [*reversed(adapters), folder]))}): name "
                f"a model in base_model_name_or_path of its {ADAPTER_CONFIG_FILE}."
            )
        adapters.insert(0, folder)
        name = _base_of(folder)
    return folder, adapters


def _base_of(folder: Path) -> str:
    """The base that an adapter names, with its revision."""
    config = read_json(folder / ADAPTER_CONFIG_FILE)
    base, revision = config.get("base_model_name_or_path"), config.get("revision")
    if not isinstance(base, str) or not base or not isinstance(revision, str | None):
        raise ValueError(
            f"The adapter {folder} names no base (base_model_name_or_path is {base!r}): load its model, and give the "
            "adapter as a stage."
        )
    if Path(base).is_absolute() and not Path(base).is_dir():
        raise FileNotFoundError(f"The adapter {folder} belongs to the model {base}, which is not there.")
    return base + (f"@{revision}" if revision and not Path(base).is_dir() else "")


def _fold_in(model: HiVGForVisualGrounding, stage_folders: list[Path]) -> HiVGForVisualGrounding:
    """All stages active together, then merged into the weights."""
    from hivg_hf.hilora import add_stages, merge_stages  # seconds, which most users of this file do not need

    stages = {f"stage_{position}": folder for position, folder in enumerate(stage_folders, start=1)}
    return merge_stages(add_stages(model, stages)).eval()


def _verify(repo_id: str, folder: Path, token: str | None, cache_dir: str | Path | None) -> None:
    """Compare checksums with the Hub's listing; remove what differs, so that it is fetched again."""
    if constants.HF_HUB_OFFLINE:
        return
    try:
        with hub_errors(repo_id, uploading=False):
            report = HfApi(token=token).verify_repo_checksums(repo_id, revision=folder.name, cache_dir=cache_dir)
    except ConnectionError as error:
        logger.warning("%s is taken from the cache without comparing checksums. %s", repo_id, error)
        return
    for mismatch in report.mismatches:
        path = folder / mismatch["path"]
        path.resolve().unlink(missing_ok=True)
        path.unlink(missing_ok=True)
    if report.mismatches:
        names = ", ".join(mismatch["path"] for mismatch in report.mismatches)
        raise ConnectionError(
            f"The download of {repo_id} is damaged: {names} differs from its checksum and was removed from the cache. "
            "Run the same again."
        )
