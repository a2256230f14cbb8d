"""From a picture to the page: one forward, then any number of answers."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from unisolo.config import SHOWN_SCORE
from unisolo.data.images import ImageError, read_image
from unisolo.demo.choice import Choice
from unisolo.demo.downloads import file_of, files_of
from unisolo.demo.hover import hover_map
from unisolo.demo.kept import Kept, Shown, Store, moved
from unisolo.demo.listing import categories_listed, segments_listed, summary
from unisolo.encoding import encode_jpeg
from unisolo.graphs import Graph
from unisolo.predictor import Predictor
from unisolo.results import Result
from unisolo.tasks import answered_tasks
from unisolo.visualize import draw_result

__all__ = ["Answers", "without"]

MAX_PIXELS = 32_000_000
"""Largest picture taken: results and their pictures have the size of the original."""
_VIEW_SIDE = 1280
"""Longest side of the picture on the page; smaller ones are enlarged by whole factors up to it, for
fine lines and letters."""


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
        answered = answered_tasks(predictor.config.task)
        self.tasks = tuple(sorted(answered, key=lambda name: name != predictor.task))
        self.forwards = 0
        self._lock = threading.Lock()

    def start(self) -> Choice:
        """The controls as they are when the page opens: the checkpoint's own settings."""
        inference, task = self.predictor.config.inference, self.predictor.task
        return Choice(
            task=task,
            min_score=inference.panoptic_score_threshold if task == "panoptic" else SHOWN_SCORE,
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
        return self.store.put(Kept(name, image, _small(image), sample.meta, outputs))

    def show(self, key: str, choice: Choice) -> dict[str, Any]:
        """Answer a task for a kept picture, without running the model again.

        The page shows large pictures smaller, and so are the results it is made of; files are of
        the size of the picture, see `whole`.

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
        everything = self._answer(kept, choice, kept.small.shape[:2])
        result = without(everything, kept.hidden)
        hover = hover_map(result)
        kept.shown = Shown(
            version=1 if kept.shown is None else kept.shown.version + 1,
            choice=choice,
            hidden=kept.hidden,
            result=result,
            view=_view(kept.small, result),
            hover=hover.tobytes(),
        )
        return {
            "base": f"shown/{key}/{kept.shown.version}/",
            "name": kept.name,
            "task": choice.task,
            "size": list(kept.meta.orig_size),
            "hover": {"size": list(hover.size), "sets": hover.sets},
            "segments": segments_listed(result),
            "categories": categories_listed(everything, kept.hidden),
            "summary": summary(result),
            "note": _note(everything),
            "files": files_of(result),
            "python": self._python(kept, choice),
        }

    def file(self, kept: Kept, shown: Shown, name: str) -> tuple[bytes, str] | None:
        """Make a file of one state of the page.

        Args:
            kept: The picture.
            shown: The state.
            name: "view.jpg" or "hover.bin", which the page is made of, or see `files_of`.

        Returns:
            (the file, its media type); None if there is no such file.
        """
        if name == "view.jpg":
            return shown.view, "image/jpeg"
        if name == "hover.bin":
            return shown.hover, "application/octet-stream"
        if name not in {entry["file"] for entry in files_of(shown.result)}:
            return None
        return file_of(self.whole(kept, shown), kept.image, kept.name, name)

    def whole(self, kept: Kept, shown: Shown) -> Result:
        """Return a state's result at the size of the picture: that of `Predictor.predict`."""
        if shown.result.image_size == kept.meta.orig_size:
            return shown.result
        if shown.whole is None:
            found = self._answer(kept, shown.choice, kept.meta.orig_size)
            shown.whole = without(found, shown.hidden)
        return shown.whole

    def _answer(self, kept: Kept, choice: Choice, size: tuple[int, ...]) -> Result:
        """Answer in a frame of size (H, W), on the CPU."""
        thresholds = choice.thresholds()
        full = kept.meta.orig_size
        meta = replace(kept.meta, orig_size=(size[0], size[1]))
        if meta.orig_size != full and "stuff_area_threshold" in thresholds:
            share = size[0] * size[1] / (full[0] * full[1])
            thresholds["stuff_area_threshold"] = round(thresholds["stuff_area_threshold"] * share)
        with self._lock:
            (found,) = self.predictor.postprocess(
                moved(kept.outputs, self.predictor.device),
                [meta],
                task=choice.task,
                score_threshold=float(choice.min_score),
                **thresholds,
            )
        return found.cpu()

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


def _small(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The picture as the page shows it; itself if it is no larger."""
    if max(image.shape) <= _VIEW_SIDE:
        return image
    picture = Image.fromarray(image)
    picture.thumbnail((_VIEW_SIDE, _VIEW_SIDE), Image.Resampling.LANCZOS)
    return np.asarray(picture)


def _view(image: npt.NDArray[np.uint8], result: Result) -> bytes:
    scale = max(1, min(8, _VIEW_SIDE // max(result.image_size)))
    return encode_jpeg(draw_result(image, result, scale=scale))


def _note(result: Result) -> str:
    """Why there is nothing to see, where there is nothing."""
    if len(result) or result.segments_info or result.explanation is None:
        return ""
    return result.explanation.verdict()
