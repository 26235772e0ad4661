"""Rows pushed to the Hub by `datasets` are a source: for reading, for streaming and for training."""

import pytest

from helpers.interpreter import CodeFailedError

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
    assert plan["train"] == {"source": "alice/references", "split": "train"}
    assert plan["validation"] == {"source": "alice/references", "split": "val"}


def test_a_split_or_a_dataset_that_is_not_there_is_named(hub, home):
    home.run(PUSH)
    with pytest.raises(CodeFailedError, match=r"alice/references has no split 'test'; it has val, train"):
        home.run(READ, split="test", options={})
    with pytest.raises(CodeFailedError, match=r"no file or folder alice/gone, and as a dataset on the Hub it cannot"):
        home.run(READ.replace("references", "gone"), split="val", options={})
