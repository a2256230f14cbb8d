"""From a raw image to the model's input: one transform to evaluate and predict, one to train.

Both resize through the same function, so a model sees at test time the kind of pixels it was
trained on. Weights trained elsewhere saw other pixels: mmcv resizes with OpenCV, without antialias.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from unisolo.data.raw import Int16Map, RawSample, RawTarget, to_sample
from unisolo.structures import Sample

__all__ = ["EvalTransform", "Resize", "TrainTransform", "resized_size"]

Resize = Literal["torch", "opencv"]
"""How images are resized: torch's bilinear with antialias, or OpenCV's bilinear on uint8."""


def resized_size(size: tuple[int, int], short: float, long: float) -> tuple[int, int]:
    """Size after a resize that keeps the aspect ratio (SOLOv2: 800, 1333).

    Args:
        size: (H, W) in pixels.
        short: The short side becomes this ...
        long: ... unless the long side would exceed this; then the long side becomes this.

    Returns:
        (H, W), each side rounded half up and at least 1.
    """
    height, width = size
    scale = min(long / max(height, width), short / min(height, width))
    return max(int(height * scale + 0.5), 1), max(int(width * scale + 0.5), 1)


class EvalTransform:
    """Resize with the aspect ratio kept; the transform of evaluation and of `Predictor`.

    Bilinear for the image, nearest for the maps.

    Args:
        image_size: Short side after resizing, in pixels.
        max_size: The long side never exceeds this.
        resize: "torch" (antialiased) or "opencv" (as mmcv has it), for the image.

    Raises:
        ValueError: If a size is less than 1, or `resize` is unknown.
    """

    def __init__(
        self, image_size: int = 800, max_size: int = 1333, *, resize: Resize = "torch"
    ) -> None:
        _check_sizes([image_size, max_size])
        _check_resize(resize)
        self.image_size = image_size
        self.max_size = max_size
        self.resize = resize

    def __call__(self, raw: RawSample) -> Sample:
        """Return the sample; `raw.target` may be None (inference)."""
        size = resized_size(
            (raw.image.shape[0], raw.image.shape[1]), self.image_size, self.max_size
        )
        image = _resize_image(raw.image, size, self.resize)
        target = None if raw.target is None else _resize_target(raw.target, size)
        return to_sample(replace(raw, target=target), image=image)


class TrainTransform:
    """Random zoom, crop, flips and colours for training.

    The steps, in this order: resize to a drawn scale, cut a random window, flip, change colours.
    The maps follow with nearest interpolation, so numbers in them never mix. Boxes are those of
    what is left of each object's mask (see `to_sample`).

    All randomness comes from one number drawn from torch's CPU generator per image: albumentations
    has its own generators, untouched by `torch.manual_seed`, and they are set from that number.

    Args:
        image_size: Short side after resizing, in pixels, where `sizes` is empty.
        max_size: The long side never exceeds this (before `scale_jitter`).
        sizes: Short sides to draw from.
        scale_jitter: Range of an extra zoom factor, drawn uniformly; it moves both limits.
        crop: (H, W) of a window cut at a random place; the whole side where the image is smaller.
        flip: Probability of a horizontal flip.
        vertical_flip: Probability of a vertical flip.
        color: Strength of the colour changes, 0 (none) to 1.
        min_object_area: Objects with fewer visible pixels afterwards are no longer targets.
        resize: As for `EvalTransform`.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        image_size: int = 800,
        max_size: int = 1333,
        *,
        sizes: Sequence[int] = (),
        scale_jitter: tuple[float, float] = (1.0, 1.0),
        crop: tuple[int, int] | None = None,
        flip: float = 0.5,
        vertical_flip: float = 0.0,
        color: float = 0.0,
        min_object_area: int = 1,
        resize: Resize = "torch",
    ) -> None:
        _check_sizes([image_size, max_size, *sizes, *(crop or ())])
        _check_resize(resize)
        low, high = scale_jitter
        if not 0 < low <= high:
            raise ValueError(f"scale_jitter must be 0 < low <= high, got {scale_jitter}")
        for name, value in (("flip", flip), ("vertical_flip", vertical_flip), ("color", color)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must lie between 0 and 1, got {value}")
        self.sizes = tuple(sizes) or (image_size,)
        self.max_size = max_size
        self.scale_jitter = (low, high)
        self.crop = crop
        self.min_object_area = min_object_area
        self.resize = resize
        self._augment = _build_augment(flip, vertical_flip, color)

    def __call__(self, raw: RawSample) -> Sample:
        """Return a randomly changed sample; two calls after the same torch seed agree."""
        return to_sample(self.change(raw), min_object_area=self.min_object_area)

    def change(self, raw: RawSample) -> RawSample:
        """Return the changed image and maps, before small objects are dropped and numbered anew."""
        seed = int(torch.randint(2**31 - 1, ()))
        rng = np.random.default_rng(seed)
        zoom = float(rng.uniform(*self.scale_jitter))
        short = int(rng.choice(self.sizes))
        height, width = raw.image.shape[:2]
        size = resized_size((height, width), short * zoom, self.max_size * zoom)
        resized = _resize_image(raw.image, size, self.resize)
        image = np.ascontiguousarray(resized.permute(1, 2, 0).numpy())
        target = None if raw.target is None else _resize_target(raw.target, size)
        raw = replace(raw, image=image, target=target)
        if self.crop is not None:
            raw = _crop(raw, self.crop, rng)
        if self._augment is not None:
            self._augment.set_random_seed(seed)
            raw = _apply(self._augment, raw)
        return raw


def _check_sizes(sizes: Sequence[int]) -> None:
    if min(sizes) < 1:
        raise ValueError(f"sizes in pixels must be at least 1, got {list(sizes)}")


def _check_resize(resize: str) -> None:
    if resize not in get_args(Resize):
        raise ValueError(f"resize must be one of {', '.join(get_args(Resize))}, got {resize!r}")


def _build_augment(flip: float, vertical_flip: float, color: float) -> Any:
    """The albumentations pipeline, or None where it would do nothing."""
    # albumentations asks a server for its newest version when imported, unless told not to.
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    import albumentations as A

    steps: list[Any] = []
    if flip > 0:
        steps.append(A.HorizontalFlip(p=flip))
    if vertical_flip > 0:
        steps.append(A.VerticalFlip(p=vertical_flip))
    if color > 0:
        spread = 0.4 * color
        steps.append(
            A.ColorJitter(
                brightness=spread, contrast=spread, saturation=spread, hue=0.1 * color, p=1.0
            )
        )
    return A.Compose(steps) if steps else None


def _apply(augment: Any, raw: RawSample) -> RawSample:
    """Run albumentations; each layer travels as a mask of its own.

    OpenCV limits the channels of an array, not the length of a list, and flips keep int16 as it is.
    """
    if raw.target is None:
        return replace(raw, image=augment(image=raw.image)["image"])
    target = raw.target
    masks = [*target.object_map, target.crowd_map]
    if target.stuff_map is not None:
        masks.append(target.stuff_map)
    done = augment(image=raw.image, masks=masks)
    masks = done["masks"]
    depth = len(target.object_map)
    target = replace(
        target,
        object_map=np.stack(masks[:depth]),
        crowd_map=masks[depth],
        stuff_map=None if target.stuff_map is None else masks[depth + 1],
    )
    return replace(raw, image=done["image"], target=target)


def _crop(raw: RawSample, window: tuple[int, int], rng: np.random.Generator) -> RawSample:
    """Cut a window; a slice, because albumentations' crop refuses images smaller than it."""
    size = raw.image.shape[:2]
    height, width = (min(side, limit) for side, limit in zip(size, window, strict=True))
    top = int(rng.integers(size[0] - height + 1))
    left = int(rng.integers(size[1] - width + 1))
    rows, columns = slice(top, top + height), slice(left, left + width)
    image = np.ascontiguousarray(raw.image[rows, columns])
    target = None
    if raw.target is not None:
        target = _each_map(raw.target, lambda values: values[..., rows, columns])
    return replace(raw, image=image, target=target)


def _each_map(target: RawTarget, change: Callable[[Int16Map], Int16Map]) -> RawTarget:
    """Change the last two axes of every map of a target."""
    return replace(
        target,
        object_map=np.ascontiguousarray(change(target.object_map)),
        crowd_map=np.ascontiguousarray(change(target.crowd_map)),
        stuff_map=None
        if target.stuff_map is None
        else np.ascontiguousarray(change(target.stuff_map)),
    )


def _resize_target(target: RawTarget, size: tuple[int, int]) -> RawTarget:
    """Nearest neighbour, pixel centres aligned as in the bilinear resize of the image."""
    rows, columns = (
        (2 * np.arange(new) + 1) * old // (2 * new)
        for old, new in zip(target.crowd_map.shape, size, strict=True)
    )
    return _each_map(target, lambda values: values.take(rows, axis=-2).take(columns, axis=-1))


def _resize_image(image: npt.NDArray[np.uint8], size: tuple[int, int], resize: Resize) -> Tensor:
    """[H, W, 3] uint8 -> [3, h, w] uint8."""
    if image.shape[:2] == size:
        return torch.from_numpy(image).permute(2, 0, 1)
    if resize == "opencv":
        import cv2

        pixels = cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
        return torch.from_numpy(pixels).permute(2, 0, 1)
    from torchvision.transforms.v2 import InterpolationMode, functional

    tensor = torch.from_numpy(image).permute(2, 0, 1)
    resized: Tensor = functional.resize(
        tensor, list(size), interpolation=InterpolationMode.BILINEAR, antialias=True
    )
    return resized
