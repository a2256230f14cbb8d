"""Predict the frames of a video: the work of `unisolo predict` on a video file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from unisolo.config import SHOWN_SCORE
from unisolo.files import write_json
from unisolo.predictor import Predictor
from unisolo.results import Result
from unisolo.thresholds import Thresholds
from unisolo.video.files import Frame, VideoReader, VideoWriter
from unisolo.video.track import Tracker
from unisolo.visualize import draw_result
from unisolo.visualize.fonts import category_name

__all__ = ["VideoReport", "is_video", "predict_video"]

_ENDINGS = frozenset(
    {".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts"}
    | {".ogv", ".ts", ".webm", ".wmv"}
)


@dataclass(frozen=True)
class VideoReport:
    """What became of a video.

    Attributes:
        video: The annotated video.
        lines: The file with a line of JSON a frame.
        frames: Number of frames done.
        instances: Number of instances in them.
        tracks: Number of different track ids.
        codec: Encoder of the annotated video.
        trouble: Why the video was not read to its end, in a sentence that names the file; empty =
            it was.
    """

    video: Path
    lines: Path
    frames: int
    instances: int
    tracks: int
    codec: str
    trouble: str = ""


def is_video(path: Path) -> bool:
    """Whether a path's ending is that of a video (a GIF counts as an image)."""
    return path.suffix.lower() in _ENDINGS


def predict_video(
    predictor: Predictor,
    source: Path,
    out: Path,
    *,
    score_threshold: float = SHOWN_SCORE,
    candidate_threshold: float | None = None,
    limit: int | None = None,
    scale: int = 1,
    tracker: Tracker | None = None,
    save_panoptic: bool = False,
    on_frame: Callable[[int, int], None] | None = None,
    on_result: Callable[[int, Result], None] | None = None,
) -> VideoReport:
    """Predict each frame of a video and follow the objects.

    Writes to `out`, with the source's name:

    - `<name>.mp4`: the video with what was found drawn in, at the source's times, without sound;
      an object keeps the shade of its colour while it keeps its track;
    - `<name>.jsonl`: a line of JSON a frame: `frame` (from 0), `time` (seconds), and `instances`,
      COCO results with a `track_id`;
    - `<name>.json`: the categories, the size, the rate, and how many frames there are;
    - with `save_panoptic` also `<name>_panoptic/000000.png`, ..., and `segments_info` in the lines.

    One frame is in memory at a time. The files are written under hidden names and appear at the
    end; if the source is damaged, or on Ctrl-C, they hold the frames up to there.

    Args:
        predictor: Answers the task.
        source: A video file.
        out: Made if absent; files of the same names are replaced.
        score_threshold: Instances with a lower score are left out.
        candidate_threshold: As for `Predictor.predict`; None = the checkpoint's.
        limit: Only the first frames.
        scale: Enlarge the annotated video by this whole factor.
        tracker: Gives the ids; it is reset. None = `Tracker()`.
        save_panoptic: Write each frame's panoptic map (COCO's PNG); needs the panoptic task.
        on_frame: Called with (frames done, frames in all or 0 if not known) after each.
        on_result: Called with (frame, result) of each.

    Returns:
        The report.

    Raises:
        VideoError: If nothing can be read from the video.
        ValueError: If an argument is out of range, or the source would be overwritten.
        OSError: If a file cannot be written.
        ImportError: If PyAV is not installed.
        KeyboardInterrupt: After Ctrl-C, once the files are in place.
    """
    thresholds: Thresholds = {}
    if candidate_threshold is not None:
        thresholds["candidate_threshold"] = candidate_threshold
    tracker = tracker or Tracker()
    tracker.reset()
    with VideoReader(source) as reader:
        output = _Output(source, out, reader, predictor, scale, save_panoptic)
        total = min(reader.expected or limit or 0, limit or reader.expected)
        try:
            for number, frame in enumerate(reader):
                result = predictor.predict(
                    frame.image, score_threshold=score_threshold, **thresholds
                )
                output.add(number, frame, result, tracker.update(result).tolist())
                if on_result is not None:
                    on_result(number, result)
                if on_frame is not None:
                    on_frame(number + 1, total)
                if number + 1 == limit:
                    break
        finally:
            report = output.finish(f"{source}: {reader.trouble}" if reader.trouble else "")
    return report


class _Output:
    """The files of one video, under hidden names until `finish`."""

    def __init__(
        self,
        source: Path,
        out: Path,
        reader: VideoReader,
        predictor: Predictor,
        scale: int,
        save_panoptic: bool,
    ) -> None:
        self.source, self.out, self.rate = source, out, reader.rate
        self.categories = predictor.categories
        self.scale = scale
        self.video, self.lines = out / f"{source.stem}.mp4", out / f"{source.stem}.jsonl"
        if self.video.resolve() == source.resolve():
            raise ValueError(f"{source}: the annotated video would replace it; give another --out")
        out.mkdir(parents=True, exist_ok=True)
        self.panoptic = out / f"{source.stem}_panoptic" if save_panoptic else None
        self.frames = self.instances = 0
        self.tracks: set[int] = set()
        self.size: tuple[int, int] | None = None
        self._hidden = {
            path: path.with_name(f".{path.name}.part") for path in (self.video, self.lines)
        }
        self._writer: VideoWriter | None = None
        self._text: TextIO | None = None

    def add(self, number: int, frame: Frame, result: Result, ids: list[int]) -> None:
        """Write one frame everywhere."""
        if self._writer is None or self._text is None:
            height, width = self.size = result.image_size
            size = (height * self.scale, width * self.scale)
            self._writer = VideoWriter(self._hidden[self.video], self.rate, size)
            self._text = self._hidden[self.lines].open("w", encoding="utf-8")
        entries = result.to_coco(number)
        for entry, track in zip(entries, ids, strict=True):
            entry["track_id"] = track
        line: dict[str, Any] = {"frame": number, "time": round(frame.time, 6), "instances": entries}
        if self.panoptic is not None:
            line["segments_info"] = result.save_panoptic(
                self.panoptic, image_id=number, file_name=f"{number:06d}.png"
            )["segments_info"]
        picture = draw_result(
            frame.image,
            result,
            panoptic=False if result.panoptic_seg is None else "stuff",
            texts=_texts(result, ids),
            shades=ids,
            scale=self.scale,
        )
        self._writer.write(np.asarray(picture), frame.time)
        self._text.write(json.dumps(line, allow_nan=False) + "\n")
        self.frames += 1
        self.instances += len(entries)
        self.tracks |= set(ids) - {0}

    def finish(self, trouble: str) -> VideoReport:
        """Put the files in place; nothing was read = no file."""
        codec = ""
        if self._writer is not None and self._text is not None:
            codec = self._writer.codec
            try:
                self._text.close()
                self._writer.close()
                for place, hidden in self._hidden.items():
                    os.replace(hidden, place)
            finally:  # on a full disk nothing is left behind
                for hidden in self._hidden.values():
                    hidden.unlink(missing_ok=True)
            write_json(
                self.out / f"{self.source.stem}.json",
                {
                    "source": str(self.source),
                    "frames": self.frames,
                    "frames_per_second": float(self.rate),
                    "height": self.size[0] if self.size else 0,
                    "width": self.size[1] if self.size else 0,
                    "categories": self.categories.to_coco(),
                },
            )
        return VideoReport(
            self.video,
            self.lines,
            self.frames,
            self.instances,
            len(self.tracks),
            codec,
            trouble,
        )


def _texts(result: Result, ids: list[int]) -> list[str]:
    names = [category_name(result.categories[label]) for label in result.labels.tolist()]
    return [f"{name} #{track}" if track else name for name, track in zip(names, ids, strict=True)]
