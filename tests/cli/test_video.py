"""`hivg video` draws boxes into a new video, or prints them, a line per frame."""

import json
from pathlib import Path

import PIL.Image
import pytest
from typer.testing import CliRunner

from helpers.moving_scenes import write_video
from hivg_hf.cli import app
from hivg_hf.modeling.video_hivg import read_frames


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    write_video(path, [PIL.Image.new("RGB", (97, 65), (shade, 128, 128)) for shade in range(0, 250, 50)])
    return path


def test_a_video_and_lines_come_out(clip: Path, tiny_checkpoint: str, tmp_path: Path) -> None:
    out = tmp_path / "boxed.mp4"
    done = CliRunner().invoke(
        app, ["video", str(clip), "the red cup", "the dog", "--out", str(out), "--json", "--model", tiny_checkpoint]
    )
    assert done.exit_code == 0, done.output
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [line["frame"] for line in lines] == list(range(5))
    assert [one["expression"] for one in lines[0]["results"]] == ["the red cup", "the dog"]
    assert "5 frames in" in done.output
    assert "frames/s)" in done.output
    frames = list(read_frames(out))
    assert len(frames) == 5
    assert frames[0][1].size == (480, 320)  # drawing enlarges small pictures
    assert sorted(path.name for path in tmp_path.iterdir()) == ["boxed.mp4"]


def test_mistakes_are_named(clip: Path, tiny_checkpoint: str, tmp_path: Path) -> None:
    for arguments, message in [
        ([str(clip), "the cup"], "Say what to make: --out VIDEO.mp4"),
        ([str(clip), "the cup", "--out", str(clip)], "would overwrite the video"),
        ([str(clip), "the cup", "--out", str(tmp_path / "a.txt")], "end its name in .mp4, .mkv, .webm"),
        ([str(tmp_path / "no.mp4"), "the cup", "--json"], "Video file not found"),
    ]:
        done = CliRunner().invoke(app, ["video", *arguments, "--model", tiny_checkpoint])
        assert done.exit_code == 2
        assert message in done.output.replace("\n", " ")
    assert list(tmp_path.iterdir()) == []
