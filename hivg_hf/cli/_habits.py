"""Options and verbs that people type from habit, because a neighbor or another tool has them: the refusal names the
one here."""

import difflib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

# (what a verb may call it, the best first; what it is called elsewhere)
_SAME = (
    (
        ("model", "teacher", "folder", "path", "base"),
        "model weights checkpoint ckpt base base-model pretrained model-id model-name model-path model-name-or-path m",
    ),
    (("images", "arguments"), "images-dir image-dir img-dir image-folder images-folder image-root images-root"),
    (("image_column", "images", "arguments", "source"), "image images image-path img picture pictures input i"),
    (
        ("expressions", "nouns", "arguments", "text_column", "column"),
        "expression expressions prompt prompts query queries text texts caption phrase label labels classes "
        "candidate-labels",
    ),
    (("out",), "out output outputs output-dir output-folder output-path out-dir save save-dir save-path dest o"),
    (("data", "source"), "data dataset dataset-name data-dir data-path train-file csv annotations table input source"),
    (("val",), "validation validation-file val-file eval-file val-data"),
    (("batch_size",), "batch batch-size bs b per-device-train-batch-size per-device-eval-batch-size"),
    (("num_workers",), "num-workers workers dataloader-num-workers j"),
    (("epochs",), "epoch num-epochs num-train-epochs"),
    (("lr",), "learning-rate lr0"),
    (("threshold", "score_threshold"), "threshold score-threshold box-threshold conf confidence"),
    (("device",), "gpu gpus cuda"),
    (("dtype",), "torch-dtype half fp16 bf16"),
    (("box_format",), "bbox-format"),
    (("seed",), "random-seed"),
)

# What other tools call our verbs.
_VERBS = {
    "ground": "predict infer inference detect run locate image",
    "train": "fit finetune fine-tune",
    "evaluate": "eval test val validate benchmark",
    "get": "download fetch pull",
    "push": "upload publish",
    "demo": "serve app web webui ui gradio",
    "recipes": "list configs",
    "survey": "inspect check",
    "label": "annotate autolabel",
    "--help": "help",
    "--version": "version",
}


def meant_verb(typed: str, verbs: Sequence[str]) -> str | None:
    """The verb that a word which is none stands for; None where nothing is like it."""
    plain = typed.lower().replace("_", "-")
    if plain in verbs:
        return plain
    said = (ours for ours, theirs in _VERBS.items() if plain in theirs.split())
    return next(said, None) or next(iter(difflib.get_close_matches(plain, verbs, n=1, cutoff=0.75)), None)


@contextmanager
def habits_named() -> Iterator[None]:
    """`--weights` where a verb has `--model`, `--out OUT` where it takes OUT as a plain word: the refusal says so."""
    try:
        yield
    except Exception as error:
        # NoSuchOption of click, or of the copy that newer versions of typer bring
        name, context = getattr(error, "option_name", ""), getattr(error, "ctx", None)
        if name and context is not None and type(error).__name__ == "NoSuchOption":
            if (hint := _hint(name.lstrip("-"), context.command.params)) is not None:
                error.message = f"No option {name}: {hint}."  # type: ignore[attr-defined]
                error.possibilities = None  # type: ignore[attr-defined]
        raise


def _hint(typed: str, params: list[Any]) -> str | None:
    """What to write for an option that a verb does not have; None where it has nothing of the kind."""
    has = {one.name: one for one in params}
    for wanted in (typed.replace("-", "_"), *(name for here, said in _SAME if typed in said.split() for name in here)):
        if wanted not in has:
            continue
        if has[wanted].param_type_name == "argument":
            return "its value stands alone here, as in the line of usage above"
        return f"here it is {'--column expression=NAME' if wanted == 'column' else has[wanted].opts[0]}"
    if "change" in has:  # of `hivg train`
        return "what a recipe holds is changed as KEY=VALUE, such as workers=2; hivg recipes --schema lists the keys"
    return None
