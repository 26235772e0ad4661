"""Rows pushed to the Hub by `datasets` are a source: for reading, for streaming and for training."""

import io
import json
import tarfile

import pytest
from datasets import Image

from helpers.interpreter import CodeFailedError
from hivg_hf.data.refshapes import refshapes_dataset

PUSH = """
from hivg_hf import load_grounding_dataset
rows = load_grounding_dataset("refshapes", "val", seed=1, size=3)
rows.push_to_hub("alice/references", token="hf_alice", split="val")
rows.select([0, 1]).push_to_hub("alice/references", token="hf_alice", split="train")
result = [[row["expression"], row["box"], row["ref_id"], row["mask"], row["image"].tobytes().hex()] for row in rows]
"""

READ = """
from hivg_hf import load_grounding_dataset
from hivg_hf.modeling.image_loading_hivg import load_grounding_image
result = [
    [row["expression"], row["box"], row["ref_id"], row["mask"], load_grounding_image(row["image"]).tobytes().hex()]
    for row in load_grounding_dataset("alice/references", split, **options)
]
"""

PLAN = """
from hivg_hf import TINY_CHECKPOINT
from hivg_hf.training import plan_user_training
result = plan_user_training("alice/references", None, TINY_CHECKPOINT)["data"]
"""


def test_what_push_to_hub_wrote_is_read_and_trained_on(hub, home):
    expected = home.run(PUSH)
    assert home.run(READ, split="val", options={}) == expected
    assert home.run(READ, split="train", options={"streaming": True, "shuffle": False}) == expected[:2]
    plan = home.run(PLAN)
    made = {"negatives": {"share": 0.2}}  # the table has no row that names nothing, and its model has a score
    assert plan["train"] == {"source": "alice/references", "split": "train", **made}
    assert plan["validation"] == {"source": "alice/references", "split": "val"}


def test_a_split_or_a_dataset_that_is_not_there_is_named(hub, home):
    home.run(PUSH)
    with pytest.raises(CodeFailedError, match=r"alice/references has no split 'test'; it has val, train"):
        home.run(READ, split="test", options={})
    with pytest.raises(CodeFailedError, match=r"File or folder not found: alice/gone, and as a dataset"):
        home.run(READ.replace("references", "gone"), split="val", options={})


STREAM = """
from hivg_hf import load_grounding_dataset
stream = load_grounding_dataset(source, split, streaming=True, **options)
result = [type(stream).__name__, sorted([row["expression"], [round(edge) for edge in row["box"]]] for row in stream)]
"""


def test_parquet_and_tars_of_the_hub_are_streams_of_shards(hub, home, tmp_path):
    rows = refshapes_dataset("train", seed=3, size=6, masks=False, stored_side=64)
    rows = rows.cast_column("image", Image(decode=False))
    files, packed = {}, io.BytesIO()
    for number in range(2):
        rows.select(range(3 * number, 3 * number + 3)).to_parquet(tmp_path / "part.parquet")
        files[f"data/train-{number:05d}-of-00002.parquet"] = (tmp_path / "part.parquet").read_bytes()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for number, row in enumerate(rows):
            columns = json.dumps({"caption": row["expression"], "bbox": row["box"]}).encode()
            for name, data in {"png": row["image"]["bytes"], "json": columns}.items():
                member = tarfile.TarInfo(f"{number}.{name}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    hub.create("alice/shards").commit("rows", files)
    hub.create("alice/tars").commit("rows", {"rows.tar": packed.getvalue()})
    expected = ["ShardStream", sorted([row["expression"], [round(edge) for edge in row["box"]]] for row in rows)]
    xyxy = {"box_format": "xyxy"}
    assert home.run(STREAM, source="alice/shards", split="train", options={}) == expected
    pattern = "hf://datasets/alice/shards/data/*.parquet"
    assert home.run(STREAM, source=pattern, split="train", options={}) == expected
    assert home.run(STREAM, source="alice/tars", split="train", options=xyxy) == expected
    with pytest.raises(CodeFailedError, match=r"alice/shards' has the splits train: choose one"):
        home.run(STREAM, source="alice/shards", split="val", options={})
    with pytest.raises(CodeFailedError, match=r"alice/gone"):
        home.run(STREAM, source="alice/gone", split="train", options={})
