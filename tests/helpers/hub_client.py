"""What the tests of sharing ask of their interpreters."""

from pathlib import Path
from typing import Any

import torch

from .interpreter import Interpreter

EXPRESSIONS = ["the red star", "the blue star of the left"]
PLANTED = {
    ".env": "SECRET=1",
    "trainer_log.jsonl": "{}",
    "optimizer.pt": "x",
    "pytorch_model.bin": "x",
    "notes_hivg.py": "",
    "hivg.safetensors": "x",
}

PUSH = """
import os
os.environ.pop("HF_TOKEN", None)
os.environ.update({"HF_TOKEN": token} if token else {})
from typer.testing import CliRunner
from hivg_hf.cli import app
done = CliRunner().invoke(app, ["push", *args])
os.environ.pop("HF_TOKEN", None)
result = {"status": done.exit_code, "output": done.output}
"""

PIPELINE = """
from transformers import pipeline
pipe = pipeline("visual-grounding", model=repo_id, **options)
result = [list(found["box"].values()) + [found["score"]] for found in pipe(picture, expressions)]
"""

# The Hub's own task: its auto class, and its pipeline, whose boxes are whole pixels.
ZERO_SHOT_PIPELINE = """
from PIL import Image
from transformers import pipeline
pipe = pipeline("zero-shot-object-detection", model=repo_id, **options)
found = {one["label"]: one for one in pipe(Image.open(picture), candidate_labels=expressions, threshold=0.0)}
result = [list(found[label]["box"].values()) + [found[label]["score"]] for label in expressions]
"""

AUTO_CLASSES = """
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor
model = AutoModel.from_pretrained(repo_id, **options)
processor = AutoProcessor.from_pretrained(repo_id, **options)
image = Image.open(picture)
inputs = processor(images=[image] * len(expressions), text=expressions, return_tensors="pt")
with torch.no_grad():
    outputs = model(**inputs)
found = processor.post_process_grounding(outputs, [(image.height, image.width)] * len(expressions))
result = [one["box"].tolist() + [float(one["score"])] for one in found]
"""

ZERO_SHOT_CLASSES = AUTO_CLASSES.replace("AutoModel", "AutoModelForZeroShotObjectDetection")


def push(home: Interpreter, folder: Path, repo_id: str, *options: str, token: str = "hf_alice") -> dict[str, Any]:
    return home.run(PUSH, args=[str(folder), repo_id, *options], token=token)


def pushed(home: Interpreter, folder: Path, repo_id: str, *options: str) -> None:
    """Push without the check, which costs a second and has tests of its own."""
    done = push(home, folder, repo_id, "--no-check", *options)
    assert done["status"] == 0, done["output"]


def boxes(process: Interpreter, code: str, repo_id: str, picture: str, **options: Any) -> torch.Tensor:
    names = {"repo_id": repo_id, "picture": picture, "expressions": EXPRESSIONS, "options": options}
    return torch.tensor(process.run(code, **names), dtype=torch.float64)  # (E, 5)
