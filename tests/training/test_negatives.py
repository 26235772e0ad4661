"""A whole run on rows of none, one and many, with negatives: the recipe trains, resumes and is measured by F1."""

import json

import numpy as np
import pytest
from PIL import Image

from helpers.training import fresh, tiny_recipe
from hivg_hf import HiVGForVisualGrounding, load_grounding_dataset
from hivg_hf.training import HiVGTrainer, HiVGTrainingArguments, StagedTraining, parse_recipe


def _recipe(tiny_checkpoint):
    recipe = tiny_recipe(tiny_checkpoint)
    rows = {"source": "refshapes", "seed": 5, "masks": False}
    several = {"plural_fraction": 0.4, "wordings": "varied"}
    recipe["model"]["config"] = {"num_queries": 3}
    recipe["data"] = {
        "train": {**rows, "split": "train", "size": 16, **several, "negatives": {"share": 0.4}},
        "validation": {**rows, "split": "val", "size": 4},
        "tests": {"several": {**rows, "split": "val+plural+none", "size": 3}},
        "unique_images": False,
    }
    recipe["phases"] = [{"name": "all", "train": "all", "steps": 3, "evaluate_every": 3, "keep": "last"}]
    return parse_recipe(recipe)


def test_a_run_on_none_one_and_many_is_measured_by_f1(tiny_checkpoint, tmp_path):
    results = StagedTraining(_recipe(tiny_checkpoint), tmp_path / "run").run()
    measured = json.loads((tmp_path / "run" / "evaluation" / "several" / "results.json").read_text())
    assert measured["counts"]["no_target"] == 3
    assert {"f1_precision", "n_acc", "t_acc", "ap@0.5", "acc@0.5"} <= set(measured["figures"])
    assert HiVGForVisualGrounding.from_pretrained(tmp_path / "run" / results["model"]).config.num_queries == 3


@pytest.fixture
def grefcoco(tmp_path):
    """Four refs of two pictures: one, both, both, none."""
    images, refs, annotations = [], [], []
    for number in range(2):
        name = f"COCO_train2014_{number:012d}.jpg"
        Image.fromarray(np.full((40, 60, 3), 90, dtype=np.uint8)).save(tmp_path / name)
        images.append({"id": number, "file_name": name, "width": 60, "height": 40})
        for box in ([2.0, 3.0, 20.0, 20.0], [30.0, 10.0, 20.0, 20.0]):
            annotations.append({"id": len(annotations) + 1, "image_id": number, "category_id": 1, "bbox": box})
        own = [annotation["id"] for annotation in annotations[-2:]]
        for named, words in ((own[:1], "the cup"), (own, "both cups"), ([-1], "a red plate")):
            ref_id = len(refs) + 1
            sentence = {"sent_id": ref_id, "sent": words, "raw": words}
            refs.append({"ref_id": ref_id, "ann_id": named, "category_id": [1], "image_id": number, "split": "train",
                         "file_name": name, "sent_ids": [ref_id], "sentences": [sentence]})  # fmt: skip
    (tmp_path / "grefs(unc).json").write_text(json.dumps(refs))
    instances = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cup"}]}
    (tmp_path / "instances.json").write_text(json.dumps(instances))
    return tmp_path


def test_grefcoco_trains_a_model_with_several_boxes(grefcoco, tiny_checkpoint, tiny_processor, tmp_path):
    rows = load_grounding_dataset("grefcoco", "train", root=grefcoco, masks=False, negatives={"share": 0.3})
    assert sorted(len(boxes) for boxes in rows.positives["boxes"]) == [0, 0, 1, 1, 2, 2]
    model = fresh(HiVGForVisualGrounding.from_pretrained(tiny_checkpoint, num_queries=2))
    before = model.grounding_head.state_dict()["score_head.weight"].clone()
    arguments = HiVGTrainingArguments(str(tmp_path / "run"), per_device_train_batch_size=3, max_steps=2, report_to=[],
                                      learning_rate=1e-3, save_strategy="no", use_cpu=True)  # fmt: skip
    trainer = HiVGTrainer(model, arguments, train_dataset=rows, processing_class=tiny_processor)
    trainer.train()
    assert np.isfinite(trainer.state.log_history[-1]["train_loss"])
    assert (model.grounding_head.state_dict()["score_head.weight"] != before).any()
