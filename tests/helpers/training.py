"""Small rows and models for the training tests."""

import copy
import socket
from typing import Any

import numpy as np
from PIL import Image

from hivg_hf import HiVGForVisualGrounding
from hivg_hf.training import HiVGTrainer, HiVGTrainingArguments

COLORS = {"red": (220, 40, 40), "blue": (40, 60, 220)}


def colored_box_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of the schema: one colored rectangle on gray, named by its color; pictures of several shapes."""
    rng = np.random.default_rng(seed)
    return [_row(rng, index) for index in range(count)]


def _row(rng: np.random.Generator, index: int) -> dict[str, Any]:
    width, height = (int(side) for side in rng.integers(48, 97, size=2))
    x1, y1 = int(rng.integers(0, width - 24)), int(rng.integers(0, height - 24))
    x2, y2 = x1 + int(rng.integers(12, 24)), y1 + int(rng.integers(12, 24))
    color = sorted(COLORS)[index % 2]
    pixels = np.full((height, width, 3), 128, dtype=np.uint8)
    pixels[y1:y2, x1:x2] = COLORS[color]
    return {
        "image": Image.fromarray(pixels),
        "expression": f"the {color} box" if index % 3 else f"{color}",
        "box": [float(edge) for edge in (x1, y1, x2, y2)],
        "boxes": [[float(edge) for edge in (x1, y1, x2, y2)]],
        "no_target": False,
        "mask": None,
        "width": width,
        "height": height,
        "category": None,
        "image_id": f"image-{index}",
        "ref_id": str(index),
        "sent_id": str(index),
        "source": "boxes",
        "split": "train",
    }


def row_with_targets(row: dict[str, Any], count: int) -> dict[str, Any]:
    """A row that names nothing, or several things: its own box, and others beside it."""
    x1, y1, x2, y2 = row["box"]
    boxes = [[x1, y1 + 4 * place, x2, y2 + 4 * place] for place in range(count)]
    return {**row, "boxes": boxes, "box": boxes[0] if boxes else None, "no_target": not boxes}


def fresh(model: Any) -> Any:
    """A copy that may be trained."""
    return copy.deepcopy(model)


def tiny_recipe(checkpoint: str, **changes: Any) -> dict[str, Any]:
    """A recipe of a warm-up and three stages on a handful of RefShapes rows, dropout and augmentation on."""
    rows = {"source": "refshapes", "seed": 5}
    recipe = {
        "name": "tiny",
        "seed": 7,
        "model": {"checkpoint": str(checkpoint), "config": {"fusion_dropout": 0.1}},
        "data": {
            "train": {**rows, "split": "train", "size": 24},
            "validation": {**rows, "split": "val", "size": 10},
            "augmentation": {},
        },
        "defaults": {"batch_size": 8, "per_device_batch_size": 4, "learning_rate": 1e-3, "log_every": 1},
        "phases": [
            {"name": "warmup", "train": "heads", "epochs": 2, "save_every": 1},
            *(
                {
                    "name": f"stage_{number}",
                    "train": "lora",
                    "epochs": 1,
                    "save_every": 1,
                    "vision_layers": number + 1,
                    "text_layers": 3,
                    "rank": 2,
                    # random weights gain nothing in a few steps: keep what was trained
                    "keep": "last",
                }
                for number in (1, 2, 3)
            ),
        ],
    }
    return {**recipe, **changes}


def run_staged(recipe: dict[str, Any], folder: str) -> None:
    """Run a recipe in this process; the target of processes that are killed."""
    from hivg_hf.training import StagedTraining, parse_recipe

    StagedTraining(parse_recipe(recipe), folder).run()


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def folder_bytes(folder: Any) -> dict[str, bytes]:
    """The weight files under a folder, whole."""
    from pathlib import Path

    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(Path(folder).rglob("*.safetensors"))}


ROWS = colored_box_rows(24)


def make_trainer(
    model, processor, folder, kind=HiVGTrainer, eval_rows=None, callbacks=None, initial=None, rows=None, **changes
):
    settings = {
        "global_batch_size": 8,
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 4,
        "max_steps": 4,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 5,
        **changes,
    }
    args = HiVGTrainingArguments(str(folder), **settings)
    return kind(
        model, args, train_dataset=rows or ROWS, eval_dataset=eval_rows, processing_class=processor,
        callbacks=callbacks, initial_accuracy=initial,
    )  # fmt: skip


def fresh_model(tiny_model, dropout=0.0, **loss_weights):
    config = copy.deepcopy(tiny_model.config)
    config.fusion_dropout = dropout
    config.loss_weights = {**config.loss_weights, **loss_weights}
    model = HiVGForVisualGrounding(config)
    model.load_state_dict(tiny_model.state_dict())
    return model
