"""Videos for the grounding pipeline: frames in, boxes out, steadied over time.

PyAV (the extra `video`) decodes. Frames come upright and one by one, so that a video of any length needs the same
memory. A box is steadied by an alpha-beta filter (position and velocity per edge) that believes a frame as much as the
model's score says, so that a moving object is followed without lag and a doubtful frame does not make its box jump.
"""

import importlib
import os
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import PIL.Image

from .image_loading_hivg import MAX_PIXELS
from .image_sources_hivg import shown
from .pipeline_streams_hivg import answers_of

# Containers that hold frames themselves: playlists and scripts, which name other files, are not opened.
CONTAINERS = "mov,mp4,matroska,webm,avi,mpegts,mpeg,flv,gif,ogg,asf,mpegvideo,h264,hevc,y4m,yuv4mpegpipe"
SIDES = ("xmin", "ymin", "xmax", "ymax")
POSITION_GAIN = 0.5
VELOCITY_GAIN = 0.05
LEAST_SCORE = 0.5  # of a frame that moves a box
LEAST_OVERLAP = 0.2  # IoU with where the box was expected; less is a jump
LONGEST_HOLD = 15  # frames without a believable answer after which the next one is taken as it is


@contextmanager
def open_video(path: str | os.PathLike[str]) -> Iterator[tuple[Any, Any]]:
    """The open container and its first video stream.

    Raises:
        FileNotFoundError: If the file is missing.
        ValueError: If it is not a video in one of `CONTAINERS`, or is damaged.
        ImportError: If PyAV is not installed.
    """
    av = require_av()
    name = f"The video file {shown(os.fsdecode(path))}"
    if not os.path.isfile(path):
        raise FileNotFoundError(f"Video file not found: {shown(os.fsdecode(path))}.")
    try:
        # A file object and these options: what is inside must not make FFmpeg open anything else.
        options = {"format_whitelist": CONTAINERS, "protocol_whitelist": "none"}
        with open(path, "rb") as file, av.open(file, options=options) as container:
            if not container.streams.video:
                raise ValueError(f"{name} has no pictures.")
            yield container, container.streams.video[0]
    except (av.FFmpegError, OSError) as error:
        raise ValueError(f"{name} cannot be decoded: it is damaged or not a video ({error.strerror}).") from None


def read_frames(path: str | os.PathLike[str]) -> Iterator[tuple[float, PIL.Image.Image]]:
    """The frames of a video file: (time in seconds, upright RGB picture); raises what `open_video` does."""
    with open_video(path) as (container, stream):
        stream.thread_type = "AUTO"
        for number, frame in enumerate(container.decode(stream)):
            if frame.width * frame.height > MAX_PIXELS:
                raise ValueError(f"The video has frames of {frame.width} x {frame.height} pixels, too large to open.")
            time = frame.time if frame.time is not None else number / float(stream.average_rate or 25)
            yield time, upright(frame.to_image(), getattr(frame, "rotation", 0))


def upright(image: PIL.Image.Image, rotation: int) -> PIL.Image.Image:
    """The picture as a player shows it; `rotation` is the turn in degrees that undoes the camera's."""
    turns = {90: PIL.Image.Transpose.ROTATE_90, 180: PIL.Image.Transpose.ROTATE_180}
    turns[270] = PIL.Image.Transpose.ROTATE_270
    turn = turns.get(rotation % 360)
    return image if turn is None else image.transpose(turn)


def ground_frames(
    pipe: Any, frames: Iterator[tuple[float, PIL.Image.Image]], text: Any, smooth: bool, **options: Any
) -> Iterator[dict[str, Any]]:
    """`{"frame", "time", "image", "results"}` for each frame, in order; with a string, its one result unwrapped."""
    if smooth and options.get("multiple"):
        raise ValueError("Boxes are steadied one for each expression: pass smooth=False with multiple=True.")
    several = not isinstance(text, str) or bool(options.get("multiple"))
    expressions = [text] if isinstance(text, str) else list(text)
    tracks = [BoxTrack() for _ in expressions]
    waiting: deque[tuple[int, float, PIL.Image.Image]] = deque()

    def questions() -> Iterator[dict[str, Any]]:
        for number, (time, image) in enumerate(frames):
            waiting.append((number, time, image))
            yield {"image": image, "text": expressions}

    for results in pipe(questions(), **options):
        number, time, image = waiting.popleft()
        results = answers_of(results)
        if smooth:
            results = [track.follow(result) for track, result in zip(tracks, results)]
        place = {"frame": number, "time": time, "image": image}
        yield {**place, "results": results} if several else {**place, **results[0]}


class BoxTrack:
    """One expression's box over time."""

    def __init__(self) -> None:
        self.box: np.ndarray | None = None  # (4,) xyxy pixels
        self.velocity = np.zeros(4)  # pixels per frame
        self.doubted: np.ndarray | None = None
        self.held = 0
        self.surest = 0.0  # the best score so far: what a high score is differs by model and calibration

    def follow(self, result: dict[str, Any]) -> dict[str, Any]:
        """A frame's result with its box steadied; `"raw_box"` keeps the frame's own."""
        box = np.array([result["box"][side] for side in SIDES], dtype=np.float64)
        score = result.get("score")
        self._update(box, 1.0 if score is None else float(score))
        assert self.box is not None
        return {**result, "box": dict(zip(SIDES, self.box.tolist())), "raw_box": result["box"]}

    def _update(self, box: np.ndarray, score: float) -> None:
        self.surest = max(self.surest, score)
        if self.box is None or self.held >= LONGEST_HOLD:
            self._start(box)
            return
        expected = self.box + self.velocity
        weight = score / self.surest if self.surest else 1.0  # 0..1
        if score < LEAST_SCORE:
            self._hold(expected)
        elif iou(box, expected) >= LEAST_OVERLAP:
            error = box - expected
            self.box = expected + POSITION_GAIN * weight * error
            self.velocity = self.velocity + VELOCITY_GAIN * weight * error
            self.held, self.doubted = 0, None
        elif self.doubted is not None and iou(box, self.doubted) >= LEAST_OVERLAP:
            self._start(box)  # twice in the same new place: the object is there, or the scene has changed
        else:
            self._hold(expected)
            self.doubted = box

    def _start(self, box: np.ndarray) -> None:
        self.box, self.velocity, self.held, self.doubted = box, np.zeros(4), 0, None

    def _hold(self, expected: np.ndarray) -> None:
        self.box, self.velocity, self.held = expected, 0.8 * self.velocity, self.held + 1


def iou(first: np.ndarray, second: np.ndarray) -> float:
    """Intersection over union of two boxes (4,) xyxy."""
    sides = np.minimum(first[2:], second[2:]) - np.maximum(first[:2], second[:2])
    shared = float(np.prod(np.maximum(sides, 0)))
    areas: Sequence[float] = [float(np.prod(np.maximum(box[2:] - box[:2], 0))) for box in (first, second)]
    return shared / max(sum(areas) - shared, 1e-9)


def require_av() -> Any:
    """PyAV.

    Raises:
        ImportError: If it is not installed.
    """
    try:
        # Not an import statement: transformers would demand the package of everybody who loads this file.
        return importlib.import_module("av")
    except ModuleNotFoundError:
        raise ImportError("Videos need the package PyAV; install it with: pip install 'hivg_hf[video]'") from None


__all__ = ["BoxTrack", "ground_frames", "read_frames"]
