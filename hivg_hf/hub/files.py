"""Which files of a folder are the model's own: the only ones that may be uploaded, and all of them must be there."""

import hashlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open
from transformers.dynamic_module_utils import get_relative_imports

from hivg_hf import modeling
from hivg_hf.utils.strict_mapping import parse_json
from hivg_hf.utils.whole_weights import INDEX_FILE, check_finite, shards_of

CODE_FOLDER = Path(modeling.__file__ or "").parent
FolderKind = Literal["model", "adapter"]

CARD_FILE = "README.md"
ADAPTER_CONFIG_FILE = "adapter_config.json"
PROCESSOR_FILES = ("processor_config.json", "tokenizer.json", "tokenizer_config.json")
# Written by some versions of the libraries, and belonging to the model where they are.
OPTIONAL_FILES = (
    CARD_FILE,
    "LICENSE",
    "hilora.json",  # of a stage or its base: which bridge and head belong together
    "preprocessor_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)
ONNX_FILES = re.compile(r"onnx/((text_|grounding_)?model(_quantized|_fp16)?\.onnx(_data|\.data)?|grounding\.json)")
_MODULE_NAME = re.compile(r"[A-Za-z]\w*\.py", re.ASCII)
# Paths in a repository that an update replaces as a whole: what the new commit does not write, it deletes.
REPLACED = re.compile(
    r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json|\w+_hivg\.py"
    r"|adapter_config\.json|adapter_model\.safetensors|" + ONNX_FILES.pattern
)


def folder_kind(folder: Path) -> FolderKind:
    """Whether a folder holds a whole HiVG model or a PEFT adapter of one.

    Raises:
        FileNotFoundError: the folder is missing.
        ValueError: the folder holds neither.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"Folder not found: {folder}; give one that save_pretrained wrote.")
    if (folder / ADAPTER_CONFIG_FILE).is_file():
        return "adapter"
    if (folder / "config.json").is_file() and read_json(folder / "config.json").get("model_type") == "hivg":
        return "model"
    raise ValueError(
        f"The folder {folder} is neither a HiVG model (config.json with model_type hivg) nor an adapter "
        f"({ADAPTER_CONFIG_FILE}); give one that save_pretrained wrote."
    )


def files_to_push(folder: Path, onnx: bool = False) -> list[Path]:
    """The files of a model or adapter folder that belong in a repository, by name; everything else stays home.

    Args:
        folder: a folder that `save_pretrained` wrote.
        onnx: also the ONNX files that `hivg export` wrote into it.

    Returns:
        Paths relative to the folder, sorted.

    Raises:
        FileNotFoundError: the folder is missing, or a file that the model needs is missing from it.
        ValueError: the folder has no model; its weights cannot be read or are not finite; or a file is not really
            in the folder.
    """
    if folder_kind(folder) == "adapter":
        weights, required = [Path("adapter_model.safetensors")], [Path(ADAPTER_CONFIG_FILE)]
    else:
        weights, required = [Path(name) for name in shards_of(folder) or ["model.safetensors"]], [Path("config.json")]
        required += [Path(INDEX_FILE)] if len(weights) > 1 else []
    # An adapter may come without a processor, which is then that of its base.
    if folder_kind(folder) == "model" or (folder / PROCESSOR_FILES[0]).is_file():
        required += [*map(Path, PROCESSOR_FILES), *_code_files(folder)]
    for path in (*required, *weights):
        if not located(folder, path).is_file():
            raise FileNotFoundError(
                f"The file {path} is missing from {folder}; save the model and its processor there again "
                "(pipeline.save_pretrained writes both)."
            )
    optional = [Path(name) for name in OPTIONAL_FILES if (folder / name).is_file()]
    if onnx:
        optional += _onnx_files(folder)
    files = sorted({*weights, *required, *optional})
    for path in files:
        _check_inside(folder, path)
    for path in weights:
        _check_weights(folder / path)
    return files


def _onnx_files(folder: Path) -> list[Path]:
    found = [path.relative_to(folder) for path in sorted((folder / "onnx").glob("*"))]
    found = [path for path in found if ONNX_FILES.fullmatch(path.as_posix())]
    if Path("onnx/model.onnx") not in found:
        raise FileNotFoundError(
            f"There is no onnx/model.onnx in {folder}: write it with hivg export {folder} --out {folder}."
        )
    return found


def located(folder: Path, path: Path) -> Path:
    """Where a file of a model folder lies: in the folder, or with this package if it is code that the folder lacks.

    The checkpoint of a checkout has no copy of the code. A folder that has some of it is not completed: what is
    missing there may have been another version's.
    """
    if path.suffix != ".py" or any(folder.glob("*_hivg.py")):
        return folder / path
    return CODE_FOLDER / path


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        ValueError: the file holds something else.
    """
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"The file {path} is not readable JSON ({error}); save the model again.") from None
    if not isinstance(content, dict):
        raise ValueError(f"The file {path} holds a {type(content).__name__}, not an object; save the model again.")
    return content


def weights_fingerprint(name: str | Path) -> str | None:
    """What tells one model folder from another that took its place: a hash of its weights, configs and tokenizer.

    None for a model that is not a folder here: a repository is told by its revision.
    """
    from .names import resolve_model  # which reads configs as this file does

    try:
        folder = Path(resolve_model(name))
    except (OSError, ValueError):
        return None  # whoever opens the model says what is wrong with its name
    if not folder.is_dir():
        return None
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in (".safetensors", ".json") and path.is_file():
            with path.open("rb") as file:
                digest.update(f"{path.name}\0".encode() + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def _check_inside(folder: Path, path: Path) -> None:
    """Refuse a file whose content lies elsewhere: a link would send what it points to.

    The checkpoint of a checkout links to the model's code, which is meant to be sent.
    """
    target = (folder / path).resolve()
    if not target.is_relative_to(folder.resolve()) and target.parent != CODE_FOLDER.resolve():
        raise ValueError(
            f"The file {path} in {folder} leads to {target}, outside the folder, and would be sent; copy into the "
            "folder what belongs to the model (cp -L), and remove what does not."
        )


def _check_weights(path: Path) -> None:
    """Refuse a file that is cut off, is not safetensors, or holds NaN or infinite values."""
    try:
        with safe_open(path, framework="pt") as tensors:
            for name in tensors.keys():
                check_finite(path, {name: tensors.get_tensor(name)})
    except SafetensorError as error:
        raise ValueError(f"The weights {path} are damaged ({error}); save the model again.") from None


def _code_files(folder: Path) -> set[Path]:
    """The Python files that the configs name, and those that these import from beside them."""
    configs = [read_json(folder / name) for name in ("config.json", PROCESSOR_FILES[0]) if (folder / name).is_file()]
    # "module.Class"; with a prefix "repository--" the code is read from that repository instead.
    modules = {name.rpartition(".")[0] for name in _class_names(configs) if "--" not in name}
    found, left = set(), {Path(f"{module}.py") for module in sorted(modules)}
    while left:
        path = left.pop()
        if not _MODULE_NAME.fullmatch(path.as_posix()):
            raise ValueError(
                f"The model's code would include {path.as_posix()!r}, which is not a Python file beside the config; "
                "correct auto_map and the imports of the code, or save the model again."
            )
        found.add(path)
        if (source := located(folder, path)).is_file():  # the caller names a missing one with every other missing file
            _check_inside(folder, path)
            # no recursion of transformers' own: it would follow an import out of the folder
            left |= {Path(f"{name}.py") for name in get_relative_imports(source)} - found
    return found


def _class_names(configs: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Every class that `auto_map` and `custom_pipelines` name, those of nested configs included."""
    for config in configs:
        for value in _mapping(config, "auto_map").values():
            names = [value] if isinstance(value, str) else [name for name in value or () if name]
            yield from map(str, names)
        for entry in _mapping(config, "custom_pipelines").values():
            yield str(entry["impl"] if isinstance(entry, dict) and "impl" in entry else entry)
        yield from _class_names(nested for nested in config.values() if isinstance(nested, dict))


def _mapping(config: dict[str, Any], key: str) -> dict[str, Any]:
    value = config.get(key) or {}
    if not isinstance(value, dict):
        raise ValueError(
            f"{key} in the model's config must map names to classes. Got {value!r}; save the model again."
        )
    return value
