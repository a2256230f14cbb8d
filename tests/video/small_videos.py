"""Small videos of smooth pictures, written in a moment."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from unisolo.video.files import VideoWriter


def images(count: int, height: int = 48, width: int = 64) -> list[np.ndarray]:
    """Smooth pictures, whose brightness tells the frame's number."""
    rows, columns = np.indices((height, width))
    slope = (rows + columns) / (height + width) * 60
    return [
        np.repeat((slope + 10 + 160 * n / max(count, 1))[..., None], 3, 2).astype(np.uint8)
        for n in range(count)
    ]


def write(path: Path, frames: list[np.ndarray], rate: int = 25) -> Path:
    height, width = frames[0].shape[:2]
    writer = VideoWriter(path, Fraction(rate), (height, width))
    for number, image in enumerate(frames):
        writer.write(image, number / rate)
    writer.close()
    return path


def write_raw(path: Path, frames: list[np.ndarray], rate: int = 25) -> None:
    """Any container FFmpeg picks by the ending, every frame a key frame."""
    height, width = frames[0].shape[:2]
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=rate, options={"g": "1"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for image in frames:
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
