"""A finished run as a dataset on the Hub, with a card that says where its columns come from."""

from pathlib import Path

from huggingface_hub import DatasetCard, DatasetCardData

from hivg_hf.hub import push_dataset
from hivg_hf.utils.inert import markdown_code

from .dataset_run import DatasetRun

CARD = """---
{metadata}
---

# {name}

The rows of {source}, each with the box of what its expression names, found by {model} with
`hivg ground-dataset` of the package hivg_hf. The boxes are predictions: nobody has checked them.

| column | meaning |
| --- | --- |
| {box} | xyxy in pixels of the original, upright picture; null where there is an error |
| {score} | 0 to 1, how sure the model is; null where it gives none |
| {found} | whether the score reaches the threshold ({threshold}); null without one |
| {error} | why the row could not be used |

Picture: {image_column}. Expression: {text_column}.{lists} Rows: {rows}, of which {failed} have an error.
"""


def push_run(run: DatasetRun, repo_id: str, private: bool = False, token: str | None = None) -> str:
    """Upload all shards of a run and their card in one commit; returns `owner/name@commit`.

    Raises:
        FileNotFoundError: If shards are missing: the run has not ended.
    """
    missing = run.missing()
    if missing:
        raise FileNotFoundError(f"{len(missing)} of {len(run.parts)} shards in {run.folder} are still to do.")
    split, count = run.source.split or "train", len(run.parts)
    files = {f"data/{split}-{index:05d}-of-{count:05d}.parquet": run.path(index) for index in range(count)}
    return push_dataset(files, make_card(run, repo_id), repo_id, private=private, token=token)


def make_card(run: DatasetRun, repo_id: str) -> DatasetCard:
    """The card of a run's rows."""
    done = [run.read_progress(index) for index in range(len(run.parts))]
    rows, failed = sum(part.rows for part in done), sum(part.failed for part in done)
    is_hub = not run.source.is_local
    source = run.source.source.partition("@")[0] if is_hub else Path(run.source.source).name
    data = DatasetCardData(
        tags=["visual-grounding", "hivg", "machine-generated"],
        annotations_creators=["machine-generated"],
        task_categories=["zero-shot-object-detection"],
        source_datasets=[source] if is_hub else None,
    )
    model = str(run.ground.model)
    text = CARD.format(
        metadata=data.to_yaml(),
        name=repo_id.rpartition("/")[2],
        source=f"[{source}](https://huggingface.co/datasets/{source})" if is_hub else markdown_code(source),
        model=markdown_code(Path(model).name if Path(model).exists() else model),
        **{name: markdown_code(run.ground.prefix + name) for name in ("box", "score", "found", "error")},
        threshold="the checkpoint's own" if run.ground.threshold is None else run.ground.threshold,
        image_column=markdown_code(run.ground.image_column),
        text_column=markdown_code(run.ground.text_column),
        lists=" Rows hold several expressions: the columns are lists in their order." if run.several else "",
        rows=rows,
        failed=failed,
    )
    return DatasetCard(text)
