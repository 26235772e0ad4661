"""`load_grounding_dataset`: any source and split to rows of the one schema, complete or with a sentence why not."""

from collections.abc import Mapping, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import Any, get_args

from hivg_hf.utils.plugins import allowing_code
from hivg_hf.utils.strict_mapping import refuse_other

from .mixture import GroundingMixture
from .negatives import NegativeRows, Negatives
from .order import column_values
from .readers import SOURCES
from .readers.recognition import is_cache
from .reading import check_options, open_source, read_rows, settle, usable_positions
from .rows import MultiTarget, OnError, VerifyImages
from .shard_stream import ShardStream, mix_streams
from .splits import split_names
from .streaming import GroundingStream

SPLIT_NAMES = ("train", "val", "validation", "test", "testA", "testB", "all")  # for the message about swapped names
STREAM_OPTIONS = ("seed", "shuffle", "batch_size")  # how the rows of any stream are taken
SHARD_OPTIONS = (*STREAM_OPTIONS, "lanes", "buffer")  # and those of one in shards


def load_grounding_dataset(
    source: str | PathLike[str],
    split: str | None = None,
    *,
    streaming: bool = False,
    multi_target: MultiTarget = "keep",
    on_error: OnError = "raise",
    verify_images: VerifyImages = "quick",
    negatives: Mapping[str, Any] | Negatives | None = None,
    allow_code: bool = False,
    **options: Any,
) -> Any:
    """Load one split of any source as rows of the schema (`hivg_hf.data.schema.FEATURES`).

    Args:
        source: a name (`refcoco`, `unc`, `flickr30k-entities`, `refshapes`, `jxu124/refcoco`, ...; all of them in
            `hivg_hf.data.readers.SOURCES`), a file or a folder in one of `hivg_hf.data.readers.FORMATS` (tables, COCO,
            ODVG, GRIT, conversations, Label Studio, CVAT, VOC, YOLO, Roboflow, ...), any dataset of the Hub as
            `owner/name`, a folder of `save_to_disk`, a cache that `hivg survey --for` wrote, or `mixture` with
            `parts=[{"source": ..., "weight": ...}, ...]`.
        split: exactly the split that is read, or several joined by "+" (`val+none`); it has to be named. `validation`
            is understood for `val`; RefCOCO's `test` is its testA.
        streaming: True makes rows when they are asked for and returns a `GroundingStream`, an `IterableDataset`;
            further options are then `seed`, `shuffle` and `batch_size`. Of shards (tars, patterns of files, datasets
            of the Hub), it is a `ShardStream`, which checks a row when it comes and has the options `lanes`, `buffer`.
        multi_target: for expressions with several targets. `keep` leaves `box` empty (training refuses such rows),
            `union` makes `box` the one around all, `drop` leaves the rows out. `boxes` has them all.
        on_error: `raise` stops with a list of every row that cannot be used; `skip` leaves them out and logs how many.
        verify_images: `quick` (files are there, whole, of the annotated size), `decode` (and can be decoded), `no`.
        negatives: for training: let a share of the rows ask for what their picture does not show, other rows in each
            epoch; a mapping with the fields of `hivg_hf.data.Negatives`, such as `{"share": 0.2}`. RefShapes checks
            them by its scenes, a table by its own expressions.
        allow_code: let `source` be `package.module:function`, a reader that is imported and run.
        **options: of the reader, such as `root`, `images`, `masks`, `box_format`; `format`, a key of `FORMATS`, where
            a file is not recognized; for `refshapes` those of `refshapes_dataset`.

    Returns:
        A `datasets.Dataset`, a `GroundingStream` (of shards, a `ShardStream`), a `GroundingMixture`, or, with
        `negatives`, `NegativeRows`.

    Example:
        >>> from hivg_hf import load_grounding_dataset
        >>> rows = load_grounding_dataset("refshapes", "val+none", seed=1, size=2)
        >>> rows["no_target"][:]
        [False, False, True, True]

    Raises:
        ValueError: the source, the split or an option is unknown, or rows cannot be used.
        FileNotFoundError: an annotation file or a folder is missing.
    """
    split = _checked_split(source, split)
    how: dict[str, Any] = {"multi_target": multi_target, "on_error": on_error, "verify_images": verify_images}
    chosen = None if negatives is None else Negatives.read(negatives)
    if chosen is not None and source == "mixture":
        options["negatives"] = chosen  # of each part, among its own rows
        chosen = None
    if chosen is not None and streaming:
        raise ValueError(
            "negatives are made from the expressions of all rows, which a stream does not hold: omit "
            "streaming or negatives."
        )
    with allowing_code(allow_code):
        if "+" in split:
            rows = _load_splits(fspath(source), split, streaming=streaming, **how, **options)
        else:
            rows = _load(fspath(source), split, streaming, **how, **options)
    return rows if chosen is None else _with_negatives(rows, chosen, fspath(source), split, options)


def _checked_split(source: Any, split: Any) -> str:
    """The split, where source and split are what they should be.

    Raises:
        TypeError: one of them is not a name.
        ValueError: no split is named, or the two are swapped.
    """
    if not isinstance(source, (str, PathLike)):
        raise TypeError(
            f"The source must be a name, a file or a folder, got {type(source).__name__}: rows that are loaded "
            "already go into HiVGTrainer or the pipeline as they are; save others as a CSV, JSONL or Parquet file."
        )
    if not isinstance(split, str):
        raise ValueError(
            f"The split of {fspath(source)} must be a name, got {split!r:.80}: write "
            f"load_grounding_dataset({fspath(source)!r}, 'train', ...), or 'all' for a file that is not divided."
        )
    if source in SPLIT_NAMES and (split in (*SOURCES, "refshapes") or Path(split).exists()):
        raise ValueError(f"Source and split are swapped: write load_grounding_dataset({split!r}, {source!r}, ...).")
    return split


def _with_negatives(
    rows: Any, negatives: Negatives, source: str, split: str, options: Mapping[str, Any]
) -> NegativeRows:
    """Rows of a table that ask for what is not there; of RefShapes, as its scenes prove.

    Raises:
        ValueError: an option does not go with RefShapes.
    """
    if source != "refshapes":
        return NegativeRows(rows, negatives)
    from .refshapes.negatives import SceneNegatives
    from .refshapes.samples import SampleOptions

    plain = Negatives(negatives.share, negatives.kinds, seed=negatives.seed)
    if "+" in split or options.get("foils") or negatives != plain:
        raise ValueError(
            "negatives of refshapes are proved by its scenes: read one split, and omit foils, negatives.groups and "
            "negatives.words."
        )
    drawn = {name: options[name] for name in options if name in SampleOptions.__dataclass_fields__}
    if drawn.get("kinds") is not None:
        drawn["kinds"] = tuple(drawn["kinds"])
    sample_options = SampleOptions(split, **drawn)
    return NegativeRows(rows, negatives, SceneNegatives(sample_options, -(-len(rows) // sample_options.count)))


def _load(
    source: str,
    split: str,
    streaming: bool,
    multi_target: MultiTarget,
    on_error: OnError,
    verify_images: VerifyImages,
    **options: Any,
) -> Any:
    cached = source not in SOURCES and is_cache(Path(source))
    if (source == "refshapes" or cached) and (streaming or multi_target != "keep"):
        raise ValueError(
            f"{source} is read as it is: omit streaming and multi_target"
            + (" (choose multi_target when the cache is made)." if cached else ".")
        )
    if source == "refshapes":
        from .refshapes import refshapes_dataset

        check_options(refshapes_dataset, source, options)
        return refshapes_dataset(split, **options)
    refuse_other("on_error", on_error, get_args(OnError))
    if source == "mixture":
        shared: dict[str, Any] = {"streaming": streaming, "multi_target": multi_target, "on_error": on_error}
        return _load_mixture(split, verify_images=verify_images, **shared, **options)
    if cached:
        from .cache import load_cache

        return load_cache(source, split, **options)
    order = {key: options.pop(key) for key in SHARD_OPTIONS if streaming and key in options}
    builder = open_source(
        source, split, multi_target=multi_target, verify_images=verify_images, streaming=streaming, **options
    )
    if streaming and builder.annotations.shards is not None:
        return ShardStream([builder], on_error=on_error, **order)
    if streaming:
        if set(order) - {*STREAM_OPTIONS}:
            raise ValueError(f"lanes and buffer are of shards, and {source} is read by number: omit them.")
        positions, report = usable_positions(builder, source)
        settle(report, on_error, len(builder))
        return GroundingStream(builder, positions, **order)
    dataset, report = read_rows(builder, source)
    settle(report, on_error, len(builder))
    return dataset


def _load_splits(source: str, splits: str, **options: Any) -> Any:
    """The rows of several splits, one split after the other.

    Raises:
        ValueError: they are not tables.
    """
    from datasets import Dataset, concatenate_datasets

    parts = [load_grounding_dataset(source, split, **options) for split in split_names(splits)]
    if not all(isinstance(part, Dataset) and part.format["type"] != "custom" for part in parts):
        raise ValueError(
            f"{splits!r} of {source} cannot be joined: only tables can, not streams, mixtures or prepared caches; "
            "read each split by itself."
        )
    return concatenate_datasets(parts)


def _load_mixture(
    split: str,
    parts: Sequence[Mapping[str, Any]],
    size: int | None = None,
    seed: int = 0,
    shuffle: bool | None = None,
    batch_size: int | None = None,
    lanes: int | None = None,
    buffer: int | None = None,
    **shared: Any,
) -> Any:
    """The mixture of several sources; each part is a mapping of arguments of `load_grounding_dataset` and `weight`."""
    order = {"shuffle": shuffle, "batch_size": batch_size, "lanes": lanes, "buffer": buffer}
    order = {name: value for name, value in order.items() if value is not None}
    if order and not shared["streaming"]:
        raise ValueError(f"{' and '.join(order)} only applies to streams: omit it, or add streaming=True.")
    loaded: dict[str, Any] = {}
    weights: dict[str, float] = {}
    for number, part in enumerate(parts):
        spec = {"split": split, **shared, **part}
        name = f"{number}:{spec['source']}"
        if "weight" in spec:
            weights[name] = spec.pop("weight")
        loaded[name] = load_grounding_dataset(spec.pop("source"), spec.pop("split"), **spec)
    if weights and len(weights) < len(loaded):
        raise ValueError("give every part of the mixture a weight, or none.")
    if shared["streaming"]:
        return mix_streams(loaded, weights or None, size, seed=seed, on_error=shared["on_error"], **order)
    return GroundingMixture(loaded, weights or None, size, seed)


def refuse_several_targets(rows: Any) -> None:
    """Refuse to train on expressions with several targets for which nobody has said what their one box is.

    Args:
        rows: a dataset of the schema or a mixture.

    Raises:
        ValueError: there are such rows, read with `multi_target="keep"`; the message counts them.
    """
    if isinstance(rows, ShardStream):  # reading all of it would tell; the collator refuses such a row when it comes
        return
    if isinstance(rows, GroundingMixture):
        for part in rows.parts.values():
            refuse_several_targets(part)
        return
    boxes_of = column_values(rows, "boxes")
    undecided = sum(
        box is None and len(boxes) > 1 for box, boxes in zip(column_values(rows, "box"), boxes_of, strict=True)
    )
    if undecided:
        raise ValueError(
            f"{undecided:,} of {len(rows):,} rows have several targets, where training needs one box: read them with "
            "multi_target='union' (the box around all) or multi_target='drop' (without such rows), or let the model "
            "answer with several boxes (num_queries, 4 for example, in its config)."
        )
