"""A prepared copy of a dataset on disk: every picture once, every row small, both memory-mapped.

    cache.json            what it is for, and with which letterbox
    <split>/rows/         the rows of the schema, each with the number of its picture
    <split>/images.arrow  the pictures

`--for eval` holds the letterboxed pixels that a model's image processor makes (before normalizing), so that nothing is
decoded or resized again. `--for train` holds encoded pictures whose short side is at most 600 pixels, with boxes and
masks scaled to them: what the augmentation crops from.
"""

import io
import json
from collections.abc import Iterator, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np
import pyarrow as pa
from PIL import Image

from hivg_hf.modeling.image_loading_hivg import read_header
from hivg_hf.utils.atomic import atomic_folder, check_name, write_json

from .augmentation import resize_mask
from .collator import letterbox_settings, open_row_image, scale_box
from .order import column_values, without_image_decoding
from .reading import chunks
from .schema import FEATURES, decode_mask, encode_mask
from .splits import resolve_split

Purpose = Literal["eval", "train"]

FORMAT_VERSION = 1
SHORT_SIDE_FOR_TRAINING = 600  # the largest short side that the official augmentation crops from
JPEG_QUALITY = 95
IMAGES_PER_BATCH = 32
IMAGE_COLUMNS = pa.schema(
    [
        ("data", pa.large_binary()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("top", pa.int32()),
        ("left", pa.int32()),
    ]
)


def write_cache(
    splits: Mapping[str, datasets.Dataset], folder: str | Path, purpose: Purpose, image_processor: Any = None
) -> Path:
    """Write the cache of a dataset; the folder appears whole or not at all.

    Args:
        splits: datasets of the schema by split.
        folder: where to; an existing cache there is replaced.
        purpose: `eval` or `train`, see the head of this file.
        image_processor: for `eval`, that of the model.

    Returns:
        The folder.

    Raises:
        ValueError: `purpose` is unknown, the image processor is missing, a picture cannot be read, or the folder
            holds something that is not a cache.
    """
    if purpose not in ("eval", "train"):
        raise ValueError(f"a cache is made for 'eval' or 'train', got {purpose!r}.")
    if purpose == "eval" and image_processor is None:
        raise ValueError("a cache for eval is letterboxed for one model: give its image processor.")
    for name in splits:
        check_name(name, "Split")
    folder = Path(folder)
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "cache.json").is_file():
        raise ValueError(f"{folder} holds other files and no cache; choose another folder.")
    facts = {"format": FORMAT_VERSION, "for": purpose, "splits": {name: len(rows) for name, rows in splits.items()}}
    facts["letterbox"] = letterbox_settings(image_processor) if purpose == "eval" else None
    with atomic_folder(folder) as temporary:
        for name, rows in splits.items():
            (temporary / name).mkdir()
            _write_split(rows, temporary / name, image_processor if purpose == "eval" else None)
        write_json(temporary / "cache.json", facts)
    return folder


def load_cache(folder: str | Path, split: str) -> datasets.Dataset:
    """Open one split of a cache; nothing is read until a row is asked for.

    Returns:
        A dataset of the schema whose rows carry `letterboxed` (for eval) or embedded pictures (for train).

    Raises:
        ValueError: the folder is not a cache, of another format, or has no such split.
    """
    folder = Path(folder)
    if not (folder / "cache.json").is_file():
        raise ValueError(f"{folder} is not a cache made by `hivg survey --for`: it has no cache.json.")
    facts = json.loads((folder / "cache.json").read_text())
    if facts.get("format") != FORMAT_VERSION:
        raise ValueError(
            f"{folder} has cache format {facts.get('format')}, expected {FORMAT_VERSION}; prepare it again."
        )
    split = resolve_split(split, list(facts["splits"]), str(folder))
    rows = datasets.load_from_disk(str(folder / split / "rows"))
    return rows.with_transform(AttachImages(folder / split / "images.arrow", facts["letterbox"]))


class AttachImages:
    """Gives rows their pictures when they are read: the transform of a cached dataset.

    Args:
        path: the file of pictures, memory-mapped on first use in each process.
        letterbox: the settings that the pixels were made with; None for encoded pictures.
    """

    def __init__(self, path: Path, letterbox: Mapping[str, Any] | None) -> None:
        self.path = path
        self.letterbox = letterbox
        self._table: Any = None

    def __call__(self, columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
        if "image_row" not in columns:  # a selection of columns without pictures
            return columns
        numbers = columns.pop("image_row")
        if self.letterbox is None:
            columns["image"] = [{"path": None, "bytes": self._picture(number)[0].as_py()} for number in numbers]
        else:
            columns["letterboxed"] = [self._letterboxed(number) for number in numbers]
        return columns

    def _letterboxed(self, number: int) -> dict[str, Any]:
        data, height, width, top, left = self._picture(number)
        pixels = np.frombuffer(data.as_buffer(), dtype=np.uint8).reshape(height.as_py(), width.as_py(), 3)
        return {"pixels": pixels, "top": top.as_py(), "left": left.as_py(), "settings": self.letterbox}

    def _picture(self, number: int) -> list[Any]:
        if self._table is None:
            self._table = pa.ipc.open_file(pa.memory_map(str(self.path))).read_all()
        batch, row = divmod(number, IMAGES_PER_BATCH)
        return [column.chunk(batch)[row] for column in self._table.columns]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_table": None}


def _write_split(rows: datasets.Dataset, folder: Path, image_processor: Any) -> None:
    rows = without_image_decoding(rows)
    numbers: dict[str, int] = {}
    of_row = []
    first_rows = []
    for position, image in enumerate(column_values(rows, "image")):
        key = image["path"] if image["bytes"] is None else blake2b(image["bytes"]).hexdigest()
        if key not in numbers:
            numbers[key] = len(numbers)
            first_rows.append(position)
        of_row.append(numbers[key])
    with pa.OSFile(str(folder / "images.arrow"), "wb") as sink, pa.ipc.new_file(sink, IMAGE_COLUMNS) as writer:
        for batch in chunks(_pictures(rows.select(first_rows), image_processor), IMAGES_PER_BATCH):
            writer.write_batch(pa.RecordBatch.from_pylist(batch, schema=IMAGE_COLUMNS))
    # A plain struct, not Image(): save_to_disk would read every picture again and store it with every row.
    picture = {"path": datasets.Value("string"), "bytes": datasets.Value("binary")}
    features = datasets.Features({**FEATURES, "image": picture, "image_row": datasets.Value("int64")})
    small = rows.add_column("image_row", of_row).map(
        _without_picture if image_processor is not None else _shrink_row,
        features=features,
        load_from_cache_file=False,
        keep_in_memory=True,
    )
    small.save_to_disk(str(folder / "rows"))


def _pictures(rows: datasets.Dataset, image_processor: Any) -> Iterator[dict[str, Any]]:
    for row in rows:
        picture = open_row_image(row)
        if image_processor is None:
            yield _encoded(row, picture)
            continue
        height, width, top, left = image_processor.geometry(picture.height, picture.width)
        pixels = image_processor.resize_image(picture)  # (h, w, 3) uint8
        yield {"data": pixels.tobytes(), "height": height, "width": width, "top": top, "left": left}


def _encoded(row: Mapping[str, Any], picture: Image.Image) -> dict[str, Any]:
    """The picture's own bytes where it is small enough and opens as it is, otherwise a JPEG of the right size."""
    width, height = training_size(picture.width, picture.height)
    data = row["image"]["bytes"] or Path(row["image"]["path"]).read_bytes()
    with read_header(io.BytesIO(data), "the picture") as original:
        plain = original.format in ("JPEG", "PNG") and original.mode == "RGB" and original.size == (width, height)
    if not plain:
        buffer = io.BytesIO()
        picture.resize((width, height), Image.Resampling.BILINEAR).save(buffer, "JPEG", quality=JPEG_QUALITY)
        data = buffer.getvalue()
    return {"data": data, "height": height, "width": width, "top": 0, "left": 0}


def training_size(width: int, height: int) -> tuple[int, int]:
    """(width, height) with a short side of at most 600 pixels; smaller pictures keep their size."""
    scale = min(1.0, SHORT_SIDE_FOR_TRAINING / min(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def _without_picture(row: dict[str, Any]) -> dict[str, Any]:
    """Keep the path, for drawing; pixels come from the table of pictures."""
    return {**row, "image": {"path": row["image"]["path"], "bytes": None}}


def _shrink_row(row: dict[str, Any]) -> dict[str, Any]:
    """Scale a row's boxes, mask and size to the picture that the cache holds."""
    width, height = training_size(row["width"], row["height"])
    changed = {**row, "image": {"path": None, "bytes": None}, "width": width, "height": height}
    if (width, height) == (row["width"], row["height"]):
        return changed
    scales = (width / row["width"], height / row["height"])
    changed["box"] = None if row["box"] is None else list(scale_box(row["box"], *scales))
    changed["boxes"] = [list(scale_box(box, *scales)) for box in row["boxes"]]
    if row["mask"] is not None:
        changed["mask"] = encode_mask(resize_mask(decode_mask(row["mask"]), width, height))
    return changed
