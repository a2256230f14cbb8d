"""What the demo keeps of a picture between two clicks, in bounded memory."""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from unisolo.demo.choice import Choice
from unisolo.graphs import Selected
from unisolo.results import Result
from unisolo.structures import ImageMeta, Outputs

__all__ = ["Kept", "PictureGone", "Shown", "Store", "moved"]


class PictureGone(ValueError):
    """A picture that is no longer kept."""


@dataclass
class Shown:
    """One state of the page.

    Attributes:
        version: Counts the states of a picture, from 1.
        choice: The controls.
        hidden: Ids of the categories that are switched off.
        result: What is shown, on the CPU, in the frame of `Kept.small`.
        view: The drawn picture, a JPEG file.
        hover: Map of what lies under the pointer, [h, w] little-endian uint32.
        whole: The result in the frame of the picture, once a file was asked for.
    """

    version: int
    choice: Choice
    hidden: frozenset[int]
    result: Result
    view: bytes
    hover: bytes
    whole: Result | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the pictures and the results."""
        results = [self.result] + ([] if self.whole is None else [self.whole])
        tensors = [part for each in results for part in (each.packed_masks, each.panoptic_seg)]
        sizes = [0 if tensor is None else tensor.nbytes for tensor in tensors]
        return len(self.view) + len(self.hover) + sum(sizes)


@dataclass
class Kept:
    """A picture and the raw outputs of its one forward pass.

    Attributes:
        file_name: What its owner calls it.
        image: [H, W, 3] uint8 RGB, upright.
        small: The same as the page shows it, at most 1280 pixels wide and high.
        meta: Frames of the picture.
        outputs: From `Predictor.forward`, on the CPU.
        hidden: Ids of the categories that are switched off.
        shown: The last state of the page; None before the first.
        used: When it was last asked for, by the monotonic clock.
    """

    file_name: str
    image: npt.NDArray[np.uint8]
    small: npt.NDArray[np.uint8]
    meta: ImageMeta
    outputs: Outputs | Selected
    hidden: frozenset[int] = frozenset()
    shown: Shown | None = None
    used: float = field(default_factory=time.monotonic)

    @property
    def name(self) -> str:
        """The file's name without its ending: `image_id` in what is downloaded."""
        return Path(self.file_name).stem

    @property
    def nbytes(self) -> int:
        """Bytes of the picture, the outputs and the last state."""
        total = self.image.nbytes + self.small.nbytes + sum(_sizes(self.outputs))
        return total + (0 if self.shown is None else self.shown.nbytes)


class Store:
    """Pictures of all sessions by unguessable keys: the least recently used go first.

    Args:
        max_bytes: Bytes kept in all. The picture added last stays even if it is larger.
        max_age: Seconds after which a picture that nobody touched goes.
    """

    def __init__(self, max_bytes: int = 1 << 30, max_age: float = 3600.0) -> None:
        self._max_bytes = max_bytes
        self._max_age = max_age
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def put(self, kept: Kept) -> str:
        """Keep a picture; return its key."""
        key = secrets.token_urlsafe(16)
        with self._lock:
            self._kept[key] = kept
            self._make_room()
        return key

    def get(self, key: str) -> Kept:
        """Return a picture, which counts as used now.

        Raises:
            PictureGone: If it had to make room, expired or never was.
        """
        with self._lock:
            self._make_room()
            kept = self._kept.get(key)
            if kept is None:
                raise PictureGone(
                    "This picture is no longer kept: it was not used for a while, or others needed "
                    "the room. Add it again."
                )
            kept.used = time.monotonic()
            self._kept.move_to_end(key)
            return kept

    def drop(self, key: str | None) -> None:
        """Forget a picture, if it is there."""
        with self._lock:
            self._kept.pop(key or "", None)

    def _make_room(self) -> None:
        oldest = time.monotonic() - self._max_age
        for key in [key for key, kept in self._kept.items() if kept.used < oldest]:
            del self._kept[key]
        total = sum(kept.nbytes for kept in self._kept.values())
        while total > self._max_bytes and len(self._kept) > 1:
            _, gone = self._kept.popitem(last=False)
            total -= gone.nbytes


def moved(outputs: Outputs | Selected, device: torch.device) -> Outputs | Selected:
    """Return the outputs of a model on a device; those of a graph are on the CPU and stay there.

    Values are not changed, so the results are those of `Predictor.predict`.
    """
    if isinstance(outputs, Selected):
        return outputs
    extras = {name: tensor.to(device) for name, tensor in outputs.extras.items()}
    return Outputs(
        outputs.category_logits.to(device),
        outputs.kernels.to(device),
        outputs.mask_features.to(device),
        extras,
    )


def _sizes(value: Any) -> list[int]:
    """Bytes of every tensor in nested tuples and dicts."""
    if isinstance(value, Tensor):
        return [value.nbytes]
    parts = value.values() if isinstance(value, dict) else value
    return [size for part in parts for size in _sizes(part)]
