"""Train on your own data: the plan fits the data, and the commands lead from a table to a grounded picture."""

import argparse
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from parity.official_cases import made_case
from PIL import Image
from typer.testing import CliRunner

from benchmarks.speed.official_reference import OfficialLayers
from hivg_hf.conversion import load_official_checkpoint
from hivg_hf.data.loading import load_grounding_dataset
from hivg_hf.recipes import override
from hivg_hf.training import parse_recipe, plan_user_training


@pytest.fixture(scope="module")
def bases(tmp_path_factory, tiny_model, tiny_processor, tiny_tokenizer):
    """A HiVG folder, a plain CLIP folder, and a converted official checkpoint."""
    from transformers import CLIPModel

    folder = tmp_path_factory.mktemp("bases")
    tiny_model.save_pretrained(folder / "hivg")
    tiny_processor.save_pretrained(folder / "hivg")
    CLIPModel(tiny_model.config.clip_config).save_pretrained(folder / "clip")
    tiny_tokenizer.save_pretrained(folder / "clip")
    model, processor = load_official_checkpoint(
        _official_file(folder, len(tiny_tokenizer)),
        clip_config=json.loads((folder / "clip.json").read_text()),
        tokenizer=tiny_tokenizer,
        return_processor=True,
    )
    model.save_pretrained(folder / "official")
    processor.save_pretrained(folder / "official")
    return folder


def _official_file(folder, vocabulary):
    """A file as the authors publish them, of a tiny model that reads the tests' tokenizer."""
    case = made_case(OfficialLayers([0, 3, 7, 11], [1, 4, 8, 12], [6, 12]), dataset="unc+", hi_lora_stage=1)
    (embedding,) = (name for name in case.state if name.endswith("token_embedding.weight"))
    case.state[embedding] = torch.randn(vocabulary, case.state[embedding].shape[1]) * 0.02
    case.clip_config["text_config"]["vocab_size"] = vocabulary
    torch.save({"model": case.state, "args": argparse.Namespace(**case.args)}, folder / "best_checkpoint.pth")
    (folder / "clip.json").write_text(json.dumps(case.clip_config))
    return folder / "best_checkpoint.pth"


@pytest.fixture
def photos(tmp_path):
    """Ten pictures with a bright rectangle each, and a table of them without splits."""
    rng = np.random.default_rng(0)
    lines = ["image,expression,x1,y1,x2,y2"]
    (tmp_path / "photos").mkdir()
    for number in range(10):
        pixels = np.full((48, 64, 3), 40, dtype=np.uint8)
        x, y = int(rng.integers(0, 40)), int(rng.integers(0, 30))
        pixels[y : y + 16, x : x + 20] = (230, 200, 60)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{number}.png")
        lines.append(f"{number}.png,the yellow box,{x},{y},{x + 20},{y + 16}")
    (tmp_path / "my.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def _plan(folder, base, **options):
    arguments = {"data": str(folder / "my.csv"), "images": str(folder / "photos"), "base": str(base)}
    return plan_user_training(**{**arguments, "box_format": "xyxy", "out": str(folder / "run"), **options})


def test_the_plan_is_a_valid_recipe_that_holds_images_out(photos, bases):
    plan = _plan(photos, bases / "hivg")
    recipe = parse_recipe(plan)
    assert recipe.name == "run"
    assert recipe.model.checkpoint == str(bases / "hivg")
    assert [phase.train for phase in recipe.phases] == ["lora"]
    assert recipe.phases[0].vision_layers == 4
    train, validation = (load_grounding_dataset(**plan["data"][name]) for name in ("train", "validation"))
    assert (len(train), len(validation)) == (8, 2)
    assert not set(train["image_id"]) & set(validation["image_id"])


def test_new_bridges_and_heads_are_warmed_up_first(photos, bases):
    recipe = parse_recipe(_plan(photos, bases / "clip"))
    assert recipe.model.clip == str(bases / "clip")
    assert [phase.train for phase in recipe.phases] == ["heads", "lora"]


def test_rate_and_batch_size_of_the_command_replace_those_of_the_size(photos, bases):
    planned = parse_recipe(_plan(photos, bases / "clip"))
    changed = parse_recipe(_plan(photos, bases / "clip", learning_rate=2e-5, batch_size=4))
    rates = [[phase.learning_rate for phase in recipe.phases] for recipe in (planned, changed)]
    assert rates[1][0] == pytest.approx(2e-5)
    assert rates[1][1] / rates[1][0] == pytest.approx(rates[0][1] / rates[0][0])
    assert {phase.batch_size for phase in changed.phases} == {4}


@pytest.mark.parametrize(
    ("rows", "batch_size", "epochs"),
    [(40, 8, 40), (600, 16, 24), (5_000, 32, 6), (40_000, 64, 3)],
)
def test_defaults_follow_the_number_of_rows(tmp_path, bases, make_image, rows, batch_size, epochs):
    make_image(tmp_path / "photos" / "a.png")
    lines = [f"{i}.png,object {i},1,2,30,40,{'val' if i % 20 == 0 else 'train'}" for i in range(rows * 20 // 19 + 1)]
    (tmp_path / "my.csv").write_text("image,expression,x1,y1,x2,y2,split\n" + "\n".join(lines) + "\n")
    recipe = parse_recipe(_plan(tmp_path, bases / "hivg"))
    phase = recipe.phases[0]
    assert (phase.batch_size, len(recipe.phases), phase.epochs) == (batch_size, 1, epochs)
    assert (phase.vision_layers, recipe.hilora.targets) == (4, "all-linear")
    assert phase.early_stop is not None


def test_the_plan_says_why_with_the_figures_of_the_study(photos, bases, caplog):
    with caplog.at_level(logging.INFO, "hivg_hf"):
        _plan(photos, bases / "hivg")
    gained = ", ".join(f"{_points_ahead(f'all-linear-{rows}', 'untouched'):.1f}" for rows in (200, 2_000, 10_000))
    behind = _points_ahead("all-linear-2000", "stages-2000")
    assert f"HiLoRA in stages was {behind:.1f} points behind" in caplog.text
    assert f"rows brought {gained} points (docs/own-rows.md)" in caplog.text


def _points_ahead(first, second):
    """Mean over the seeds that both were run with, of Acc@0.5 in percent."""
    folder = Path(__file__).parents[2] / "benchmarks" / "results" / "own-rows"
    accuracy = {
        name: {
            path.stem.rpartition("-")[2]: json.loads(path.read_text())["tests"]["val"]["figures"]["acc@0.5"]
            for path in folder.glob(f"bridge-{name}-[123].json")
        }
        for name in (first, second)
    }
    seeds = accuracy[first].keys() & accuracy[second].keys()
    return 100 * np.mean([accuracy[first][seed] - accuracy[second][seed] for seed in seeds])


def test_splits_of_the_table_are_followed_and_a_test_split_is_measured(photos, bases):
    text = (photos / "my.csv").read_text().splitlines()
    names = ["train"] * 7 + ["validation"] * 2 + ["test"]
    lines = [text[0] + ",split", *(f"{line},{name}" for line, name in zip(text[1:], names, strict=True))]
    (photos / "my.csv").write_text("\n".join(lines))
    plan = _plan(photos, bases / "hivg", epochs=2)
    sizes = {name: len(load_grounding_dataset(**plan["data"][name])) for name in ("train", "validation")}
    assert sizes == {"train": 7, "validation": 2}
    assert len(load_grounding_dataset(**plan["data"]["tests"]["test"])) == 1
    assert parse_recipe(plan).phases[0].epochs == 2


@pytest.mark.parametrize(("base", "share"), [("hivg", 0.2), ("clip", 0.2), ("official", None)])
def test_a_score_that_trains_gets_negatives(photos, bases, base, share, caplog):
    with caplog.at_level(logging.INFO, "hivg_hf"):
        plan = _plan(photos, bases / base)
    assert plan["data"]["train"].get("negatives") == (None if share is None else {"share": share})
    assert "negatives" not in plan["data"]["validation"]
    assert ("the model has no score that trains" in caplog.text) == (share is None)
    parse_recipe(plan)


@pytest.mark.parametrize(
    ("expression", "no_target", "why"),
    [
        ("the yellow box", True, "the table has expressions of its own that name nothing"),
        ("that one", False, "only 0% of its expressions can be turned into one that names nothing"),
    ],
)
def test_a_table_with_its_own_negatives_or_none_to_make_stays_as_it_is(
    photos, bases, caplog, expression, no_target, why
):
    rows = [{"image": f"{i}.png", "expression": expression, "box": [1, 1, 9, 9]} for i in range(10)]
    if no_target:
        rows[3] = {"image": "3.png", "expression": "a tree", "no_target": True}
    (photos / "my.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with caplog.at_level(logging.INFO, "hivg_hf"):
        plan = _plan(photos, bases / "hivg", data=str(photos / "my.jsonl"))
    assert "negatives" not in plan["data"]["train"]
    assert why in caplog.text


@pytest.mark.parametrize(
    ("base", "masks", "trained"), [("hivg", 0, False), ("official", 0, False), ("hivg", 10, True), ("clip", 0, True)]
)
def test_a_mask_head_that_has_learned_is_not_taught_boxes_where_no_row_has_a_mask(
    photos, bases, caplog, base, masks, trained
):
    rows = [{"image": f"{i}.png", "expression": "the yellow box", "box": [1, 1, 9, 9]} for i in range(10)]
    for row in rows[:masks]:
        row["mask"] = {"size": [48, 64], "counts": [0, 48, 48 * 63]}
    (photos / "my.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with caplog.at_level(logging.INFO, "hivg_hf"):
        plan = _plan(photos, bases / base, data=str(photos / "my.jsonl"))
    for phase in parse_recipe(plan).phases:
        weights = phase.loss_weights or {}
        assert {weights.get("mask_focal", 1.0), weights.get("mask_dice", 1.0)} == ({1.0} if trained else {0.0})
    assert ("the mask head of the model is not trained" in caplog.text) == (not trained)


@pytest.mark.parametrize(("change", "share"), [("share=0.1", 0.1), ("=null", None)])
def test_the_share_is_changed_from_the_command_line(photos, bases, change, share):
    name = "data.train.negatives" + ("." if share else "") + change
    recipe = parse_recipe(override(_plan(photos, bases / "hivg"), [name]))
    assert recipe.data.train["negatives"] == (None if share is None else {"share": share})


@pytest.mark.parametrize("negatives", [None, {"share": 0.5, "kinds": ["edited"]}])
def test_negatives_that_were_asked_for_are_those_of_the_training_rows(photos, bases, negatives):
    plan = _plan(photos, bases / "hivg", negatives=negatives)
    assert plan["data"]["train"]["negatives"] == negatives
    assert "negatives" not in plan["data"]["validation"]
    parse_recipe(plan)


def test_a_table_of_its_own_serves_validation(photos, bases):
    text = (photos / "my.csv").read_text().splitlines()
    (photos / "val.csv").write_text("\n".join(text[:4]))
    plan = _plan(photos, bases / "hivg", val=str(photos / "val.csv"))
    assert len(load_grounding_dataset(**plan["data"]["train"])) == 10
    assert len(load_grounding_dataset(**plan["data"]["validation"])) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"box_format": None}, "say what its boxes mean with box_format="),
        ({"base": "no/such/folder"}, "no/such/folder is neither a model folder nor a Hub id"),
        ({"base": "Tiny"}, r"^Tiny is neither a model folder .*: Unknown model 'Tiny': did you mean 'tiny'\?$"),
        ({"data": "gone.csv"}, r"the table needs the file gone\.csv"),
        ({"images": "gone"}, "Image folder not found: gone"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_trained(photos, bases, options, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        _plan(photos, **{"base": bases / "hivg", **options})


def test_bases_and_splits_that_cannot_be_used_are_named(photos, bases, tmp_path):
    (tmp_path / "weights.pth").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"weights\.pth is a file; convert it first: hivg convert"):
        _plan(photos, tmp_path / "weights.pth")
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match="is a model of type 'bert'; training starts from a HiVG or a CLIP"):
        _plan(photos, tmp_path / "bert")
    text = (photos / "my.csv").read_text().splitlines()
    (photos / "my.csv").write_text("\n".join([text[0] + ",split", *(f"{line},train" for line in text[1:])]))
    with pytest.raises(ValueError, match="has the splits train; train and val are needed"):
        _plan(photos, bases / "hivg")


@pytest.mark.parametrize("base", ["hivg", "clip", "official"])
def test_from_a_table_to_a_grounded_picture_by_two_commands(photos, bases, base):
    from hivg_hf.cli import app

    run, picture = photos / "run", photos / "photos" / "0.png"
    words = ["train", "--data", photos / "my.csv", "--images", photos / "photos", "--box-format", "xyxy"]
    words += ["--base", bases / base, "--epochs", "1", "--out", run]
    done = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    results = json.loads((run / "results.json").read_text())
    assert results["model"] == "merged"
    figures = results["evaluation"]["validation"]["figures"]
    assert f"validation: {100 * figures['acc@0.5']:.1f} % right at IoU 0.5" in done.output
    assert all(f"\n{phase['name']}: " in done.output and phase["why"] in done.output for phase in results["phases"])
    assert f'hivg ground PICTURE "AN EXPRESSION" --model {run} --out boxed.png' in done.output
    assert "score: not calibrated on these rows; answers say no `found` until it is" in done.output
    assert f"hivg calibrate {run} --out {run}-calibrated --data ROWS --split SPLIT  # 50 or more" in done.output
    words = ["evaluate", "--model", run, "--split", "held-out", "--no-plots", "--out", photos / "held-out"]
    done = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    again = json.loads((photos / "held-out" / "results.json").read_text())
    assert (again["figures"], again["counts"]) == (figures, results["evaluation"]["validation"]["counts"])
    assert (run / "merged" / "README.md").is_file()
    boxed = photos / "boxed.png"
    words = ["ground", picture, "the yellow box", "--model", run / "merged", "--out", boxed]
    done = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert Image.open(boxed).width >= 64


def test_options_of_the_command_reach_the_reader(photos, bases):
    from hivg_hf.cli import app

    (photos / "my.csv").write_text((photos / "my.csv").read_text() + "gone.png,the yellow box,1,2,30,40\n")
    words = ["train", "--data", photos / "my.csv", "--images", photos / "photos", "--box-format", "xyxy"]
    words += ["--base", bases / "hivg", "--out", photos / "run", "--dry-run"]
    strict = CliRunner().invoke(app, [str(word) for word in words])
    assert strict.exit_code == 2
    assert "1 of 9 rows cannot be used" in strict.output
    lenient = CliRunner().invoke(app, [*map(str, words), "--option", "on_error=skip", "--option", "masks=false"])
    assert lenient.exit_code == 0, lenient.output
    assert "lora: trains lora" in lenient.output
    assert not (photos / "run").exists()


def _ten_lines(data: Path, images: Path, base: str, out: Path, from_clip: bool):
    """The example of docs/fine-tune.md, whole."""
    from transformers import AutoProcessor, AutoTokenizer, Trainer, TrainingArguments

    from hivg_hf import HiVGForVisualGrounding, HiVGProcessor
    from hivg_hf.data import GroundingAugmentation, GroundingCollator

    rows = load_grounding_dataset(data, "train", images=images, box_format="xyxy", holdout=0.2)
    if from_clip:
        model = HiVGForVisualGrounding.from_clip(base)
        processor = HiVGProcessor.for_config(model.config, AutoTokenizer.from_pretrained(base))
    else:
        model = HiVGForVisualGrounding.from_pretrained(base)
        processor = AutoProcessor.from_pretrained(base)
    collate = GroundingCollator(processor, augmentation=GroundingAugmentation.for_processor(processor))
    arguments = TrainingArguments(
        str(out), max_steps=2, per_device_train_batch_size=4, remove_unused_columns=False, label_names=["labels"]
    )
    trainer = Trainer(model, arguments, data_collator=collate, train_dataset=rows)
    return model, trainer


@pytest.mark.parametrize("base", ["hivg", "clip", "official"])
def test_the_plain_trainer_trains_on_the_same_table(photos, bases, base):
    torch.manual_seed(0)
    model, trainer = _ten_lines(
        photos / "my.csv", photos / "photos", str(bases / base), photos / "out", base == "clip"
    )
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    result = trainer.train()
    assert np.isfinite(result.training_loss)
    changed = [name for name, value in model.named_parameters() if not torch.equal(value, before[name])]
    assert any(name.startswith("grounding_head") for name in changed)
