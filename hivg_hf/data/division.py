"""Which rows of a file belong to a split: by what its rows say, or, where they say nothing, by holding images out."""

from collections.abc import Callable, Hashable, Sequence
from hashlib import blake2b
from typing import Any

from .lookalikes import group_lookalikes
from .readers.common import ImageFinder
from .splits import distinct_splits, held_out_images, resolve_split


def choose_rows(
    splits: Sequence[str | None],
    pictures: Callable[[], Sequence[Any]],
    split: str,
    holdout: float | None,
    source: str,
    find: ImageFinder,
    without: str = "its rows name no split",
) -> tuple[list[int], str]:
    """Positions of the rows of a split, and its name in the file.

    Args:
        splits: of every row, as the file says it; blank or None where it does not.
        pictures: gives, for every row, its picture as the file says it; called only where images are held out.
        split: what was asked for. A file without splits has the single split `all`, or, with `holdout`, `train` and
            `val`.
        holdout: share of the images (0..1) whose rows are `val`, by a hash of the images' names. Near-identical
            images count as one, so that no picture is on both sides.
        source: for messages.
        find: where pictures are looked for.
        without: how messages say that there are no splits.

    Raises:
        ValueError: the split does not exist.
    """
    if any(splits):
        split = resolve_split(split, distinct_splits(splits, source), source)
        # A row without a split, or one that cannot be read, belongs nowhere: every split reports it, so that none
        # loses it in silence.
        return [position for position, value in enumerate(splits) if not value or value == split], split
    if holdout is None:
        reason = f"{without}: read all of it with split='all', or with holdout=0.1 it has train and val"
        return list(range(len(splits))), resolve_split(split, ["all"], f"{source} ({reason})")
    split = resolve_split(split, ["train", "val"], source)
    keys = [picture_key(find, picture) for picture in pictures()]
    held_out = _held_out(keys, find, holdout)
    return [
        position for position, key in enumerate(keys) if key is None or (key in held_out) == (split == "val")
    ], split


def _held_out(keys: Sequence[Any], find: ImageFinder, holdout: float) -> set[Any]:
    """The pictures, by key, that are `val`."""
    images = {key: key[1] if isinstance(key, tuple) else find(key) for key in keys if key is not None}
    names = {key: key[0] if isinstance(key, tuple) else key for key in images}
    leaders = group_lookalikes({key: images[key] for key in sorted(images, key=lambda key: names[key])})
    chosen = held_out_images([names[leaders[key]] for key in images], holdout)
    return {key for key in images if names[leaders[key]] in chosen}


def picture_key(find: ImageFinder, picture: Any) -> Hashable | None:
    """The one name of a row's picture, None where it has none (then both sides report the row)."""
    if isinstance(picture, dict):
        return _EmbeddedKey((embedded_name(picture), picture))
    try:
        return None if picture is None else find.picture_name(picture)
    except ValueError:
        return None


class _EmbeddedKey(tuple[str, Any]):
    """A picture inside a table: named by its bytes."""

    def __hash__(self) -> int:
        return hash(self[0])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _EmbeddedKey) and self[0] == other[0]

    def __ne__(self, other: object) -> bool:
        return not self == other


def embedded_name(picture: dict[str, Any]) -> str:
    """The name of a picture that a table embeds: a hash of its bytes, since those of several folders share names."""
    path, data = picture.get("path"), picture.get("bytes")
    return str(path) if data is None else blake2b(data, digest_size=12).hexdigest()
