"""Videos out: frames with their boxes drawn, encoded by PyAV into a file that appears when it is whole."""

from collections.abc import Sequence
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from hivg_hf.modeling.video_hivg import open_video
from hivg_hf.utils.atomic import atomic_path
from hivg_hf.utils.imports import require_package
from hivg_hf.visualize import draw_grounding

# Tried in order. libx264 is GPL software and H.264 is patented in some countries; VP9 and AV1 are free of royalties.
CODECS = {
    ".mp4": ("libx264", "libopenh264", "mpeg4"),
    ".mkv": ("libx264", "libopenh264", "mpeg4"),
    ".webm": ("libvpx-vp9", "libsvtav1", "libaom-av1"),
}


def frame_rate(path: Path) -> float:
    """Frames per second of a video file; 25 where it does not say.

    Raises:
        FileNotFoundError: If the file is missing.
        ValueError: If it is not a video.
    """
    with open_video(path) as (_, stream):
        return float(stream.average_rate or 25)


class VideoWriter:
    """Encodes frames of one size; `finish` gives the file its name, `close` without it leaves nothing.

    Args:
        path: `.mp4`, `.mkv` or `.webm`.
        rate: Frames per second.

    Raises:
        ValueError: If the suffix is another, or no encoder for it is in this PyAV.
    """

    def __init__(self, path: Path, rate: float):
        self.av = require_package("av", extra="video")
        if path.suffix.lower() not in CODECS:
            raise ValueError(f"A video cannot be written as '{path.name}': end its name in {', '.join(CODECS)}.")
        available = [codec for codec in CODECS[path.suffix.lower()] if codec in self.av.codecs_available]
        if not available:
            raise ValueError(f"This PyAV has no encoder for {path.suffix}; try another of {', '.join(CODECS)}.")
        self.codec, self.rate = available[0], rate
        self._stack = ExitStack()
        temporary = self._stack.enter_context(atomic_path(path))
        self._container = self._stack.enter_context(self.av.open(str(temporary), "w"))
        self._stream: Any = None
        self._is_whole = False

    def write(self, picture: PIL.Image.Image, results: Sequence[dict[str, Any]] = ()) -> None:
        """Append a frame with the boxes of its results drawn.

        Odd sides lose their last row or column, which most encoders cannot store.
        """
        picture = draw_grounding(picture, results) if results else picture
        width, height = picture.width // 2 * 2, picture.height // 2 * 2
        if self._stream is None:
            self._stream = self._container.add_stream(self.codec, rate=Fraction(self.rate).limit_denominator(1001))
            self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
        size = (self._stream.width, self._stream.height)
        picture = picture.crop((0, 0, width, height))
        pixels = np.asarray(picture if picture.size == size else picture.resize(size))
        frame = self.av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        self._container.mux(self._stream.encode(frame))

    def finish(self) -> None:
        """Write what the encoder holds, and give the file its name.

        Raises:
            ValueError: If there was no frame.
        """
        if self._stream is None:
            raise ValueError("The video has no frames.")
        self._container.mux(self._stream.encode())
        self._is_whole = True

    def close(self) -> None:
        """Close the file; without `finish`, nothing is left of it."""
        if self._is_whole:
            self._stack.close()
            return
        try:
            self._stack.__exit__(InterruptedError, InterruptedError("not finished"), None)
        except InterruptedError:
            pass
