"""`GroundBatch`: columns of pictures and expressions in, columns of boxes out.

The one callable that dataset inference is built on: `datasets.map`, Ray Data, any loop over Arrow batches. It names no
file by itself, loads its model once per process, and gives a row that cannot be used an error instead of stopping.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from hivg_hf.hub import DEFAULT_MODEL
from hivg_hf.modeling.image_sources_hivg import base64_bytes
from hivg_hf.modeling.pipeline_hivg import VisualGroundingPipeline
from hivg_hf.modeling.pipeline_streams_hivg import GroundingResults, is_text_list
from hivg_hf.utils.imports import require_package

from .loading import answer_as_json, load_pipeline

BOX = pa.list_(pa.float32(), 4)  # xyxy pixels of the original image, as in the schema of hivg_hf.data
MASK = pa.struct([("size", pa.list_(pa.int32(), 2)), ("counts", pa.string())])  # COCO's compressed run lengths
PLURALS = {"box": "boxes", "score": "scores", "mask": "masks"}  # columns of each box, with `multiple` of all
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


@dataclass
class GroundBatch:
    """Ground a batch of columns; picklable, and the model is loaded at the first call in each process.

    ```python
    >>> ground = GroundBatch(image_column="file_name", text_column="caption", images="photos")
    >>> ground({"file_name": ["street.jpg"], "caption": ["the man in blue"]})
    {'file_name': ['street.jpg'], 'caption': ['the man in blue'], 'box': [[12.4, ...]], 'score': [0.93], ...}
    ```

    Args:
        model: A name that `hivg_hf.hub.resolve_model` knows. Defaults to the included checkpoint.
        image_column: Column of pictures: bytes, `{"bytes", "path"}`, PIL images, arrays or paths. A dotted name
            (`json.picture`) is a field of a struct.
        text_column: Column of expressions. A row may hold a list of them: the picture is opened once, and `box`,
            `score` and `found` are then lists.
        batch_size: Pairs of picture and expression per pass.
        num_workers: Processes that open pictures beside the model; each call starts them, so use large batches.
        mask: Whether to add the column `mask`, COCO run lengths (needs the extra `data`).
        threshold: Scores below it mean not found. Defaults to the checkpoint's own, `found` is None without one.
        multiple: Whether to add the columns `boxes` and `scores` (and `masks`): all that reach the threshold (0.5
            where there is none), the highest score first. `box` and `score` stay those of the best.
        images: Folder that relative paths are resolved against. Defaults to the working directory.
        allow_paths: Whether a row may name a file of this machine. Switch it off for rows from elsewhere.
        allow_urls: Whether a row may name an http or https URL, which is then fetched.
        several: Whether rows hold lists of expressions. Defaults to what the first row of each batch shows.
        reduce_jpeg: Whether large JPEGs are decoded at a reduced scale: much faster, a little less exact.
        prefix: Put before the names of the added columns.
        engine: Further arguments of `load_pipeline`: `device`, `dtype`, `backend`, `precision`, `num_threads`, ...
    """

    model: str | Path = DEFAULT_MODEL
    image_column: str = "image"
    text_column: str = "expression"
    batch_size: int = 16
    num_workers: int = 0
    mask: bool = False
    threshold: float | None = None
    multiple: bool = False
    images: str | Path | None = None
    allow_paths: bool = True
    allow_urls: bool = False
    several: bool | None = None
    reduce_jpeg: bool = False
    prefix: str = ""
    engine: dict[str, Any] = field(default_factory=dict)
    _pipe: VisualGroundingPipeline | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}.")
        # Workers on the same machine may have another working directory.
        self.model = str(Path(self.model).absolute()) if Path(self.model).exists() else str(self.model)
        self.images = None if self.images is None else Path(self.images).absolute()
        if self.mask:
            require_package("pycocotools", extra="data")  # writes run lengths; asked for before the work begins

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pipe": None}

    @property
    def pipe(self) -> VisualGroundingPipeline:
        """The pipeline of this process."""
        if self._pipe is None:
            engine = {name: value for name, value in self.engine.items() if value is not None}
            self._pipe = load_pipeline(self.model, **engine)
        return self._pipe

    def __call__(self, batch: Any) -> Any:
        """A batch with the columns `box`, `score`, `found`, `error` (and `mask`) added.

        Args:
            batch: An Arrow table or record batch, or a mapping of columns (lists or numpy arrays).

        Returns:
            The same kind of batch. Boxes are xyxy pixels of the original, upright picture. A row that cannot be used
            has an `error`, and None in the other columns (NaN where they are numpy arrays).

        Raises:
            ValueError: If a column is missing, or one of the added columns exists already.
        """
        is_arrow = isinstance(batch, (pa.Table, pa.RecordBatch))
        names = batch.schema.names if is_arrow else list(batch)
        self.check_columns(names)
        pictures, texts = column_values(batch, self.image_column), column_values(batch, self.text_column)
        several = self.several if self.several is not None else any(map(is_text_list, texts[:1]))
        answers = self.answer(pictures, texts, several)
        added = {name: [row[name] for row in answers] for name in self.added_types(several)}
        if is_arrow:
            for name, kind in self.added_types(several).items():
                batch = batch.append_column(self.prefix + name, pa.array(added[name], kind))
            return batch
        if names and isinstance(batch[names[0]], np.ndarray) and not several:
            added = _as_arrays(added)
        return {**{name: batch[name] for name in names}, **{self.prefix + name: added[name] for name in added}}

    def added_types(self, several: bool) -> dict[str, pa.DataType]:
        """Arrow types of the added columns, without the prefix."""
        types = {"box": BOX, "score": pa.float32(), "found": pa.bool_(), **({"mask": MASK} if self.mask else {})}
        if self.multiple:
            types |= {PLURALS[name]: pa.list_(types[name]) for name in PLURALS if name in types}
        return {**{name: pa.list_(kind) if several else kind for name, kind in types.items()}, "error": pa.string()}

    def check_columns(self, names: Sequence[str]) -> None:
        """Refuse columns that are missing, and names that are taken."""
        for role, name in (("image", self.image_column), ("text", self.text_column)):
            if not any(root in names for root in _roots(name)):
                raise ValueError(
                    f"There is no column {name!r} for the {role}; the columns are {', '.join(names)}. Choose one with "
                    f"{role}_column='its name'."
                )
        taken = [self.prefix + name for name in self.added_types(False) if self.prefix + name in names]
        if taken:
            raise ValueError(
                f"The column {', '.join(taken)} exists already and would be overwritten: set a prefix for the added "
                "columns, as in prefix='predicted_'."
            )

    def answer(self, pictures: Sequence[Any], texts: Sequence[Any], several: bool) -> list[dict[str, Any]]:
        """One dict of the added columns per row, whatever is wrong with a row."""
        items, owners, answers = self._items(pictures, texts, several)
        results = self._ask(items)
        for item, rows, found in zip(items, owners, results, strict=True):
            if "error" in found and len(item["text"]) > 1:  # one expression may be at fault, or the picture
                found = {"each": [self._ask([{**item, "text": [text]}])[0] for text in item["text"]]}
            elif "error" in found:
                found = {"each": [found]}
            position = 0
            for row, count in rows:
                answers[row] = self._row(found["each"][position : position + count], several)
                position += count
        return answers

    def _items(
        self, pictures: Sequence[Any], texts: Sequence[Any], several: bool
    ) -> tuple[list[dict[str, Any]], list[list[tuple[int, int]]], list[dict[str, Any]]]:
        """Rows -> questions of the pipeline; consecutive rows of one picture share a question.

        Returns:
            The questions, the rows (index, number of expressions) of each, and the answers of rows without a question.
        """
        items: list[dict[str, Any]] = []
        owners: list[list[tuple[int, int]]] = []
        answers: list[dict[str, Any]] = [{} for _ in texts]
        previous: Any = None
        for row, (picture, text) in enumerate(zip(pictures, texts, strict=True)):
            try:
                source, expressions = self._picture(picture), _expressions(text, several, self.text_column)
            except (ValueError, TypeError) as error:
                answers[row] = self._empty(str(error))
                continue
            if not expressions:
                answers[row] = {
                    **self._empty(None),
                    **{name: [] for name in self.added_types(True) if name != "error"},
                }
                continue
            if items and _is_same(source, previous):
                items[-1]["text"].extend(expressions)
                owners[-1].append((row, len(expressions)))
            else:
                items.append({"image": source, "text": list(expressions)})
                owners.append([(row, len(expressions))])
            previous = source
        return items, owners, answers

    def _ask(self, items: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """`{"each": [result, ...]}` or `{"error": sentence}` per question."""
        if not items:
            return []
        options = {"batch_size": self.batch_size, "num_workers": self.num_workers, "on_error": "return"}
        options |= {name: True for name in ("multiple", "reduce_jpeg") if getattr(self, name)}
        results = self.pipe(items, mask=self.mask, threshold=self.threshold, **options)
        return [result if isinstance(result, dict) else {"each": list(result)} for result in results]

    def _row(self, results: list[dict[str, Any]], several: bool) -> dict[str, Any]:
        parts = [self._part(result["each"][0] if "each" in result else result) for result in results]
        if not several:
            return parts[0]
        errors = dict.fromkeys(part["error"] for part in parts if part["error"])
        row = {name: [part[name] for part in parts] for name in self.added_types(True) if name != "error"}
        return {**row, "error": "; ".join(errors) or None}

    def _part(self, result: Any) -> dict[str, Any]:
        if isinstance(result, GroundingResults):
            part, each = self._part(result.best), [self._part(one) for one in result]
            every = {PLURALS[name]: [one[name] for one in each] for name in PLURALS if name in part}
            return part if part["error"] else {**part, **every}
        if "error" in result:
            return self._empty(result["error"])
        try:
            plain = answer_as_json(result)
        except ValueError as error:  # the model's answer is not finite
            return self._empty(str(error))
        row = {"box": list(plain["box"].values()), "score": plain["score"], "found": plain.get("found"), "error": None}
        return {**row, "mask": plain["mask"]} if self.mask else row

    def _empty(self, error: str | None) -> dict[str, Any]:
        return {**dict.fromkeys(self.added_types(False)), "error": error}

    def _picture(self, value: Any) -> Any:
        """What a row holds for its picture -> what the pipeline may open.

        Raises:
            ValueError: If there is no picture, or it is named by a URL or a path that is not allowed.
        """
        if isinstance(value, Mapping):
            value = value["bytes"] if value.get("bytes") is not None else value.get("path")
        if value is None or (isinstance(value, str) and not value.strip()):
            raise ValueError("The row has no image.")
        if not isinstance(value, (str, Path)):
            return value
        text = str(value)
        if text[:5].lower() == "data:":
            return text
        if _SCHEME.match(text):
            if self.allow_urls and text[:8].lower().startswith(("http://", "https://")):
                return text
            raise ValueError(
                f"The row names its image by a URL, {text[:200]!r}, which is not fetched unless allowed: pass "
                "allow_urls=True, which opens http and https, or embed the pictures."
            )
        if self.allow_paths:
            path = Path(self.images or "") / text
            try:
                if path.exists():
                    return path
            except (OSError, ValueError):  # a name that is too long, or holds a NUL: base64, or not a file
                pass
        picture = base64_bytes(text)
        if picture is not None:
            return picture
        if self.allow_paths:
            return Path(self.images or "") / text  # the pipeline says what is wrong with it
        raise ValueError(
            f"The row names the file {text[:200]!r}, and rows from elsewhere may not open files of this machine: "
            "embed the pictures, or read a local copy of the table."
        )


def column_values(batch: Any, name: str) -> list[Any]:
    """A column as a list of Python objects; `a.b` is the field b of a, and `jpg;png` the first that a row has."""
    if ";" in name:
        names = [one for one in name.split(";") if any(root in _names(batch) for root in _roots(one))]
        columns = [column_values(batch, one) for one in names]
        return [next((value for value in row if value is not None), None) for row in zip(*columns, strict=True)]
    column, _, inner = name.partition(".") if name not in _names(batch) else (name, "", "")
    values = batch[column]
    if isinstance(values, (pa.Array, pa.ChunkedArray)):
        values = values.to_pylist()
    values = [value.item() if isinstance(value, np.generic) else value for value in values]
    for part in inner.split(".") if inner else ():
        values = [value.get(part) if isinstance(value, Mapping) else None for value in values]
    return values


def _names(batch: Any) -> Sequence[str]:
    return batch.schema.names if isinstance(batch, (pa.Table, pa.RecordBatch)) else list(batch)


def _roots(name: str) -> list[str]:
    """Columns in which a name may be found."""
    return [root for one in name.split(";") for root in (one, one.partition(".")[0])]


def _expressions(text: Any, several: bool, column: str) -> list[str]:
    """The expressions of a row.

    Raises:
        ValueError: If there is none, or a list where one was expected.
    """
    if text is None:
        raise ValueError(f"The row has no expression ({column} is empty).")
    if several:
        if not is_text_list(text):
            raise ValueError(f"{column} is a {type(text).__name__}, expected a list of expressions as in other rows.")
        expressions = [str(one) if isinstance(one, np.str_) else one for one in text]
    else:
        expressions = [text]
    if wrong := [one for one in expressions if not isinstance(one, str)]:
        raise ValueError(f"{column} holds {wrong[0]!r:.80}, expected an expression (a string).")
    return expressions


def _is_same(picture: Any, previous: Any) -> bool:
    if type(picture) is not type(previous):
        return False
    return picture == previous if isinstance(picture, (bytes, str, Path)) else picture is previous


def _as_arrays(added: dict[str, list[Any]]) -> dict[str, Any]:
    """Columns as numpy arrays: boxes (N, 4) and scores (N,) with NaN for None, the others as objects."""
    boxes = np.array([box if box is not None else [np.nan] * 4 for box in added["box"]], dtype=np.float32)
    arrays: dict[str, Any] = {"box": boxes.reshape(-1, 4)}
    arrays["score"] = np.array([np.nan if score is None else score for score in added["score"]], dtype=np.float32)
    for name in added.keys() - arrays.keys():
        arrays[name] = np.empty(len(boxes), dtype=object)
        arrays[name][:] = added[name]
    return {name: arrays[name] for name in added}
