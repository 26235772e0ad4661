"""What a model can be called, in one place: every command, recipe and function that takes a model asks here.

tiny, hivg-tiny-refshapes      the checkpoint in the package
official:base-mixup            what the authors publish, see `official`
runs/mine                      a folder of `hivg train`: its finished model
FOLDER                         what save_pretrained wrote
owner/name, owner/name@REV     a repository on the Hub
"""

import difflib
import json
from pathlib import Path

from hivg_hf.checkpoints import TINY_CHECKPOINT
from hivg_hf.conversion.published import PREFIX

DEFAULT_MODEL = "tiny"
TINY_NAMES = (DEFAULT_MODEL, "hivg-tiny-refshapes")
_MODEL_FILES = ("config.json", "adapter_config.json")


def resolve_model(name: str | Path) -> str:
    """A model's name to the folder it stands for, or to a repository on the Hub; a folder of that name comes first.

    Official models are downloaded and converted where they are not in the cache.

    Raises:
        FileNotFoundError: the folder is missing, no model in it, or the shipped checkpoint is not installed.
        ValueError: the official model is unknown; or what `open_official` raises.
        ConnectionError: a download broke; the same call resumes it.
    """
    name = str(name)
    if Path(name).is_dir():
        return str(_model_in(Path(name)))
    if Path(name).exists():
        advice = (
            f"convert it first: hivg convert {name} FOLDER" if name.endswith((".pth", ".pt")) else "see docs/use.md"
        )
        raise FileNotFoundError(
            f"'{name}' is a file; a model is a folder or a Hub id such as 'user/model' ({advice})."
        )
    if name in (*TINY_NAMES, TINY_CHECKPOINT):
        if not Path(TINY_CHECKPOINT).is_dir():
            raise FileNotFoundError(
                "The included checkpoint hivg-tiny-refshapes is not in this installation: train it with `hivg train "
                "hivg-tiny-refshapes --out RUN`, or name another model."
            )
        return TINY_CHECKPOINT
    if name.startswith(PREFIX):
        from .official import open_official  # brings the conversion, which other names do not need

        return str(open_official(name.removeprefix(PREFIX)))
    known = () if "/" in name else difflib.get_close_matches(name.lower(), TINY_NAMES, n=1, cutoff=0.8)
    if intended := [name.lower()] if name.lower().startswith(PREFIX) else known:
        raise FileNotFoundError(f"Unknown model '{name}': did you mean '{intended[0]}'?")
    if Path(name).is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise FileNotFoundError(f"Model folder not found: '{name}'.")
    return name


def is_tiny(name: str | Path) -> bool:
    """Whether a name stands for the checkpoint in the package, which knows rendered shapes only."""
    path = Path(name)
    return (str(name) in TINY_NAMES and not path.is_dir()) or path.resolve() == Path(TINY_CHECKPOINT).resolve()


def _model_in(folder: Path) -> Path:
    """A model's own folder, or the one in which a run of `hivg train` left its model."""
    if any((folder / file).exists() for file in _MODEL_FILES):
        return folder
    results = folder / "results.json"
    if (folder / "recipe.json").is_file() and not results.is_file():
        raise FileNotFoundError(
            f"The run '{folder}' has no finished model yet: start it again to finish it, or name one of its exports."
        )
    if results.is_file():
        # A results file of `hivg evaluate` describes a model in words; that of a run names a folder beside it.
        content = json.loads(results.read_text(encoding="utf-8"))
        model = content.get("model") if isinstance(content, dict) else None
        if model in ("model", "merged") and (folder / model / "config.json").is_file():
            return folder / model
    raise FileNotFoundError(f"The folder '{folder}' has no model: it has no config.json.")
