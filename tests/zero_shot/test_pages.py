"""docs/zero-shot.md and docs/labels.md run, with tiny models in place of those of the Hub."""

import shlex
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from helpers.pages import DOCS, FILE, NOT_RUN, blocks
from helpers.zero_shot_models import owlv2
from hivg_hf.cli import app
from hivg_hf.data.refshapes import refshapes_dataset
from hivg_hf.zero_shot import TextDetector

__all__ = ["owlv2"]

HUB = {"openai/clip-vit-base-patch16": "clip", "IDEA-Research/grounding-dino-tiny": "teacher"}


@pytest.fixture
def workplace(clip, tiny_tokenizer, owlv2, tmp_path, monkeypatch):
    """A folder with a picture, a folder of pictures, a CLIP and a teacher whose detections are all sure."""
    monkeypatch.chdir(tmp_path)
    clip.save_pretrained("clip")
    tiny_tokenizer.save_pretrained("clip")
    owlv2.model.save_pretrained("teacher")
    owlv2.processor.save_pretrained("teacher")
    (tmp_path / "photos").mkdir()
    for number, row in enumerate(refshapes_dataset("val", seed=3, size=6, masks=False)):
        row["image"].save(tmp_path / "photos" / f"{number}.png")
    (tmp_path / "photos" / "0.png").rename("scene.png")
    found = TextDetector.__call__

    def sure(self, picture, labels, threshold=0.1):
        return [replace(one, score=0.9) for one in found(self, picture, labels, 0.0)[:4]]

    monkeypatch.setattr(TextDetector, "__call__", sure)
    return tmp_path


@pytest.mark.parametrize("page", ["zero-shot.md", "labels.md"])
def test_page_runs(page, workplace):
    names, ran = {"__name__": "__main__"}, 0
    for block in blocks(DOCS / page):
        code = block.code
        for model, folder in HUB.items():
            code = code.replace(model, folder)
        if block.note.startswith(FILE):
            (workplace / block.note.removeprefix(FILE)).write_text(code)
        elif block.note.startswith(NOT_RUN):
            continue
        elif block.language == "python":
            exec(compile("\n" * block.line + code, page, "exec"), names)
            ran += 1
        else:
            for command in code.splitlines():
                program, *arguments = shlex.split(command)
                done = CliRunner().invoke(app, arguments)
                assert (program, done.exit_code) == ("hivg", 0), f"{command}\n{done.output}\n{done.exception!r}"
                ran += 1
    assert ran >= 4
    if page == "labels.md":
        assert len(names["rows"]) > 0
