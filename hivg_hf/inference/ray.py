"""Grounding on Ray: a dataset of yours, or the parts of a `DatasetRun`, over actors on one machine or a cluster.

    import ray
    from hivg_hf.inference.ray import ground_dataset

    rows = ray.data.read_parquet("s3://bucket/pairs/")
    ground_dataset(rows, image_column="image", text_column="caption", concurrency=8, num_gpus=1).write_parquet("out")

Needs the extra `ray`.
"""

from collections.abc import Callable
from typing import Any

from hivg_hf.utils.imports import require_package
from hivg_hf.utils.stops import handlers_kept

from .dataset_run import DatasetRun, Progress
from .ground_batch import GroundBatch


def ground_dataset(
    rows: Any,
    *,
    concurrency: int | tuple[int, int] = 1,
    num_gpus: float = 0,
    num_cpus: float = 1,
    rows_per_call: int = 512,
    **options: Any,
) -> Any:
    """A `ray.data.Dataset` with the columns of `GroundBatch` added, as lazy as any other.

    Args:
        rows: A `ray.data.Dataset`.
        concurrency: Actors, each with a model of its own; `(least, most)` scales with the work.
        num_gpus: GPUs of each actor; a fraction lets actors share one. 0 computes on the CPU.
        num_cpus: CPUs of each actor; give one more for each of `num_workers`.
        rows_per_call: Rows per call of an actor.
        options: Of `GroundBatch`. Rows may not name files of the workers unless `allow_paths=True`.
    """
    data = require_package("ray.data", extra="ray")
    ground = GroundBatch(**_on_device({"allow_paths": False, **options}, num_gpus))
    least, most = concurrency if isinstance(concurrency, tuple) else (concurrency, concurrency)
    return rows.map_batches(
        _Actor,
        fn_constructor_args=(ground,),
        batch_format="pyarrow",
        batch_size=rows_per_call,
        compute=data.ActorPoolStrategy(min_size=least, max_size=most),
        num_gpus=num_gpus or None,
        num_cpus=num_cpus,
    )


def run_parts(
    run: DatasetRun,
    parts: list[int],
    report: Callable[[Progress], None],
    *,
    address: str | None = None,
    concurrency: int = 1,
    num_gpus: float = 0,
) -> None:
    """Compute parts of a run on actors; a part whose actor dies is computed again by another.

    Args:
        run: The run; its folder and its input have to be reachable from every machine.
        parts: Which parts.
        report: Called in this process as parts are done.
        address: A Ray cluster. Defaults to `RAY_ADDRESS`, or to a local one that ends with this call.
        concurrency: Actors, each with a model of its own.
        num_gpus: GPUs of each actor.
    """
    ray = require_package("ray", extra="ray")
    data = require_package("ray.data", extra="ray")
    run.ground.engine = _on_device({"engine": run.ground.engine}, num_gpus)["engine"]
    is_ours = not ray.is_initialized()
    if is_ours:
        with handlers_kept():  # Ray would end the process at SIGTERM, with status 1
            ray.init(address=address, log_to_driver=False, include_dashboard=False)
    try:
        context = data.DataContext.get_current()
        context.enable_progress_bars = False
        done = data.from_items([{"part": part} for part in parts], override_num_blocks=len(parts)).map_batches(
            _PartActor,
            fn_constructor_args=(run,),
            batch_size=1,
            compute=data.ActorPoolStrategy(min_size=min(concurrency, len(parts)), max_size=concurrency),
            num_gpus=num_gpus or None,
            num_cpus=1 + run.ground.num_workers,
        )
        for batch in done.iter_batches(batch_size=1, prefetch_batches=0):
            report(Progress(int(batch["rows"][0]), int(batch["failed"][0])))
    finally:
        if is_ours:
            ray.shutdown()


class _Actor:
    """Holds a `GroundBatch`: actors are made from classes."""

    def __init__(self, ground: GroundBatch):
        self.ground = ground
        _ = ground.pipe  # an actor is ready when its model is

    def __call__(self, batch: Any) -> Any:
        return self.ground(batch)


class _PartActor:
    def __init__(self, run: DatasetRun):
        self.run = run
        _ = run.ground.pipe

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[int]]:
        done = [self._once(int(part)) for part in batch["part"]]
        return {"rows": [one.rows for one in done], "failed": [one.failed for one in done]}

    def _once(self, part: int) -> Progress:
        """A part that an actor finished before it died, too late to say so, is not computed again."""
        return self.run.read_progress(part) if self.run.path(part).exists() else self.run.run(part)


def _on_device(options: dict[str, Any], num_gpus: float) -> dict[str, Any]:
    engine = dict(options.get("engine") or {})
    engine["device"] = engine.get("device") or ("cuda" if num_gpus else "cpu")
    return {**options, "engine": engine}
