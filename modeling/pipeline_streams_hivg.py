"""What a grounding pipeline is asked, as a stream of items, and its answers, as a stream of results.

An item is `{"image": one image, "text": an expression or a list of them}`. Entries become items where they are
prepared, one by one, so that what is wrong with one of them is said in its place.
"""

import importlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from .processing_inputs_hivg import IMAGE_TYPES, swapped

PICTURE_NAME = re.compile(r"(https?|file|data):\S+|[^\n]+\.(jpe?g|png|webp|avif|bmp|gif|tiff?|ppm)", re.IGNORECASE)
LONGEST_PHRASE = 255  # a longer text in the place of an image is base64
# What a user's file or expression can cause; anything else is a fault of ours and is raised as it is.
INPUT_ERRORS = (ValueError, TypeError, OSError)


class GroundingResults(list):
    """The results of several expressions, or everything that one expression names (`multiple=True`): a list of plain
    dicts that can also be handed to supervision.

    Attributes:
        best: With `multiple=True`, the answer that scored highest, whether or not it was found; else None.
    """

    def __init__(self, results: Iterable[Any] = (), best: dict[str, Any] | None = None):
        super().__init__(results)
        self.best = best

    def one_by_one(self) -> list[dict[str, Any]]:
        """Every answer: all boxes of each expression, or, where it names nothing, its best with `"found": False`."""
        if self.best is not None:
            return list(self) or [self.best]
        return [answer for result in self for answer in answers_of(result)]

    def to_supervision(self) -> Any:
        """`supervision.Detections` with boxes, scores, masks (where every result has an array) and the expressions.
        Of `multiple=True`, all boxes of all expressions.

        Needs the package supervision, which nothing else here uses.

        Raises:
            ImportError: supervision is not installed.
        """
        try:
            # Not an import statement: transformers would demand the package of everybody who loads this file.
            supervision = importlib.import_module("supervision")
        except ModuleNotFoundError:
            raise ImportError("to_supervision needs the package supervision: pip install supervision") from None
        found = [answer for result in self for answer in (result if isinstance(result, list) else [result])]
        if not found:
            return supervision.Detections.empty()
        corners = [[result["box"][key] for key in ("xmin", "ymin", "xmax", "ymax")] for result in found]
        scores = [result["score"] for result in found]
        expressions = np.array([result["expression"] for result in found])
        masks = [result.get("mask") for result in found]
        return supervision.Detections(
            xyxy=np.array(corners, dtype=np.float32),
            confidence=None if None in scores else np.array(scores, dtype=np.float32),
            mask=np.stack(masks) if all(isinstance(mask, np.ndarray) for mask in masks) else None,
            class_id=np.arange(len(found)),
            data={"class_name": expressions, "expression": expressions},
        )


def answers_of(result: Any) -> list[dict[str, Any]]:
    """What a pipeline gave for one expression or several, as a flat list of answers: `GroundingResults.one_by_one`."""
    if isinstance(result, GroundingResults):
        return result.one_by_one()
    return list(result) if isinstance(result, list) else [result]


class ResultStream:
    """Iterator over results; `len()` works where the input has a length, so that tqdm can show an end."""

    def __init__(self, results: Iterator[Any], length: int | None):
        self._results = results
        self._length = length

    def __iter__(self) -> Iterator[Any]:
        return self._results

    def __next__(self) -> Any:
        return next(self._results)

    def __len__(self) -> int:
        if self._length is None:
            raise TypeError("This stream of results has no known length.")
        return self._length


class PendingItem:
    """An item whose expressions are not all answered yet."""

    def __init__(self, features: dict[str, Any]):
        self.features = features
        self.left = 0 if "error" in features else len(features["expressions"])
        self.results: list[Any] = [None] * self.left

    @property
    def patches(self) -> int:
        """Patches that the model computes for this image; 0 where it computes all of them."""
        return len(self.features.get("patch_index", ()))

    def answer(self) -> Any:
        if "error" in self.features:
            return {"error": str(self.features["error"])}
        return GroundingResults(self.results) if self.features["several"] else self.results[0]


def take_batch(pairs: list[tuple[PendingItem, int]], batch_size: int, patience: int) -> list[tuple[PendingItem, int]]:
    """Remove and return the oldest pair and those whose number of patches is nearest to its own.

    While they differ, nothing is taken until there are `patience` pairs to choose from: a batch computes as many
    patches for each image as for its largest. The oldest pair is always taken, so that none waits for long.

    Args:
        pairs: what is to do, oldest first.
        batch_size: how many to take; fewer only with a patience of 0.
        patience: length of `pairs` from which on they may differ.
    """
    if not pairs or (patience and len(pairs) < batch_size):
        return []
    patches = pairs[0][0].patches
    order = sorted(range(len(pairs)), key=lambda place: abs(pairs[place][0].patches - patches))[:batch_size]
    if len(pairs) < patience and pairs[order[-1]][0].patches != patches:
        return []
    taken = set(order)
    batch = [pairs[place] for place in order]
    pairs[:] = [pair for place, pair in enumerate(pairs) if place not in taken]
    return batch


@dataclass(frozen=True)
class Entry:
    """What somebody gave for one item: an image, or a row that holds it, and the text beside it."""

    value: Any
    text: Any = None


class EntryDataset(Dataset):
    """A dataset of images or rows, read one at a time; a column of images may have an expression for each."""

    def __init__(self, rows: Any, text: Any):
        self.rows = rows
        self.is_paired = isinstance(rows, Sequence) and is_text_list(text)
        self.text = list(text) if self.is_paired else text
        if self.is_paired:
            check_pairs(len(rows), len(self.text))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Entry:
        return Entry(self.rows[index], self.text[index] if self.is_paired else self.text)


def preparing_loader(
    items: Any, preprocess: Callable[..., dict[str, Any]], params: dict[str, Any], num_workers: int
) -> DataLoader:
    """Items, preprocessed one by one and in order, in worker processes where asked for.

    An input that cannot be used becomes `{"error": exception}`: raised in a worker process it would arrive as a page
    of text.
    """
    if hasattr(items, "__len__"):
        return DataLoader(_Prepared(items, preprocess, params), None, num_workers=num_workers, collate_fn=_unchanged)
    # Several workers would each read the whole stream.
    stream = _PreparedStream(items, preprocess, params)
    return DataLoader(stream, None, num_workers=min(num_workers, 1), collate_fn=_unchanged)


class _Prepared(Dataset):
    def __init__(self, items: Any, preprocess: Any, params: dict[str, Any]):
        self.items = items
        self.preprocess = preprocess
        self.params = params

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return _prepare(lambda: self.items[index], self.preprocess, self.params)


class _PreparedStream(IterableDataset):
    def __init__(self, items: Iterable[Any], preprocess: Any, params: dict[str, Any]):
        self.items = items
        self.preprocess = preprocess
        self.params = params

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for item in self.items:
            yield _prepare(lambda item=item: item, self.preprocess, self.params)


def _prepare(read: Any, preprocess: Any, params: dict[str, Any]) -> dict[str, Any]:
    try:
        entry = read()
    except Exception as error:  # the user's own dataset, whose rows may fail in any way
        return {"error": _plain(error)}
    try:
        return preprocess(make_item(entry.value, entry.text), **params)
    except INPUT_ERRORS as error:
        return {"error": _plain(error)}


def _plain(error: Exception) -> Exception:
    """An exception that another process can read: of Python's own, others as a sentence."""
    if type(error).__module__ == "builtins" and isinstance(error, INPUT_ERRORS):
        return error
    kind = next((kind for kind in INPUT_ERRORS if isinstance(error, kind)), None)
    return kind(str(error)) if kind else ValueError(f"A row cannot be read: {type(error).__name__} ({error}).")


def as_rows(inputs: Any) -> Any:
    """A table (of pandas or polars) as a list of its rows; anything else as it is.

    Raises:
        ValueError: If it is several datasets by name.
    """
    if hasattr(inputs, "to_dicts") and hasattr(inputs, "columns"):
        return inputs.to_dicts()
    if hasattr(inputs, "to_dict") and hasattr(inputs, "columns"):
        return inputs.to_dict("records")
    if isinstance(inputs, Mapping) and inputs and all(hasattr(part, "column_names") for part in inputs.values()):
        names = ", ".join(map(repr, inputs))
        raise ValueError(f"{type(inputs).__name__} holds datasets by name ({names}): pass one of them, as data[name].")
    return inputs


def mask_in_form(mask: np.ndarray, form: bool | str) -> Any:
    """A mask (H, W) bool as it was asked for.

    Args:
        mask: The mask.
        form: `True` or `"array"`: as it is; `"pil"`: a picture of mode L, 255 = object; `"rle"`: COCO's run lengths,
            `{"size": [height, width], "counts": [...]}`, column by column, beginning with zeros.
    """
    if form == "pil":
        return PIL.Image.fromarray(mask.astype(np.uint8) * 255)
    if form == "rle":
        pixels = mask.flatten(order="F")
        edges = np.flatnonzero(np.diff(pixels, prepend=False, append=not pixels[-1]))  # where a run ends
        return {"size": list(mask.shape), "counts": np.diff(edges, prepend=0).tolist()}
    return mask


def is_one_image(value: Any) -> bool:
    if isinstance(value, (str, bytes, bytearray, memoryview, PIL.Image.Image)) or hasattr(value, "__fspath__"):
        return True
    if isinstance(value, Mapping):
        return "image" not in value and ("bytes" in value or "path" in value)
    if isinstance(value, (np.ndarray, torch.Tensor)):
        return value.ndim < 4
    return hasattr(value, "read")  # an open file, whose lines are not pictures


def make_item(value: Any, text: Any = None) -> dict[str, Any]:
    """An image with `text`, or a row that holds both -> `{"image", "text": expression or list of them}`.

    Raises:
        TypeError: If the text is neither a string nor a list.
        ValueError: If there is no image or no text.
    """
    if isinstance(value, Mapping) and not is_one_image(value):
        row = value
        text = text if text is not None else row.get("text", row.get("expression"))
        value = row.get("image")
        if value is None or text is None:
            missing = "'image'" if value is None else "expression, under 'text' or 'expression'"
            raise ValueError(f"An input given as a dict must have an {missing}; it has {_listed(row)}.")
    if value is None:
        raise ValueError("An image is missing: None was given in its place.")
    if text is None:
        raise ValueError("There is no expression for an image: pass text=..., or dicts with 'image' and 'text'.")
    _refuse_swapped(value, text)
    if not is_text_list(text) and not isinstance(text, str):
        raise TypeError(f"An expression must be a string or a list of strings, not {type(text).__name__}.")
    if isinstance(text, str):
        return {"image": value, "text": text}
    expressions = list(text)
    for place, expression in enumerate(expressions):
        _refuse_swapped(value, expression)
        if is_text_list(expression):  # a tokenizer would take it for one expression cut into words, or for several
            raise TypeError(
                f"Expression {place} of an image is a {type(expression).__name__}: give one image a flat list of "
                "strings; a list of lists goes with a list of images."
            )
    return {"image": value, "text": expressions}


def _refuse_swapped(image: Any, text: Any) -> None:
    """Refuse an image where the text belongs, and a picture's name there beside a phrase where the image belongs."""
    is_phrase = isinstance(image, str) and len(image) <= LONGEST_PHRASE and not _is_picture_name(image)
    is_picture = isinstance(text, IMAGE_TYPES) and getattr(getattr(text, "dtype", None), "kind", "") not in tuple("UO")
    if is_picture or (is_phrase and _is_picture_name(text)):
        raise TypeError(swapped(text))


def _is_picture_name(text: Any) -> bool:
    return isinstance(text, str) and bool(PICTURE_NAME.fullmatch(text) or os.path.isfile(text))


def _listed(row: Mapping[Any, Any]) -> str:
    names = ", ".join(map(repr, list(row)[:12]))
    return names if len(row) <= 12 else f"{names}, ..."


def is_text_list(text: Any) -> bool:
    """Whether this may be several expressions; what is in it is checked later."""
    no_list = (str, bytes, bytearray, memoryview, Mapping, PIL.Image.Image)
    return isinstance(text, Iterable) and not isinstance(text, no_list) and not hasattr(text, "read")


def pair_up(images: list[Any], text: Any) -> list[Entry]:
    if not is_text_list(text):
        return [Entry(image, text) for image in images]
    texts = list(text)
    check_pairs(len(images), len(texts))
    return [Entry(image, expression) for image, expression in zip(images, texts)]


def check_pairs(images: int, texts: int) -> None:
    if texts != images:
        raise ValueError(
            f"Got {images} images and {texts} expressions: give one expression for all images, one per image, or, to "
            "ask several of each image, a list of expressions per image."
        )


def _unchanged(features: Any) -> Any:
    return features


__all__ = ["GroundingResults", "ResultStream"]
