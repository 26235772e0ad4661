"""Going on with an adapter as the authors do, and stages that begin with parts of two checkpoints."""

import copy

import pytest
import torch
from safetensors.torch import load_file

from helpers.training import colored_box_rows, fresh, make_trainer, tiny_recipe
from hivg_hf.hilora import PROGRESSIVE_ADAPTER, HiLoraConfig, HiLoraStage, start_stage
from hivg_hf.hilora.folders import save_adapter, save_base
from hivg_hf.metrics.scoring import score_rows
from hivg_hf.training import StagedTraining, parse_recipe

SHAPE = {"rank": 2, "alpha": 4, "dropout": 0.0}
ADAPTER_FILE = f"{PROGRESSIVE_ADAPTER}/adapter_model.safetensors"


@pytest.fixture
def adapted(tiny_model, tiny_processor, tmp_path):
    """A folder as `hivg convert --lora adapter` writes it, its terms not 0."""
    stages = (HiLoraStage("all", vision_layers=4, text_layers=3, **SHAPE),)
    model = start_stage(fresh(tiny_model), HiLoraConfig(stages, mode="progressive"), 1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    folder = tmp_path / "start"
    save_base(model, folder / "base", tiny_processor)
    save_adapter(model, PROGRESSIVE_ADAPTER, folder / "adapters" / PROGRESSIVE_ADAPTER, base=folder / "base")
    return folder


def continuing(folder, **stage):
    recipe = tiny_recipe(folder)
    recipe["hilora"] = {"mode": "progressive"}
    lora = {"train": "lora", "steps": 1, "vision_layers": 2, "text_layers": 3, **SHAPE, **stage, "keep": "last"}
    recipe["phases"] = [
        {"name": "stage_0", "train": "heads", "steps": 1, "keep": "last"},
        {"name": "stage_1", **lora},
    ]
    return recipe


def test_every_phase_goes_on_with_the_adapter(adapted, tmp_path):
    """Frozen while heads train, trained on in its first layers in a stage, and part of what comes out."""
    run = tmp_path / "run"
    recipe = continuing(adapted)
    recipe["model"]["config"]["bridge_lora"] = True
    StagedTraining(parse_recipe(recipe), run).run()
    start = load_file(adapted / "adapters" / ADAPTER_FILE)
    heads = load_file(run / "phases" / "01-stage_0" / "result" / ADAPTER_FILE)
    stage = load_file(run / "phases" / "02-stage_1" / "result" / ADAPTER_FILE)
    assert all(torch.equal(tensor, heads[name]) for name, tensor in start.items())
    moved = {name for name, tensor in start.items() if not torch.equal(tensor, stage[name])}
    assert moved
    deeper = [f"vision_model.encoder.layers.{layer}." for layer in (2, 3)]
    assert not [name for name in moved if any(part in name for part in deeper)]
    merged = load_file(run / "merged" / "model.safetensors")
    assert not [name for name in merged if name.endswith((".up", ".down")) or "lora" in name]
    base = load_file(adapted / "base" / "model.safetensors")
    name = "clip.vision_model.encoder.layers.3.self_attn.q_proj"
    term = 2 * stage[f"base_model.model.{name}.lora_B.weight"] @ stage[f"base_model.model.{name}.lora_A.weight"]
    torch.testing.assert_close(merged[f"{name}.weight"], base[f"{name}.weight"] + term)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"hilora": {"mode": "additive"}},
            "train further with hilora.mode: progressive only. Got additive",
        ),
        ({"rank": 4}, r"of rank, alpha and dropout \(2, 4.0, 0.0\), and stage 'stage_1' asks for \(4, 4.0, 0.0\)"),
        ({"train": "all"}, "phase 'stage_0' must train heads or lora, without `config`"),
    ],
)
def test_what_cannot_go_on_with_it_is_refused(change, message, adapted, tmp_path):
    recipe = continuing(adapted)
    recipe["hilora"] = change.get("hilora", recipe["hilora"])
    recipe["phases"][0]["train"] = change.get("train", "heads")
    recipe["phases"][1]["rank"] = change.get("rank", 2)
    with pytest.raises(ValueError, match=message):
        StagedTraining(parse_recipe(recipe), tmp_path / "run").run()


def test_a_phase_may_keep_the_last_heads_and_the_best_of_all_else(tiny_checkpoint, tmp_path):
    found = {}
    for keep in ("last", "best_but_last_heads"):
        recipe = tiny_recipe(tiny_checkpoint)
        recipe["phases"] = [{**copy.deepcopy(recipe["phases"][0]), "keep": keep}]
        results = StagedTraining(parse_recipe(recipe), tmp_path / keep).run()
        found[keep] = load_file(tmp_path / keep / "model" / "model.safetensors")
    assert results["phases"][0]["why"].startswith("the recipe keeps the last heads, and the best of all else")
    last, mixed = found["last"], found["best_but_last_heads"]
    best = results["phases"][0]["best_step"]
    start = load_file(f"{tiny_checkpoint}/model.safetensors")
    for name, tensor in mixed.items():
        if name.startswith("grounding_head."):
            assert torch.equal(tensor, last[name]), name
        elif best is None:
            assert torch.equal(tensor, start[name]), name
    assert any(not torch.equal(last[name], mixed[name]) for name in mixed if ".bridge." in name) or best


def test_validation_by_the_official_protocol_is_that_of_evaluation(tiny_model, tiny_processor, tmp_path):
    """Targets that begin as the model's own boxes, so that cutting them to whole pixels decides."""
    rows = []
    for index, row in enumerate(colored_box_rows(6, seed=3)):
        image = row["image"].resize((640, 480))  # 64 x 48 on the square: no side is rounded
        found = tiny_model.ground(image, row["expression"], tiny_processor)["box"]
        box = [found["xmin"], found["ymin"], found["xmin"] + 20.9 + 7 * index, found["ymax"]]
        rows.append({**row, "image": image, "width": 640, "height": 480, "box": box, "boxes": [box], "source": "unc"})
    figures = {}
    for protocol in ("pixel", "official"):
        trainer = make_trainer(fresh(tiny_model), tiny_processor, tmp_path, eval_rows=rows, protocol=protocol)
        figures[protocol] = trainer.evaluate()
    with torch.no_grad():
        inputs = tiny_processor([row["image"] for row in rows], [row["expression"] for row in rows])
        boxes = tiny_model(**inputs).pred_boxes.tolist()
    predictions = [
        {"id": i, "box_xyxy": [0, 0, 1, 1], "canvas_box": box, "canvas_size": 64, "canvas_offset": [0, 8]}
        for i, box in enumerate(boxes)
    ]
    wanted = score_rows(predictions, [{"id": i, **row} for i, row in enumerate(rows)], "official")
    assert figures["official"]["eval_mean_iou"] == pytest.approx(float(wanted.ious.mean()), abs=1e-6)
    assert figures["official"]["eval_accuracy"] == wanted.correct("official").mean()
    assert figures["pixel"]["eval_mean_iou"] != pytest.approx(figures["official"]["eval_mean_iou"], abs=1e-4)
    with pytest.raises(ValueError, match=r"protocol must be one of pixel, official. Got 'mdetr'"):
        make_trainer(fresh(tiny_model), tiny_processor, tmp_path, protocol="mdetr")
