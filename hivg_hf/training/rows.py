"""The rows that a recipe describes, `{source, split, **options}`, each set of them loaded once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hivg_hf.data import load_grounding_dataset
from hivg_hf.data.loading import refuse_several_targets
from hivg_hf.data.readers import FORMATS, find_source

from .phases import Phase
from .recipe import Recipe

MOST_ROWS_OF_A_RUN = 8  # that follow each other in one lane of a stream: few, so that a batch holds many lanes


def row_options(spec: Mapping[str, Any]) -> dict[str, Any]:
    """What a description of rows, `{source, split, **options}`, says beside source and split."""
    return {name: value for name, value in spec.items() if name not in ("source", "split")}


class RowCache:
    """Datasets by their description, each loaded once however many phases use it."""

    def __init__(self) -> None:
        self._loaded: dict[str, Any] = {}

    def load(self, spec: dict[str, Any], num_queries: int = 1) -> Any:
        """Rows of the schema for `{source, split, **options}`, for a model with so many queries: with one, rows of
        several targets that nobody has decided about are refused."""
        key = repr(sorted(spec.items(), key=lambda item: item[0]))
        if key not in self._loaded:
            rows = load_grounding_dataset(spec["source"], spec["split"], **row_options(spec))
            self._loaded[key] = rows
        if num_queries == 1:
            refuse_several_targets(self._loaded[key])
        return self._loaded[key]

    def training_rows(self, recipe: Recipe, phase: Phase, num_queries: int = 1) -> Any:
        """Rows that a phase trains a model with so many queries on."""
        spec = phase.data or recipe.data.train
        return self.load({**shard_layout(spec, recipe, phase), **spec}, num_queries)


def shard_layout(spec: Mapping[str, Any], recipe: Recipe, phase: Phase) -> dict[str, Any]:
    """The order of a stream of shards, such that no process and no worker reads what another one reads.

    Rows `i` to `i + batch_size` of every global batch come from the same lane, one for each worker in turn.
    """
    source = str(spec["source"])
    if not spec.get("streaming"):
        return {}
    if source != "mixture" and find_source(source, spec.get("format"), True) != FORMATS["shards"]:
        return {}
    run = max(rows for rows in range(1, MOST_ROWS_OF_A_RUN + 1) if phase.batch_size % rows == 0)
    return {"seed": recipe.seed, "batch_size": run, "lanes": phase.batch_size // run * max(1, recipe.workers)}
