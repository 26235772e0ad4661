"""Measured beside published: the figures of HiVG's authors, from one file with its sources (published.json)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hivg_hf.data.readers import SOURCES
from hivg_hf.data.splits import PUBLISHED as PUBLISHED_TOTALS
from hivg_hf.utils.strict_mapping import refuse_unknown

FIGURE = "acc@0.5"


def published_figures() -> dict[str, Any]:
    """The content of published.json: `sources` by name, and `variants` by variant, data set, split and source."""
    return json.loads((Path(__file__).parent / "published.json").read_text(encoding="utf-8"))


def expect_published(variant: str, source: str, split: str, protocol: str) -> dict[str, float]:
    """What was published for a variant on a split, in percent, by the name of where it stands.

    Args:
        variant: a preset such as `base-unc`.
        source: of the data, as `load_grounding_dataset` knows it.
        split: of the data.
        protocol: that the evaluation counts by.

    Raises:
        ValueError: the authors published nothing of the kind, or counted otherwise.
    """
    variants = published_figures()["variants"]
    refuse_unknown([variant], variants, "the published variants")
    if protocol != "official":
        raise ValueError(
            f"The published figures are of the protocol official, not of {protocol}: add --protocol official."
        )
    dataset = SOURCES[source].published_as if source in SOURCES else source
    found = variants[variant].get(dataset, {}).get(split)
    if found is None:
        known = [f"{name} {' '.join(splits)}" for name, splits in variants[variant].items()]
        raise ValueError(
            f"Nothing was published for {variant} on {dataset} {split}; there are figures on {', '.join(known)}."
        )
    return found


def compare_published(results: Mapping[str, Any], variant: str, source: str, split: str) -> dict[str, Any]:
    """The measured accuracy beside each published one.

    Returns:
        `{"variant", "figure", "measured", "interval", "n", "n_published", "rows"}`, percent; each of `rows` has
        `source`, `where`, `published`, `difference` (measured - published) and `within` (whether the interval of the
        measured figure holds the published one; None without an interval).
    """
    found = expect_published(variant, source, split, results["protocol"])
    where = published_figures()["sources"]
    measured = 100 * results["figures"][FIGURE]
    interval = [100 * bound for bound in results["intervals"].get(FIGURE, [])] or None
    dataset = SOURCES[source].published_as if source in SOURCES else source
    totals = PUBLISHED_TOTALS.get(dataset, {}).get(split)
    rows = [
        {
            "source": name,
            "where": where[name],
            "published": value,
            "difference": round(measured - value, 2),
            "within": None if interval is None else interval[0] <= value <= interval[1],
        }
        for name, value in found.items()
    ]
    return {
        "variant": variant,
        "figure": FIGURE,
        "measured": measured,
        "interval": interval,
        "n": results["counts"]["one_target"],
        "n_published": None if totals is None else totals.expressions,
        "rows": rows,
    }
