"""Training from shards: two processes read every row once, and what was killed resumes to the same weights."""

import io
import json
import os
import signal
import tarfile
from pathlib import Path

import pytest
from datasets import Image
from transformers import AutoModel, AutoProcessor, Trainer, TrainerCallback, TrainingArguments

from helpers.training import colored_box_rows, folder_bytes, free_port, run_staged, tiny_recipe
from hivg_hf.data import GroundingCollator, load_grounding_dataset
from hivg_hf.data.refshapes import refshapes_dataset
from hivg_hf.training import HiVGTrainer, HiVGTrainingArguments, parse_recipe
from hivg_hf.training.rows import RowCache

SHARDS, SIZE, BATCH = 8, 6, 8
STEPS = SHARDS * SIZE // BATCH  # of an epoch


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Eight tars, and eight Parquet files."""
    folder = tmp_path_factory.mktemp("shards")
    rows = colored_box_rows(SHARDS * SIZE)
    for number in range(SHARDS):
        with tarfile.open(folder / f"{number}.tar", "w") as tar:
            for row in rows[number * SIZE : (number + 1) * SIZE]:
                picture = io.BytesIO()
                row["image"].save(picture, "PNG")
                columns = json.dumps({"expression": row["expression"], "box": row["box"]}).encode()
                for name, data in {"png": picture.getvalue(), "json": columns}.items():
                    member = tarfile.TarInfo(f"{row['sent_id']}.{name}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    rendered = refshapes_dataset("train", seed=5, size=24, masks=False, stored_side=64)
    for number in range(SHARDS):
        part = rendered.shard(SHARDS, number).cast_column("image", Image(decode=False))
        part.to_parquet(folder / f"{number}.parquet")
    return folder


def open_stream(shards, **options):
    options = {"seed": 5, "batch_size": 2, "lanes": 8, "buffer": 32, "box_format": "xyxy", **options}
    return load_grounding_dataset(f"{shards}/*.tar", "all", streaming=True, **options)


class NotingCollator(GroundingCollator):
    """Writes down which rows each batch holds."""

    notes = None

    def __call__(self, rows):
        with open(self.notes, "a") as file:
            file.write(json.dumps([[row["epoch"], row["sent_id"]] for row in rows]) + "\n")
        return super().__call__(rows)


class Dies(TrainerCallback):
    """Ends its process at the end of a step, before the step is saved."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def train_on_shards(rank, port, checkpoint, shards, folder, notes, dies_at):
    """One of two processes: two epochs, from the last checkpoint where there is one."""
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in names.items()})
    processor = AutoProcessor.from_pretrained(checkpoint)
    collator = NotingCollator(processor, seed=5)
    collator.notes = f"{notes}-{rank}"
    arguments = HiVGTrainingArguments(
        folder,
        global_batch_size=BATCH,
        per_device_train_batch_size=BATCH // 2,
        num_train_epochs=2,
        learning_rate=1e-3,
        save_strategy="steps",
        save_steps=1,
        seed=5,
        use_cpu=True,
        disable_tqdm=True,
        report_to=[],
    )
    trainer = HiVGTrainer(
        AutoModel.from_pretrained(checkpoint),
        arguments,
        collator,
        open_stream(shards),
        processing_class=processor,
        callbacks=[Dies(dies_at)],
    )
    trainer.train(resume_from_checkpoint=bool(list(Path(folder).glob("checkpoint-*"))))
    trainer.save_model(f"{folder}/end")


def run_two(context, *arguments):
    port = free_port()
    processes = [context.Process(target=train_on_shards, args=(rank, port, *arguments)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=800)
    return [process.exitcode for process in processes]


def noted(path, rank, batches=None):
    return [json.loads(line) for line in (path.parent / f"{path.name}-{rank}").read_text().splitlines()][:batches]


@pytest.mark.timeout(900)  # processes of its own, whose imports take minutes on a busy machine
def test_two_processes_killed_and_resumed_see_every_row_once_an_epoch(forkserver, tiny_checkpoint, shards, tmp_path):
    paths = [tmp_path / name for name in ("whole", "first", "second")]
    common = (tiny_checkpoint, str(shards))
    assert run_two(forkserver, *common, str(tmp_path / "one"), str(paths[0]), None) == [0, 0]
    killed = str(tmp_path / "two")
    assert run_two(forkserver, *common, killed, str(paths[1]), STEPS + 3) == [-signal.SIGKILL] * 2
    assert run_two(forkserver, *common, killed, str(paths[2]), None) == [0, 0]
    for rank in (0, 1):
        assert noted(paths[1], rank, STEPS + 2) + noted(paths[2], rank) == noted(paths[0], rank)
    seen = [tuple(row) for rank in (0, 1) for batch in noted(paths[0], rank) for row in batch]
    assert sorted(seen) == sorted((epoch, str(row)) for epoch in (0, 1) for row in range(SHARDS * SIZE))
    assert folder_bytes(tmp_path / "one" / "end") == folder_bytes(tmp_path / "two" / "end")


@pytest.mark.parametrize("stop", [STEPS - 2, STEPS + 2])
def test_transformers_trainer_resumes_over_shards_in_any_epoch(stop, tiny_checkpoint, shards, tmp_path):
    processor = AutoProcessor.from_pretrained(tiny_checkpoint)

    def train(folder, steps, resume=None):
        arguments = TrainingArguments(
            str(folder), max_steps=2 * STEPS, per_device_train_batch_size=BATCH, remove_unused_columns=False,
            label_names=["labels"], save_steps=1, learning_rate=1e-3, seed=5, use_cpu=True, disable_tqdm=True,
            report_to=[], dataloader_num_workers=0,
        )  # fmt: skip
        collator = NotingCollator(processor, seed=5)
        collator.notes = str(folder) + (".resumed" if resume else ".begun")
        callbacks = [Stops(steps)]
        model = AutoModel.from_pretrained(tiny_checkpoint)
        trainer = Trainer(model, arguments, collator, open_stream(shards, batch_size=4), callbacks=callbacks)
        trainer.train(resume_from_checkpoint=resume)
        trainer.save_model(f"{folder}/end")

    train(tmp_path / "one", 2 * STEPS)
    train(tmp_path / "two", stop)
    train(tmp_path / "two", 2 * STEPS, resume=True)
    assert folder_bytes(tmp_path / "one" / "end") == folder_bytes(tmp_path / "two" / "end")
    seen = [tuple(row) for line in (tmp_path / "one.begun").read_text().splitlines() for row in json.loads(line)]
    assert sorted(seen)[: SHARDS * SIZE] == sorted((0, str(row)) for row in range(SHARDS * SIZE))


class Stops(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop |= state.global_step >= self.step


def streaming_recipe(checkpoint, shards, workers):
    """A warm-up on the tars and the Parquet files, mixed, and one stage on the Parquet files."""
    recipe = tiny_recipe(checkpoint, workers=workers)
    tars, tables = {"source": f"{shards}/*.tar", "box_format": "xyxy"}, {"source": f"{shards}/*.parquet"}
    parts = [{**tars, "weight": 1}, {**tables, "split": "train", "weight": 2}]
    mixed = {"source": "mixture", "split": "all", "streaming": True, "parts": parts, "size": 24}
    recipe["data"]["train"] = {**tables, "split": "train", "streaming": True}
    recipe["phases"] = [{**recipe["phases"][0], "data": mixed}, recipe["phases"][1]]
    return recipe


@pytest.mark.timeout(900)
def test_a_recipe_trains_on_mixed_shards_and_resumes_to_the_same_weights(
    forkserver, tiny_checkpoint, shards, tmp_path
):
    recipe, folder = streaming_recipe(tiny_checkpoint, shards, workers=1), tmp_path / "killed"
    run_staged(recipe, str(tmp_path / "whole"))
    process = forkserver.Process(target=run_until_second_checkpoint, args=(recipe, str(folder)))
    process.start()
    process.join(timeout=800)
    assert process.exitcode == -signal.SIGKILL
    assert list(folder.glob("phases/01-warmup/checkpoint-*"))
    run_staged(recipe, str(folder))
    assert folder_bytes(folder) == folder_bytes(tmp_path / "whole")


def run_until_second_checkpoint(recipe, folder):
    saved, plain = [], HiVGTrainer._save_checkpoint

    def save_and_die(self, *arguments):
        plain(self, *arguments)
        saved.append(1)
        if len(saved) == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    HiVGTrainer._save_checkpoint = save_and_die
    run_staged(recipe, folder)


def test_lanes_follow_from_the_batch_and_the_workers(tiny_checkpoint, shards):
    recipe = parse_recipe(streaming_recipe(tiny_checkpoint, shards, workers=2))
    mixed, table = (RowCache().training_rows(recipe, phase) for phase in recipe.phases)
    assert (table.seed, table.batch_size, table.lanes) == (7, 8, 2)  # one run of 8 rows a batch, two workers
    assert (len(mixed), mixed.lanes) == (24, 2)


def test_what_a_stream_of_shards_cannot_do_is_said_before_training(tiny_checkpoint, shards):
    recipe = streaming_recipe(tiny_checkpoint, shards, workers=0)
    recipe["data"]["train"]["lane"] = 3
    with pytest.raises(ValueError, match=r"lane.*lanes"):
        parse_recipe(recipe)
    del recipe["data"]["train"]["lane"]
    recipe["data"]["train"]["holdout"] = 0.1
    with pytest.raises(ValueError, match=r"holdout"):
        parse_recipe(recipe)
