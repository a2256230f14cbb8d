"""Frames of a video file, and video files of frames, with PyAV."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["VideoError", "VideoReader", "VideoWriter"]

_CODECS = ("libx264", "mpeg4")
"""H.264, which every browser plays; where PyAV was built without it, MPEG-4 part 2."""
_OPTIONS = {"libx264": {"crf": "20", "preset": "veryfast"}, "mpeg4": {"qscale": "3"}}
_FALLBACK_RATE = Fraction(25)
_MISSING_SECONDS = 0.5
_MISSING_SHARE = 0.05
"""A video that ends this long before its header says, or with this share of its frames missing, is
told as cut off; less is usual, since editors hide frames instead of removing them."""


class VideoError(ValueError):
    """A video that cannot be used; the message names the file and what is wrong."""


@dataclass(frozen=True)
class Frame:
    """One frame.

    Attributes:
        image: [H, W, 3] uint8 RGB, upright.
        time: Seconds from the first frame.
    """

    image: npt.NDArray[np.uint8]
    time: float


class VideoReader:
    """Reads the frames of a file one after the other; one frame is in memory at a time.

    Use it in a `with` statement, and iterate once.

    Args:
        path: A video file of any format that FFmpeg reads.

    Attributes:
        rate: Frames per second, on average.
        expected: Number of frames by the file's header, or by its length; 0 = not known.
        trouble: After iteration: why the video ended early, in a sentence; empty = it did not.

    Raises:
        VideoError: If the file cannot be opened or has no video.
        ImportError: If PyAV is not installed.
    """

    def __init__(self, path: Path) -> None:
        av = _av()
        if not path.is_file():
            raise VideoError(f"{path}: no such video")
        self.path = path
        self.trouble = ""
        try:
            self._container = av.open(str(path))
        except (av.FFmpegError, OSError) as error:
            raise VideoError(f"{path}: not a video that can be read ({_reason(error)})") from None
        if not self._container.streams.video:
            self._container.close()
            raise VideoError(f"{path}: holds no video")
        self._stream = self._container.streams.video[0]
        self._stream.thread_type = "AUTO"
        self.rate: Fraction = self._stream.average_rate or _FALLBACK_RATE
        self._seconds = self._length()
        self.expected: int = self._stream.frames or round(self._seconds * self.rate)

    def _length(self) -> float:
        """Seconds by the header; 0 = it does not say."""
        stream, container = self._stream, self._container
        if stream.duration is not None and stream.time_base is not None:
            return float(stream.duration * stream.time_base)
        # A file's length is that of its longest stream.
        if container.duration is not None and len(container.streams) == 1:
            return float(container.duration) / 1e6
        return 0.0

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._container.close()

    def __iter__(self) -> Iterator[Frame]:
        av = _av()
        start: float | None = None
        count, time = 0, 0.0
        try:
            for frame in self._container.decode(self._stream):
                if start is None:
                    start = frame.time or 0.0
                # Some streams have no times, or times that go back.
                given = count / float(self.rate) if frame.time is None else frame.time - start
                time = max(given, time) if count else 0.0
                yield Frame(_upright(frame), time)
                count += 1
        except av.FFmpegError as error:
            self.trouble = f"cannot be read beyond frame {count} ({_reason(error)})"
        if not count:
            raise VideoError(f"{self.path}: no frame can be read")
        short = time + 1 / float(self.rate) < self._seconds - _MISSING_SECONDS
        if not self.trouble and (short or count < self._stream.frames * (1 - _MISSING_SHARE)):
            self.trouble = f"is cut off: it holds {count} of about {self.expected} frames"


class VideoWriter:
    """Writes frames to an MP4 file; `close` makes it playable.

    Args:
        path: The file, replaced if it exists.
        rate: Frames per second.
        image_size: (H, W). Sides must be even in a video: an odd one gets one row or column more,
            a copy of the last.

    Attributes:
        codec: Name of the encoder: "libx264", or "mpeg4" where PyAV has no other.

    Raises:
        VideoError: If no encoder can be used.
        ImportError: If PyAV is not installed.
    """

    def __init__(self, path: Path, rate: Fraction, image_size: tuple[int, int]) -> None:
        av = _av()
        self._image_size = image_size
        self._time_base = Fraction(1, 90_000)  # fine enough for frames at any times
        self._last = -1
        known = [name for name in _CODECS if name in av.codecs_available]
        if not known:
            raise VideoError(f"PyAV has none of the encoders {', '.join(_CODECS)}")
        self.codec = known[0]
        self._container = av.open(str(path), "w", format="mp4", options={"movflags": "faststart"})
        self._stream: Any = self._container.add_stream(
            self.codec, rate=rate, options=_OPTIONS[self.codec]
        )
        self._stream.height, self._stream.width = (side + side % 2 for side in image_size)
        self._stream.pix_fmt = "yuv420p"
        if self.codec == "libx264":  # MPEG-4 part 2 has no such fine times
            self._stream.codec_context.time_base = self._time_base
        else:
            self._time_base = 1 / rate

    def write(self, image: npt.NDArray[np.uint8], time: float) -> None:
        """Add a frame.

        Args:
            image: [H, W, 3] uint8 RGB.
            time: Seconds, after that of the frame before.

        Raises:
            ValueError: If the image has another size than the video.
        """
        av = _av()
        height, width = self._image_size
        if image.shape != (height, width, 3):
            raise ValueError(f"a frame of shape {image.shape} in a video of {height} x {width}")
        if height % 2 or width % 2:
            image = np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        frame = av.VideoFrame.from_ndarray(image, format="rgb24")
        self._last = max(round(time / self._time_base), self._last + 1)
        frame.pts, frame.time_base = self._last, self._time_base
        self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        """Write what is left and the index, without which a player finds nothing."""
        self._container.mux(self._stream.encode(None))
        self._container.close()


def _av() -> ModuleType:
    try:
        import av
    except ImportError as error:
        raise ImportError('video needs PyAV: pip install "unisolo[video]"') from error
    module: ModuleType = av
    return module


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)


def _upright(frame: Any) -> npt.NDArray[np.uint8]:
    """The pixels of a frame as a player shows them: phones store how they were held."""
    image: npt.NDArray[np.uint8] = frame.to_ndarray(format="rgb24")
    turns = round(getattr(frame, "rotation", 0) / 90) % 4
    return np.ascontiguousarray(np.rot90(image, turns))
