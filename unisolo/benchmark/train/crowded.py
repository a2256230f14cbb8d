"""Crowded training images: sixteen generated scenes side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from unisolo.data import CocoInstance
from unisolo.data.raw import RawSample, RawTarget, Transform, to_sample
from unisolo.data.shapes import generate_shapes
from unisolo.structures import ImageMeta, Sample

__all__ = ["SIDE", "CrowdedShapes"]

SIDE = 4
"""Scenes along each side of an image."""


class CrowdedShapes(Dataset[Sample]):
    """Images of `SIDE` x `SIDE` scenes of the embedded data set, with all their objects.

    Image i is the same at every call: it begins at scene i and takes every third one, so that two
    images share scenes, but not places.

    Args:
        root: Folder for the scenes; see `generate_shapes`.
        count: Images, and scenes they are made of.
        image_size: (H, W) of a scene, each at least 32; images are `SIDE` times as large.
        transform: From `RawSample` to `Sample`.

    Attributes:
        categories: Those of the scenes' things.
        cache: As for `CocoInstance`.
    """

    provides: frozenset[str] = frozenset({"things"})

    def __init__(
        self, root: Path, count: int, image_size: tuple[int, int], transform: Transform | None
    ) -> None:
        generate_shapes(root, num_train=count, num_val=0, image_size=image_size)
        self._scenes = CocoInstance.from_root(root, "train2017")
        self._size = image_size
        self.categories = self._scenes.categories
        self.transform = transform
        self.cache: Sequence[RawSample] | None = None

    def __len__(self) -> int:
        return len(self._scenes)

    def __getitem__(self, index: int) -> Sample:
        """Return image `index`, transformed."""
        raw = self.read(index) if self.cache is None else self.cache[index]
        return to_sample(raw) if self.transform is None else self.transform(raw)

    def read(self, index: int) -> RawSample:
        """Read the scenes of image `index` from disk and join them."""
        height, width = self._size
        size = (SIDE * height, SIDE * width)
        image = np.zeros((*size, 3), np.uint8)
        layers = np.zeros((1, *size), np.int16)
        crowd = np.zeros(size, np.int16)
        labels = [np.zeros(0, np.int64)]
        count = 0
        for place in range(SIDE * SIDE):
            scene = self._scenes.read((index + 3 * place) % len(self))
            target = scene.target
            if target is None:
                raise ValueError("the scenes were opened without targets")
            top, left = place // SIDE * height, place % SIDE * width
            rows, columns = slice(top, top + height), slice(left, left + width)
            image[rows, columns] = scene.image
            crowd[rows, columns] = target.crowd_map
            depth = len(target.object_map)
            if depth > len(layers):
                layers = np.pad(layers, ((0, depth - len(layers)), (0, 0), (0, 0)))
            numbered = np.where(target.object_map > 0, target.object_map + count, 0)
            layers[:depth, rows, columns] = numbered
            labels.append(target.labels)
            count += len(target.labels)
        meta = ImageMeta(index, f"crowded {index}", size, size)
        return RawSample(image, meta, RawTarget(np.concatenate(labels), layers, crowd))
