"""Rows that a phase trains on because the model that it begins with agrees with their labels.

A model learns what most labels have in common before it learns their errors: after some training on all rows, rows
whose label it contradicts are wrong more often. Train, keep what it agrees with, train on, and again.
Source: CLIP-VG (Xiao et al. 2023, arXiv 2305.08685), section 3: reliability is the model's agreement with a row's own
pseudo-label, and rows above a threshold are kept.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hivg_hf.utils.atomic import write_json

from .recipe_checks import check_rows
from .report import read_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from .recipe import Recipe
    from .rows import RowCache
    from .run_folder import PhaseFolder

logger = logging.getLogger(__name__)

KEPT_FILE = "kept.json"
DOUBTFUL = 0.5  # probability of a wrong label from which on a row is left out


@dataclass(frozen=True)
class Reliability:
    """Which of its training rows a phase keeps, as the model that it begins with sees them.

    With neither `threshold` nor `trusted`, rows whose label is more likely right than wrong: the losses of all rows
    are seen as a mixture of two distributions, as `hivg clean` does, here without the model's score.

    Args:
        threshold: Keep rows whose label and the model's box have this IoU or more (of a no-target row: whose score is
            at most 1 minus this).
        trusted: Rows whose labels are right, `{source, split, ...}`, not trained on: they choose the threshold.
        recall: Share of the trusted rows that the threshold keeps.
    """

    threshold: float | None = None
    trusted: dict[str, Any] | None = None
    recall: float = 0.9

    def __post_init__(self) -> None:
        if self.threshold is not None and self.trusted is not None:
            raise ValueError("reliability: `trusted` rows choose the threshold: omit `threshold`, or omit them.")
        for name in ("threshold", "recall"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise ValueError(f"reliability.{name} must be above 0 and at most 1. Got {value}.")
        if self.trusted is not None:
            check_rows("reliability.trusted", self.trusted)

    def __str__(self) -> str:
        if self.trusted is not None:
            return f"kept where the model agrees as much as with {self.recall:.0%} of trusted rows"
        if self.threshold is not None:
            return f"kept where label and model have an IoU of {self.threshold:g} or more"
        return "kept where the model finds the label more likely right than wrong"

    def keep(
        self, rows: Any, trusted: Any, opened: tuple[Any, Any], batch_size: int
    ) -> tuple[np.ndarray, float | None]:
        """Which rows are kept (N,) bool, and the IoU that decided.

        Args:
            rows: Rows to train on, as their table says them.
            trusted: Those of `trusted`, or None.
            opened: Model and processor.
            batch_size: Rows of one forward pass.
        """
        from hivg_hf.evaluation import predict
        from hivg_hf.evaluation.suspects import label_agreement, wrong_probability

        model, processor = opened
        predictions = predict(model, processor, rows, batch_size=batch_size, progress=False)
        if self.threshold is None and trusted is None:
            return wrong_probability(rows, predictions) < DOUBTFUL, None
        threshold = self.threshold
        if trusted is not None:
            known = predict(model, processor, trusted, batch_size=batch_size, progress=False)
            agreed = np.sort(label_agreement(trusted, known))
            threshold = float(agreed[-math.ceil(round(self.recall * len(agreed), 6))])
        assert threshold is not None
        return label_agreement(rows, predictions) >= threshold, threshold


def kept_rows(
    place: PhaseFolder, recipe: Recipe, cache: RowCache, num_queries: int, open_model: Callable[[], tuple[Any, Any]]
) -> dict[str, Any]:
    """What a phase keeps, `{rows, kept: [row number, ...], threshold, rule}`, decided once and read after a restart.

    Args:
        place: The phase, which has `reliability`.
        recipe: The run.
        cache: Its rows.
        num_queries: Of the model that the phase trains.
        open_model: Gives the model that the phases before left, and its processor.

    Raises:
        ValueError: Fewer rows than a batch are kept, or the rows are others than those that were judged.
    """
    from accelerate import PartialState

    phase, state, path = place.phase, PartialState(), place.path / KEPT_FILE
    reliability: Reliability = phase.reliability  # type: ignore[attr-defined]  # of phases that ground
    rows = cache.training_rows(recipe, phase, num_queries)
    found = read_json(path)
    state.wait_for_everyone()  # or one process would read what another has written since
    if not found:
        plain = getattr(rows, "positives", rows)
        trusted = None if reliability.trusted is None else cache.load(reliability.trusted, num_queries)
        kept, threshold = reliability.keep(plain, trusted, open_model(), phase.eval_batch_size)
        found = {"rows": len(rows), "threshold": threshold, "rule": str(reliability)}
        found["kept"] = np.flatnonzero(kept).tolist()
        if state.is_main_process:
            write_json(path, found)
        state.wait_for_everyone()
    if found["rows"] != len(rows):
        raise ValueError(
            f"{path} judged {found['rows']:,} rows, and the training data has {len(rows):,} now: restore the data, or "
            "choose another folder."
        )
    number = len(found["kept"])
    if number < phase.batch_size:
        raise ValueError(
            f"{phase} keeps {number:,} of {len(rows):,} rows, fewer than its batch of {phase.batch_size}: lower "
            "reliability.threshold or raise reliability.recall, or train longer before it."
        )
    logger.info("%s keeps %s of %s rows.", phase.name, f"{number:,}", f"{len(rows):,}")
    return found


def describe_kept(found: dict[str, Any]) -> dict[str, Any]:
    """The same for the results of a run: how many rows, not which."""
    return {**found, "kept": len(found["kept"])}
