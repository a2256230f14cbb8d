"""From a picture to the page: one forward, then any number of answers."""

from __future__ import annotations

import io
import json
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from unisolo.checkpoint import CheckpointError, check_task
from unisolo.data.images import ImageError, read_image
from unisolo.demo.hover import hover_map
from unisolo.demo.kept import Kept, Shown, Store, moved
from unisolo.demo.listing import categories_listed, segments_listed, summary
from unisolo.encoding import encode_png
from unisolo.graphs import Graph
from unisolo.predictor import Predictor
from unisolo.results import Result
from unisolo.tasks import TASKS
from unisolo.thresholds import Thresholds
from unisolo.visualize import draw_result

__all__ = ["Answers", "Choice", "download", "without"]

MAX_PIXELS = 32_000_000
"""Largest picture taken: results and their pictures have the size of the original."""
_VIEW_SIDE = 1280
"""Longest side of the picture on the page; smaller ones are enlarged by whole factors up to it, for
fine lines and letters."""


@dataclass(frozen=True)
class Choice:
    """The controls of the page.

    Attributes:
        task: "panoptic", "instance" or "detection".
        min_score: Lowest score shown, of instances and in the panoptic map alike.
        mask_threshold: See `Thresholds`; so are the others.
        candidate_threshold: Likewise.
        panoptic_overlap_threshold: Likewise; read for the panoptic task alone.
        stuff_area_threshold: Likewise.
    """

    task: str
    min_score: float
    mask_threshold: float
    candidate_threshold: float
    panoptic_overlap_threshold: float
    stuff_area_threshold: int

    def thresholds(self) -> Thresholds:
        """The keywords of `Predictor.predict`, all but `score_threshold`."""
        values: Thresholds = {
            "mask_threshold": float(self.mask_threshold),
            "candidate_threshold": float(self.candidate_threshold),
        }
        if self.task == "panoptic":
            values["panoptic_score_threshold"] = float(self.min_score)
            values["panoptic_overlap_threshold"] = float(self.panoptic_overlap_threshold)
            values["stuff_area_threshold"] = int(self.stuff_area_threshold)
        return values


class Answers:
    """Answers pictures with one model.

    Args:
        predictor: The model.
        store: Where pictures are kept.

    Attributes:
        predictor: See above.
        store: See above.
        tasks: The tasks that the model can answer, its own first.
        forwards: How often the model ran.
    """

    def __init__(self, predictor: Predictor, store: Store) -> None:
        self.predictor = predictor
        self.store = store
        self.tasks = _tasks(predictor)
        self.forwards = 0
        self._lock = threading.Lock()

    def start(self) -> Choice:
        """The controls as they are when the page opens: the checkpoint's own settings."""
        inference, task = self.predictor.config.inference, self.predictor.task
        return Choice(
            task=task,
            min_score=inference.panoptic_score_threshold if task == "panoptic" else 0.3,
            mask_threshold=inference.mask_threshold,
            candidate_threshold=inference.score_threshold,
            panoptic_overlap_threshold=inference.panoptic_overlap_threshold,
            stuff_area_threshold=inference.stuff_area_threshold,
        )

    @property
    def selection_is_fixed(self) -> bool:
        """Whether the thresholds up to Matrix NMS are constants of an exported graph."""
        return isinstance(self.predictor.model, Graph)

    def take(self, path: Path, name: str) -> str:
        """Read a picture, run the model once and keep what it said.

        Args:
            path: The picture.
            name: What its owner calls it, for messages and downloads.

        Returns:
            The key of the picture in the store.

        Raises:
            ValueError: If it is no picture that can be used; the message names it by `name`.
        """
        _check_pixels(path, name)
        try:
            image = read_image(path)
        except ImageError as error:
            raise ImageError(str(error).replace(str(path), name), error.code) from None
        with self._lock:  # one at a time on the device
            sample = self.predictor.preprocess(image)
            outputs = moved(self.predictor.forward([sample]), torch.device("cpu"))
            self.forwards += 1
        return self.store.put(Kept(name, image, sample.meta, outputs))

    def show(self, key: str, choice: Choice) -> dict[str, Any]:
        """Answer a task for a kept picture, without running the model again.

        Args:
            key: From `take`.
            choice: The controls.

        Returns:
            What the page's viewer shows; the pictures it names are in `Kept.shown`.

        Raises:
            PictureGone: If the picture is no longer kept.
            ValueError: If a threshold is out of range.
        """
        kept = self.store.get(key)
        with self._lock:
            (found,) = self.predictor.postprocess(
                moved(kept.outputs, self.predictor.device),
                [kept.meta],
                task=choice.task,
                score_threshold=float(choice.min_score),
                **choice.thresholds(),
            )
        everything = found.cpu()
        result = without(everything, kept.hidden)
        hover = hover_map(result)
        version = 1 if kept.shown is None else kept.shown.version + 1
        kept.shown = Shown(version, result, _view(kept, result), hover.tobytes())
        return {
            "base": f"shown/{key}/{version}/",
            "name": kept.name,
            "task": choice.task,
            "size": list(result.image_size),
            "hover": {"size": list(hover.size), "sets": hover.sets},
            "segments": segments_listed(result),
            "categories": categories_listed(everything, kept.hidden),
            "summary": summary(result),
            "note": _note(everything),
            "files": _files(result),
            "python": self._python(kept, choice),
        }

    def _python(self, kept: Kept, choice: Choice) -> str:
        """The call that gives the same result; what the checkpoint says anyway is left out."""
        own = self.predictor.config.inference.model_dump()
        own["candidate_threshold"] = own["score_threshold"]
        given = {name: value for name, value in choice.thresholds().items() if value != own[name]}
        words = [f"score_threshold={choice.min_score:g}"]
        words += [f"{name}={value:g}" for name, value in given.items()]
        return (
            f'Predictor(CHECKPOINT, task="{choice.task}").predict('
            f"{json.dumps(kept.file_name)}, {', '.join(words)})"
        )


def without(result: Result, hidden: frozenset[int]) -> Result:
    """Leave categories out of the instances and of the panoptic map, where they become void.

    Args:
        result: On the CPU.
        hidden: Ids of the categories.
    """
    if not hidden:
        return result
    things = [category.id for category in result.categories.things if category.id not in hidden]
    left = result.filter(categories=things)
    if left.panoptic_seg is None or left.segments_info is None:
        return left
    gone = [segment.id for segment in left.segments_info if segment.category_id in hidden]
    void = torch.isin(left.panoptic_seg, left.panoptic_seg.new_tensor(gone))
    return replace(
        left,
        panoptic_seg=left.panoptic_seg.masked_fill(void, 0),
        segments_info=tuple(entry for entry in left.segments_info if entry.id not in gone),
    )


def download(kept: Kept, file_name: str) -> tuple[bytes, str] | None:
    """Make one of the files of what is shown.

    Args:
        kept: The picture.
        file_name: "view.jpg" and "hover.bin" for the page; "overlay.png", "coco.json",
            "panoptic.png" and "panoptic.json" for people.

    Returns:
        (the file, its media type); None if there is no such file.
    """
    if kept.shown is None:
        return None
    result = kept.shown.result
    if file_name == "view.jpg":
        return kept.shown.view, "image/jpeg"
    if file_name == "hover.bin":
        return kept.shown.hover, "application/octet-stream"
    if file_name == "overlay.png":
        return _encoded(result.plot(kept.image), "PNG"), "image/png"
    if file_name == "coco.json":
        return json.dumps(result.to_coco(kept.name)).encode(), "application/json"
    if result.panoptic_seg is not None and file_name.startswith("panoptic."):
        rgb, annotation = result.to_panoptic(kept.name, file_name=f"{kept.name}_panoptic.png")
        if file_name == "panoptic.png":
            return encode_png(rgb), "image/png"
        if file_name == "panoptic.json":
            return json.dumps(annotation).encode(), "application/json"
    return None


def _tasks(predictor: Predictor) -> tuple[str, ...]:
    able = []
    for name in TASKS:
        try:
            check_task(predictor.config, name)
        except CheckpointError:
            continue
        able.append(name)
    return tuple(sorted(able, key=lambda name: name != predictor.task))


def _check_pixels(path: Path, name: str) -> None:
    """Refuse a picture by its header, before its pixels are in memory."""
    try:
        with Image.open(path) as image:
            width, height = image.size
    except Image.DecompressionBombError:
        raise ValueError(_too_large(name)) from None
    # What is wrong with the file is said by `read_image`, with the fix.
    except Exception:
        return
    if width * height > MAX_PIXELS:
        raise ValueError(_too_large(name))


def _too_large(name: str) -> str:
    return (
        f"{name}: more than {MAX_PIXELS // 10**6} megapixels, which the demo does not take; make "
        "it smaller, or use `unisolo predict`"
    )


def _view(kept: Kept, result: Result) -> bytes:
    longest = max(result.image_size)
    picture = draw_result(kept.image, result, scale=max(1, min(8, _VIEW_SIDE // longest)))
    if longest > _VIEW_SIDE:
        picture.thumbnail((_VIEW_SIDE, _VIEW_SIDE), Image.Resampling.LANCZOS)
    return _encoded(picture, "JPEG")


def _encoded(picture: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    options: dict[str, Any] = {"quality": 90, "subsampling": 0} if kind == "JPEG" else {}
    picture.save(buffer, format=kind, **options)
    return buffer.getvalue()


def _note(result: Result) -> str:
    """Why there is nothing to see, where there is nothing."""
    if len(result) or result.segments_info or result.explanation is None:
        return ""
    return result.explanation.verdict()


def _files(result: Result) -> list[dict[str, str]]:
    """What can be downloaded: a word for people, the file, and how its name ends."""
    files = [
        {"label": "Picture", "file": "overlay.png", "ending": "_overlay.png"},
        {"label": "COCO JSON", "file": "coco.json", "ending": "_coco.json"},
    ]
    if result.panoptic_seg is not None:
        files += [
            {"label": "Panoptic PNG", "file": "panoptic.png", "ending": "_panoptic.png"},
            {"label": "Panoptic JSON", "file": "panoptic.json", "ending": "_panoptic.json"},
        ]
    return files
