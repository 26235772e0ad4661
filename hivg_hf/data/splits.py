"""Split names and published totals: `test` means four different things, so every alias is said aloud and checked."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Totals:
    """What a split should hold; None where no source says."""

    expressions: int | None = None
    objects: int | None = None
    images: int | None = None


# Expressions and images: the counts printed by the authors of the official splits (RefCOCOg google: of OneRef);
# objects (refs): the dataset cards of jxu124/refcoco and jxu124/refcocog.
PUBLISHED: Mapping[str, Mapping[str, Totals]] = {
    "refcoco": {
        "train": Totals(120_624, 42_404, 16_994),
        "val": Totals(10_834, 3_811, 1_500),
        "testA": Totals(5_657, 1_975, 750),
        "testB": Totals(5_095, 1_810, 750),
    },
    "refcoco+": {
        "train": Totals(120_191, None, 16_992),
        "val": Totals(10_758, None, 1_500),
        "testA": Totals(5_726, None, 750),
        "testB": Totals(4_889, None, 750),
    },
    "refcocog-umd": {
        "train": Totals(80_512, 42_226, 21_899),
        "val": Totals(4_896, 2_573, 1_300),
        "test": Totals(9_602, 5_023, 2_600),
    },
    "refcocog-google": {"train": Totals(85_474), "val": Totals(9_536)},
    "referit": {
        "train": Totals(54_127),
        "val": Totals(5_842),
        "trainval": Totals(59_969),
        "test": Totals(60_103),
    },
    "flickr": {"train": Totals(427_193, None, 29_778), "val": Totals(14_433), "test": Totals(14_481)},
    # The mixture's train is the sum of five train sets; its val and test are RefCOCOg's.
    "mixup": {"train": Totals(802_647), "val": Totals(4_896), "test": Totals(9_602)},
    # One row per object there; the Hub's val mixes in the 5000 of `test`, so it is not RefCOCO's val.
    "lmms-lab/RefCOCO": {
        "val": Totals(None, 8_811),
        "test": Totals(None, 5_000),
        "testA": Totals(None, 1_975),
        "testB": Totals(None, 1_810),
    },
    "moondream/refcoco-m": {"validation": Totals(5_598, 2_080, 1_190)},
    "ref-l4": {"all": Totals(45_341)},
}

VALIDATION = ("val", "validation", "valid")  # names of one thing


class UnknownSplitError(ValueError):
    """A source has no split of the name that was asked for.

    Attributes:
        known: the names that it has.
    """

    def __init__(self, source: str, split: str, known: Sequence[str]) -> None:
        self.known = tuple(known)
        super().__init__(
            f"{source} has no split {split!r}; it has {', '.join(known)}. No other split is read instead: name one of these."
        )


def resolve_split(split: str, known: Sequence[str], source: str, aliases: Mapping[str, str] | None = None) -> str:
    """The source's own name of a split.

    Args:
        split: what was asked for.
        known: the names that the source has.
        source: for messages.
        aliases: other names, beside `validation` for `val`; one that is taken is logged.

    Raises:
        UnknownSplitError: the source has no such split; nothing else is read in its place.
    """
    if split in known:
        return split
    meant = [(aliases or {}).get(split), *(VALIDATION if split in VALIDATION else ())]
    found = [name for name in meant if name in known]
    if len(found) == 1 and found[0] is not None:
        logger.info("%s: split %r is %r there.", source, split, found[0])
        return found[0]
    raise UnknownSplitError(source, split, known)


def distinct_splits(values: Iterable[str | None], source: str) -> list[str]:
    """The splits that a file's rows name, in order; blank ones do not count.

    Raises:
        ValueError: two names differ in upper and lower case only, so that each split would lose the other's rows.
    """
    names = sorted(set(filter(None, values)))
    by_lower = {name.lower(): name for name in names}
    alike = [f"{name!r} and {by_lower[name.lower()]!r}" for name in names if by_lower[name.lower()] != name]
    if alike:
        raise ValueError(f"{source}: the splits {', '.join(alike)} differ in case only; write them alike.")
    return names


def compare_totals(published_as: str, split: str, found: Totals) -> list[str]:
    """How the counts of a split differ from the published ones; [] where they agree or nothing is published."""
    wanted = PUBLISHED.get(published_as, {}).get(split)
    if wanted is None:
        return []
    pairs = {name: (getattr(found, name), getattr(wanted, name)) for name in ("expressions", "objects", "images")}
    return [
        f"{count:,} {name} here, {total:,} as published"
        for name, (count, total) in pairs.items()
        if None not in (count, total) and count != total
    ]


def held_out_images(images: Sequence[str], share: float) -> set[str]:
    """The images that a hash of their names puts into validation: at least one, never all.

    Raises:
        ValueError: `share` is not between 0 and 1, or there is only one image.
    """
    distinct = sorted(set(images), key=lambda name: blake2b(name.encode(), digest_size=8).digest())
    if not 0 < share < 1:
        raise ValueError(f"holdout must lie between 0 and 1, got {share}.")
    if len(distinct) < 2:
        raise ValueError(f"{len(distinct)} image cannot be divided into train and val; give a validation file.")
    return set(distinct[: min(max(1, round(share * len(distinct))), len(distinct) - 1)])


def split_names(split: str) -> list[str]:
    """The splits of "val+none".

    Raises:
        ValueError: one of them is empty.
    """
    names = split.split("+")
    if not all(names):
        raise ValueError(f"A split has no name in {split!r}: write one, or several joined by '+', such as val+none.")
    return names
