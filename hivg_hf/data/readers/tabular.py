"""Anybody's own rows: JSONL, JSON, CSV or Parquet with one expression a row, and a box format that is said.

Columns, each renamed by `columns={"image": "file", ...}` where a file calls it otherwise (`columns.py` has the names
that are understood without that):

- `image`: file name below `images`, or an absolute path; in Parquet and on the Hub, the picture itself too;
- `expression`;
- `box`: four numbers ([..] in JSON, "10 20 30 40" or "10,20,30,40" in CSV), or four columns of its own;
- `boxes`: several boxes, in place of `box` (in CSV as JSON text);
- optional: `no_target` (true where the expression names nothing), `split`, `width`, `height`, `category`,
  `image_id`, `ref_id`, `sent_id`, and `mask` (COCO run lengths or polygons, JSON only).
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from hivg_hf.utils.strict_mapping import parse_json, refuse_other

from ..division import choose_rows, embedded_name, picture_key
from ..schema import FEATURES, checked_run_lengths, shown
from ..splits import VALIDATION, resolve_split
from .boxes import (
    BOX_FORMATS,
    FEWEST_BOXES,
    MOST_BOXES,
    Look,
    layout_and_full,
    may_be_shares,
    numbers_of,
    possible_formats,
    refuse_contradicted,
    to_pixels,
    with_point,
)
from .columns import CLASS_NAMES, DETECTION_CSV, resolve_columns, spelled_layout
from .common import (
    ROW_ERRORS,
    Annotations,
    Draft,
    ImageFinder,
    cell_text,
    four_numbers,
    is_blank_number,
    need_file,
    segmentation_to_mask,
    truth,
    whole_side,
)
from .phrases import Several
from .tables import column_of, header_of, open_records, open_stored, place_of, stored_splits


def read_tabular(
    split: str,
    *,
    source: str,
    box_format: str | None = None,
    images: Any = None,
    columns: Mapping[str, str] | None = None,
    holdout: float | None = None,
    encoding: str | None = None,
    several: Several | None = None,
    check_format: bool = True,
    decimal_comma: bool = False,
    masks: bool = True,
) -> Annotations:
    """Read one split of a JSONL, JSON, CSV, TSV or Parquet file.

    Args:
        split: a value of the file's `split` column. A file without one has the single split `all`, or, with
            `holdout`, `train` and `val`.
        source: the path of the file.
        box_format: one of `BOX_FORMATS`: pixels of the original image, or shares of it in 0..1 (`..._normalized`),
            0..100 (`..._100`) or 0..1000 (`..._1000`).
        images: folder or folders of the pictures; the file's own folder by default.
        columns: our name to the file's name, where they differ.
        holdout: share of the images (0..1) whose rows are `val`, chosen by a hash of the image's name; the same image,
            or a near-identical copy, is never in both.
        encoding: of a text file that is not UTF-8, as Python names it.
        several: `apart`, every row is a row; `together`, rows of one image with the same expression are one row with
            several targets. Defaults to `together` where the expressions are class names.
        check_format: whether to refuse a box format that the numbers of the file contradict.
        decimal_comma: whether numbers in text have decimal commas (`0,5`), as spreadsheets write them in much of
            Europe. Without it they are refused, never read as two numbers.
        masks: whether to keep masks.

    Raises:
        ValueError: `box_format` is missing, unknown or contradicted, a column is missing, or the split does not exist.
    """
    path = need_file(Path(source), "the table")
    records = open_records(path, encoding)
    folder = images if images is not None else path.parent
    table = Table(records, path, columns or {}, box_format, folder, masks, decimal_comma)
    return table.annotations(split, path.stem, holdout, check_format, several)


def read_hub_table(
    split: str,
    *,
    source: str,
    box_format: str | None = None,
    images: Any = None,
    columns: Mapping[str, str] | None = None,
    holdout: float | None = None,
    several: Several | None = None,
    check_format: bool = True,
    decimal_comma: bool = False,
    masks: bool = True,
    config: str | None = None,
    revision: str | None = None,
) -> Annotations:
    """Read one split of any dataset on the Hub, or of a folder, that has an image, an expression and a box a row.

    Args:
        split: as the Hub has it. Of a dataset in one piece, as its `split` column has it, or `all`.
        source: `owner/name`, a local folder of such a repository, or one that `save_to_disk` made.
        box_format: what its boxes mean, as for a file.
        images: folder or folders of the pictures where the dataset does not hold them.
        columns: our name to the dataset's name, where they differ.
        holdout: of a dataset in one piece, the share of the images whose rows are `val`, as for a file.
        several: whether rows of one image with the same expression are one row, as for a file.
        check_format: whether to refuse a box format that the numbers contradict.
        decimal_comma: whether numbers in text have decimal commas.
        masks: whether to keep masks.
        config: which of several configurations.
        revision: branch, tag or commit.
    """
    stored = stored_splits(source, config, revision)
    folder = images if images is not None else source if Path(source).is_dir() else "."

    def open_table(name: str | None) -> Table:
        records = open_stored(source, name, config, revision)
        return Table(records, Path(source), columns or {}, box_format, folder, masks, decimal_comma)

    # A dataset of one split is a table like any other: `push_to_hub` calls everything train that has no name.
    whole = split in stored or (split in VALIDATION and bool({*VALIDATION} & {*stored}))
    if len(stored) <= 1 and (holdout is not None or not whole):
        return open_table(stored[0] if stored else None).annotations(split, source, holdout, check_format, several)
    split = resolve_split(split, stored, source)
    table = open_table(split)
    table.names["split"] = "(the Hub's)"  # a column of that name would be another division
    annotations = table.annotations("all", source, None, check_format, several)
    annotations.split = split
    return annotations


class Table:
    """Records with the columns that were found in them.

    Args:
        records: rows by position.
        path: the file, for messages.
        columns: our name to the file's name.
        box_format: what its boxes mean.
        images: folder or folders of the pictures.
        masks: whether to keep masks.
        decimal_comma: whether numbers in text have decimal commas.
    """

    def __init__(
        self,
        records: Sequence[dict[str, Any]],
        path: Path,
        columns: Mapping[str, str],
        box_format: str | None,
        images: Any,
        masks: bool,
        decimal_comma: bool = False,
    ) -> None:
        self.records, self.path, self.masks, self.decimal_comma = records, path, masks, decimal_comma
        self.find = ImageFinder(images)
        header = header_of(records)
        self.is_own_schema = set(header) >= set(FEATURES) and not columns
        if box_format is None and (self.is_own_schema or set(header) >= DETECTION_CSV):
            box_format = "xyxy"
        if box_format not in BOX_FORMATS:
            raise ValueError(
                f"{path}: say what its boxes mean with box_format=, one of {', '.join(BOX_FORMATS)}"
                + (f"; got {box_format!r}." if box_format is not None else self._hint(header, columns))
            )
        self.box_format: str = box_format
        self.header = header
        self.names = resolve_columns(header, columns, box_format, str(path))

    def annotations(
        self, split: str, source: str, holdout: float | None, check: bool, several: Several | None
    ) -> Annotations:
        """The rows of one split; a record is the positions of the rows that make one."""
        column = self.names["split"]
        if several is not None:
            refuse_other("several", several, get_args(Several))
        splits = column_of(self.records, column) if column in self.header else [""] * len(self.records)
        positions, split = choose_rows(
            splits, self._pictures, split, holdout, str(self.path), self.find, f"no column {column!r}"
        )
        has_splits = any(splits)
        if check:
            self.refuse_contradicted(positions)
        together = several == "together" or (several is None and self.names["expression"].lower() in CLASS_NAMES)
        groups = self._groups(positions) if together else None
        shared = self._refs_on_several_images(positions)

        def read(number: int) -> Draft:
            members = [positions[number]] if groups is None else groups[number]
            drafts = []
            for position in members:
                record = self.records[position]
                if has_splits and not cell_text(record.get(column)):
                    raise ValueError(f"its {column} is blank, while other rows name one")
                if position in shared:
                    raise ValueError(f"{shared[position]}; give the objects of each image ids of their own")
                try:
                    drafts.append(self.draft(position))
                except ROW_ERRORS as error:
                    if position == members[0]:
                        raise
                    raise ValueError(f"{error}, in {place_of(self.records, position, self.path)}") from error
            if len(drafts) > 1:
                drafts[0].boxes = [box for draft in drafts for box in draft.boxes]
                drafts[0].mask = None  # masks of several rows are not one mask
            return own_fields(drafts[0], record) if self.is_own_schema else drafts[0]

        def position_of(number: int) -> int:
            return positions[number] if groups is None else groups[number][0]

        return Annotations(
            source,
            split,
            range(len(positions if groups is None else groups)),
            read,
            lambda number, _: f"row {position_of(number)}",
            place=lambda number: place_of(self.records, position_of(number), self.path),
        )

    def draft(self, position: int) -> Draft:
        """The row at a position, not checked yet.

        Raises:
            ValueError: it cannot be read; the message says so where it could with decimal commas.
        """
        record = self.records[position]
        rest = position, self.names, self.box_format, self.find, self.masks
        if self.decimal_comma:
            return _draft(with_points(record, self.names), *rest)
        try:
            return _draft(record, *rest)
        except ValueError as error:
            try:
                changed = with_points(record, self.names)
                boxes = _draft(changed, *rest).boxes if changed != record else []
            except ROW_ERRORS:
                boxes = []
            if not boxes:
                raise
            raise ValueError(f"{error}; if its commas are decimal ones, say decimal_comma=True") from error

    def refuse_contradicted(self, positions: Sequence[int]) -> None:
        """Refuse a box format that the numbers of some rows contradict.

        Raises:
            ValueError: they do.
        """
        refuse_contradicted(self._looks(self.names, positions), self.box_format, str(self.path))

    def _groups(self, positions: Sequence[int]) -> list[list[int]]:
        """Positions of rows by their image and expression, in the order of the first."""
        groups: dict[Any, list[int]] = {}
        for position in positions:
            try:
                record = self.records[position]
                picture = _picture(record, self.names)
                words = cell_text(record.get(self.names["expression"]))
                key = (self.find.picture_name(picture), words) if words else (position, None)
            except ROW_ERRORS:
                key = (position, None)
            groups.setdefault(key, []).append(position)
        return list(groups.values())

    def _refs_on_several_images(self, positions: Sequence[int]) -> dict[int, str]:
        """Positions of rows whose `ref_id` is on several images, with what is wrong: one object is in one image."""
        column, image_column = self.names["ref_id"], self.names["image_id"]
        if column not in self.header:
            return {}
        refs = column_of(self.records, column)
        if self.is_own_schema:  # rows of several sources, which number their objects apart
            refs = [ref and f"{name} {ref}" for name, ref in zip(column_of(self.records, "source"), refs, strict=True)]
        images: Sequence[Any] = column_of(self.records, image_column) if image_column in self.header else []
        if not any(images):
            images = [picture_key(self.find, picture) for picture in self._pictures()]
        images_of: dict[str, dict[Any, None]] = {}
        for position in positions:
            ref, image = refs[position], images[position]
            if ref and image:
                images_of.setdefault(ref, {})[image] = None
        several = {
            ref: [key[0] if isinstance(key, tuple) else key for key in found] for ref, found in images_of.items()
        }
        return {
            position: f"its ref_id is on {len(found)} images ({', '.join(map(shown, found[:3]))})"
            for position in positions
            if len(found := several.get(refs[position] or "", [])) > 1
        }

    def _pictures(self) -> list[Any]:
        """The picture of every row; None where it has none."""
        pictures: list[Any] = []
        for position in range(len(self.records)):
            try:
                pictures.append(_picture(self.records[position], self.names))
            except ROW_ERRORS:
                pictures.append(None)
        return pictures

    def _looks(self, names: Mapping[str, Any], positions: Sequence[int]) -> Iterator[Look]:
        """Boxes all over some rows with the sizes of their images; rows that cannot be read are left out."""
        for position in positions[:: max(1, len(positions) // MOST_BOXES)]:
            try:
                record = with_points(self.records[position], names) if self.decimal_comma else self.records[position]
                boxes = [numbers_of(box) for box in _raw_boxes(record, names)]
                size = _size_of(record, names, self.find) if boxes else (None, None)
            except ROW_ERRORS:
                continue
            if None not in size:
                yield from ((box, *size) for box in boxes)  # type: ignore[misc]

    def _hint(self, header: Sequence[str], columns: Mapping[str, str]) -> str:
        """What the columns or the numbers of a file could mean, as the end of a sentence."""
        spelled = spelled_layout(header) or ("xyxy", ())
        if spelled[0] != "xyxy":  # corners are often called otherwise, and these names are plain
            return f"; its columns {', '.join(spelled[1])} look like {spelled[0]}."
        try:
            names = resolve_columns(header, columns, "xyxy", str(self.path))
        except ValueError:
            return "."
        looks = list(self._looks(names, range(len(self.records))))
        formats = possible_formats(looks) if len(looks) >= FEWEST_BOXES else []
        return f"; the {len(looks)} boxes looked at can be {' or '.join(formats)}." if formats else "."


def own_fields(draft: Draft, record: Mapping[str, Any]) -> Draft:
    """The draft with what only rows of the schema say: where they came from, and which box stands for several."""
    draft.source = cell_text(record.get("source")) or None
    if len(draft.boxes) > 1 and record.get("box") is not None:
        draft.box = four_numbers(record["box"])
    return draft


def _picture(record: Mapping[str, Any], names: Mapping[str, Any]) -> Any:
    """The picture of a record: a file name, or a picture that the table holds.

    Raises:
        ValueError: it names none.
    """
    picture = record.get(names["image"])
    if isinstance(picture, (bytes, bytearray)):
        return {"path": None, "bytes": bytes(picture)}
    if isinstance(picture, Mapping):
        if picture.get("bytes") is not None:
            return {"path": picture.get("path"), "bytes": picture["bytes"]}
        if "bytes" not in picture:  # not a picture as `datasets` stores it
            raise ValueError(f"its image is {shown(dict(picture))}, expected a file name")
        picture = picture["path"]
    if not cell_text(picture):
        raise ValueError("it names no image")
    return picture.strip() if isinstance(picture, str) else picture


def _size_of(record: Mapping[str, Any], names: Mapping[str, Any], find: ImageFinder) -> tuple[int | None, int | None]:
    """The size of a record's image, as it says it or as the picture has it."""
    width, height = (whole_side(record.get(names[side]), side) for side in ("width", "height"))
    if width is not None and height is not None:
        return width, height
    picture = _picture(record, names)
    return _image_size(picture if isinstance(picture, dict) else find(picture))


def _draft(
    record: Mapping[str, Any], position: int, names: Mapping[str, Any], box_format: str, find: ImageFinder, masks: bool
) -> Draft:
    picture = _picture(record, names)
    width, height = (whole_side(record.get(names[side]), side) for side in ("width", "height"))
    path = picture if isinstance(picture, dict) else find(picture)
    image_id = embedded_name(picture) if isinstance(picture, dict) else find.picture_name(picture)
    boxes = [numbers_of(box) for box in _raw_boxes(record, names)]
    known = (width, height)
    if (width is None or height is None) and boxes:
        shares = layout_and_full(box_format)[1] is not None
        if shares or any(map(may_be_shares, boxes)):
            known = _image_size(path)
        width, height = known if shares else (width, height)
    row_id = cell_text(record.get(names["sent_id"])) or str(position)
    mask = record.get(names["mask"]) if masks else None
    return Draft(
        image=path,
        expression=record.get(names["expression"]),
        boxes=[to_pixels(box, box_format, *known) for box in boxes],
        no_target=truth(record.get(names["no_target"]), "no_target"),
        mask=_mask(mask, height, width),
        width=width,
        height=height,
        category=cell_text(record.get(names["category"])) or None,
        image_id=cell_text(record.get(names["image_id"])) or image_id,
        ref_id=cell_text(record.get(names["ref_id"])) or row_id,
        sent_id=row_id,
    )


def with_points(record: Mapping[str, Any], names: Mapping[str, Any]) -> dict[str, Any]:
    """The record with decimal points in place of commas where its cells are numbers in text.

    Raises:
        ValueError: such a cell is not numbers with decimal commas.
    """
    box = names["box"] if isinstance(names["box"], tuple) else (names["box"],)
    cells = {name: record[name] for name in (*box, names["width"], names["height"]) if name in record}
    return {**record, **{name: with_point(cell) for name, cell in cells.items() if isinstance(cell, str)}}


def _raw_boxes(record: Mapping[str, Any], names: Mapping[str, Any]) -> list[Any]:
    """The boxes of a record as four values each; [] where its cells are empty."""
    if isinstance(names["box"], tuple):
        box = [record.get(column) for column in names["box"]]
        return [] if all(map(is_blank_number, box)) else [box]
    several = record.get(names["boxes"])
    if isinstance(several, str) and several.strip():
        several = parse_json(several)
    if several is not None and not isinstance(several, (str, float)) and len(several):
        return list(several)
    whole: Any = record.get(names["box"])
    if isinstance(whole, (str, float)) or whole is None:
        return [] if is_blank_number(whole) else [whole]
    return [whole]


def _mask(mask: Any, height: int | None, width: int | None) -> dict[str, Any] | None:
    """A mask from run lengths or polygons; polygons need the image's size."""
    mask = parse_json(mask) if isinstance(mask, str) and mask.strip() else mask
    if not mask:
        return None
    if isinstance(mask, Mapping):
        checked = checked_run_lengths(mask, height, width)
        return {"size": checked["size"], "counts": checked["counts"].decode("ascii")}
    if height is None or width is None:
        raise ValueError("a mask of polygons needs the columns width and height")
    return segmentation_to_mask([mask], height, width)


def _image_size(path: Any) -> tuple[int | None, int | None]:
    from ..image_check import image_facts

    facts = image_facts(path)
    if facts.problem is not None:
        raise ValueError(facts.problem)
    return facts.width, facts.height
