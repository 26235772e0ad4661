"""A whole dataset through a model, by any number of processes, into shards that survive being killed.

The rows are cut into shards of consecutive rows. A shard is computed by one process, in the same batches whoever
computes it, and appears under its name when it is whole. So the rows of a run do not depend on how many processes
worked on it, how often it was killed, or which process did what.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset, Image
from tqdm import tqdm

from hivg_hf.modeling.pipeline_hivg import VisualGroundingPipeline
from hivg_hf.utils.atomic import atomic_path, write_json

from .loading import answer_as_json

SETTINGS_NAME = "settings.json"
ROW_KEYS = ("image_id", "ref_id", "sent_id")


class ShardedRun:
    """The folder of a run: `settings.json` and `shard-00000-of-00012.jsonl`, ...

    Args:
        folder: where the shards go.
        rows: number of rows of the dataset.
        shard_size: rows per shard.
        settings: what the rows depend on (model, data, options); a folder of other settings is refused.

    Raises:
        ValueError: the folder holds a run with other settings.
    """

    def __init__(self, folder: Path, rows: int, shard_size: int, settings: dict[str, Any]):
        if shard_size < 1:
            raise ValueError(f"shard_size must be at least 1, got {shard_size}.")
        self.folder = folder
        self.rows = rows
        self.shard_size = shard_size
        self.settings = json.loads(json.dumps({**settings, "rows": rows, "shard_size": shard_size}))
        self._check_settings()

    @property
    def shards(self) -> int:
        return -(-self.rows // self.shard_size)

    def path(self, shard: int) -> Path:
        return self.folder / f"shard-{shard:05d}-of-{self.shards:05d}.jsonl"

    def missing(self) -> list[int]:
        """Shards that are still to do."""
        return [shard for shard in range(self.shards) if not self.path(shard).exists()]

    def rows_of(self, shard: int) -> range:
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.rows))

    def write(self, shard: int, rows: list[dict[str, Any]]) -> None:
        with atomic_path(self.path(shard)) as temporary, temporary.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)

    def read(self) -> Iterator[dict[str, Any]]:
        """All rows in the dataset's order.

        Raises:
            FileNotFoundError: shards are missing; the run has not ended.
        """
        missing = self.missing()
        if missing:
            raise FileNotFoundError(f"{len(missing)} of {self.shards} shards in {self.folder} are still to do.")
        for shard in range(self.shards):
            with self.path(shard).open(encoding="utf-8") as file:
                yield from map(json.loads, file)

    def _check_settings(self) -> None:
        path = self.folder / SETTINGS_NAME
        if path.exists():
            stored = json.loads(path.read_text(encoding="utf-8"))
            keys = stored.keys() | self.settings.keys()
            other = sorted(key for key in keys if stored.get(key) != self.settings.get(key))
            if other:
                raise ValueError(
                    f"The folder '{self.folder}' holds a run with another {', '.join(other)}: choose a new folder, or "
                    "use the settings in its settings.json."
                )
        else:
            write_json(path, self.settings)


def ground_shards(
    pipe: VisualGroundingPipeline,
    dataset: Dataset,
    run: ShardedRun,
    shards: list[int],
    show_progress: bool = True,
    **options: Any,
) -> int:
    """Compute some shards of a run, one after the other.

    Args:
        pipe: the pipeline.
        dataset: a `datasets.Dataset` of the schema, or any with the columns `image` and `expression`.
        run: where the shards go.
        shards: which ones.
        show_progress: whether to show a progress bar.
        options: of the pipeline (`batch_size`, `mask`, `threshold`, ...).

    Returns:
        The number of rows that could not be used; each holds an `"error"`.
    """
    failed = 0
    # The pipeline opens the files itself: its errors name them, and it turns pictures upright.
    asked = dataset.select_columns(["image", "expression"]).cast_column("image", Image(decode=False))
    names = dataset.select_columns([key for key in ROW_KEYS if key in dataset.column_names])
    with tqdm(total=sum(len(run.rows_of(shard)) for shard in shards), unit=" rows", disable=not show_progress) as bar:
        for shard in shards:
            indices = run.rows_of(shard)
            answers = pipe(asked.select(indices), on_error="return", **options)
            rows = []
            for index, name, answer in zip(indices, names.select(indices), answers, strict=True):
                if "error" not in answer:
                    try:
                        answer = answer_as_json(answer)
                    except ValueError as error:
                        answer = {"error": str(error)}
                rows.append({"row": index, **name, **answer})
                failed += "error" in answer
                bar.update()
            run.write(shard, rows)
    return failed
