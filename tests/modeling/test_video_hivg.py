"""Frames of a video get the boxes that their pictures get, steadied without lag; other files open nothing."""

from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from helpers.moving_scenes import moving_scene, write_video
from hivg_hf import TINY_CHECKPOINT
from hivg_hf.inference import load_pipeline
from hivg_hf.modeling.video_hivg import SIDES, BoxTrack, iou, read_frames, upright

FRAMES = 32


def as_array(box: dict[str, float]) -> np.ndarray:
    return np.array([box[side] for side in SIDES])


def result_of(box: np.ndarray, score: float | None = 0.95) -> dict[str, object]:
    return {"box": dict(zip(SIDES, map(float, box), strict=True)), "score": score}


def jitter(boxes: np.ndarray) -> float:
    """How much the error changes from frame to frame (N, 4), in pixels."""
    return float(np.abs(np.diff(boxes, axis=0)).mean())


def test_moving_scenes_are_followed_with_less_jitter_and_no_lag(tmp_path: Path) -> None:
    text, frames = moving_scene(3, FRAMES)
    pictures, boxes = zip(*frames, strict=True)
    write_video(tmp_path / "scene.mp4", list(pictures))
    pipe = load_pipeline(TINY_CHECKPOINT, device="cpu")
    found = list(pipe.video(tmp_path / "scene.mp4", text))
    assert [one["frame"] for one in found] == list(range(FRAMES))
    assert found[25]["time"] == pytest.approx(1.0)
    truth = np.array(boxes)  # (N, 4)
    steadied = np.array([as_array(one["box"]) for one in found])
    raw = np.array([as_array(one["raw_box"]) for one in found])
    overlaps = [[iou(box, target) for box, target in zip(row, truth, strict=True)] for row in (raw, steadied)]
    assert np.mean(np.array(overlaps[1]) >= 0.5) == 1
    assert np.mean(overlaps[1]) >= np.mean(overlaps[0]) - 0.02
    assert jitter(steadied - truth) < 0.85 * jitter(raw - truth)


def test_several_expressions_and_no_smoothing_give_the_pictures_own_boxes(
    tiny_checkpoint: str, tmp_path: Path
) -> None:
    text, frames = moving_scene(0, 5)
    write_video(tmp_path / "scene.mkv", [picture for picture, _ in frames])
    pipe = load_pipeline(tiny_checkpoint, device="cpu")
    found = list(pipe.video(tmp_path / "scene.mkv", [text, "the red star"], smooth=False, batch_size=3))
    assert [len(one["results"]) for one in found] == [2] * 5
    alone = pipe(found[4]["image"], "the red star")
    np.testing.assert_allclose(as_array(found[4]["results"][1]["box"]), as_array(alone["box"]), atol=1e-2)


def test_a_track_ignores_one_wild_frame_and_follows_a_cut() -> None:
    track, here, there = BoxTrack(), np.array([10, 10, 30, 30]), np.array([70, 70, 90, 90])
    steps = [(here, 0.9)] * 5 + [(there, 0.9)] + [(here, 0.9)] * 2 + [(there, 0.2)] * 3
    for box, score in steps:
        kept = as_array(track.follow(result_of(box, score))["box"])
        assert iou(kept, here) > 0.9
    track.follow(result_of(there))
    assert iou(as_array(track.follow(result_of(there))["box"]), there) > 0.99


def test_a_track_keeps_up_with_steady_motion_and_needs_no_score() -> None:
    track = BoxTrack()
    for step in range(60):
        box = np.array([10, 10, 30, 30]) + step
        kept = as_array(track.follow(result_of(box, None))["box"])
    assert np.abs(kept - box).max() < 0.5  # an average of past boxes would be a frame or more behind


@pytest.mark.parametrize(("rotation", "corner"), [(0, (0, 0)), (90, (0, 1)), (180, (2, 1)), (-90, (1, 0))])
def test_frames_are_turned_upright(rotation: int, corner: tuple[int, int]) -> None:
    picture = PIL.Image.new("RGB", (3, 2))
    picture.putpixel((0, 0), (255, 0, 0))
    turned = upright(picture, rotation)
    if rotation in (90, -90):
        assert turned.size == (2, 3)
        corner = (0, 2) if rotation == 90 else (1, 0)
    assert turned.getpixel(corner) == (255, 0, 0)


def test_files_that_are_not_videos_are_refused_and_open_nothing(tmp_path: Path) -> None:
    write_video(tmp_path / "real.mp4", [PIL.Image.new("RGB", (64, 48))] * 3)
    (tmp_path / "list.mp4").write_text(f"ffconcat version 1.0\nfile '{tmp_path / 'real.mp4'}'\n")
    (tmp_path / "play.m3u8").write_text(f"#EXTM3U\n#EXTINF:1,\n{tmp_path / 'real.mp4'}\n")
    (tmp_path / "noise.mp4").write_bytes(bytes(range(256)) * 20)
    (tmp_path / "cut.mp4").write_bytes((tmp_path / "real.mp4").read_bytes()[:300])
    (tmp_path / "empty.mp4").write_bytes(b"")
    for name in ("list.mp4", "play.m3u8", "noise.mp4", "cut.mp4", "empty.mp4"):
        with pytest.raises(ValueError, match=r"damaged or not a video|has no pictures"):
            list(read_frames(tmp_path / name))
    with pytest.raises(FileNotFoundError, match=r"Video file not found"):
        list(read_frames("http://127.0.0.1:9/video.mp4"))
