"""Image files: read once, measured, and compared between splits."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from unisolo.data.images import ImageError, read_image

__all__ = ["Picture", "look_at", "same_files", "similar_pictures"]

Bytes: TypeAlias = npt.NDArray[np.uint8]

# The perceptual hash is a difference hash (dHash): 64 comparisons of neighbours in a tiny grey
# picture. It is eight lines of Pillow and numpy. A library (imagehash) would add itself, SciPy and
# PyWavelets to every installation, for other hashes that this check has no use for: whichever hash
# finds the candidates, they must be verified, since pictures with little texture collide in all.
_HASH_SIDE = 8
_MAX_BITS = 10
"""Differing bits of 64 up to which two pictures are candidates."""
_THUMBNAIL = 16
_ALIKE = 0.99
"""Correlation of two thumbnails from which on pictures are called nearly the same. Copies saved
anew, smaller or darker stay above it; two frames of one empty road, the worst seen, reach 0.985."""
_CHUNK = 512


@dataclass(frozen=True)
class Picture:
    """What is kept of an image file.

    Attributes:
        size: (H, W) of the upright image.
        digest: Of the file's bytes.
        bits: [64] bool, the difference hash.
        thumbnail: [16, 16, 3] uint8.
    """

    size: tuple[int, int]
    digest: bytes
    bits: npt.NDArray[np.bool_]
    thumbnail: Bytes


def look_at(
    paths: Sequence[Path], on_image: Callable[[], Any] = lambda: None
) -> Iterator[Picture | ImageError]:
    """Read image files, in order, on several threads (decoders let go of the interpreter).

    Args:
        paths: The files.
        on_image: Called after each.

    Yields:
        What was found in each file, or what is wrong with it.
    """
    workers = min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as pool:
        for found in pool.map(_look_at_one, paths):
            on_image()
            yield found


def _look_at_one(path: Path) -> Picture | ImageError:
    try:
        pixels = read_image(path)
        digest = hashlib.blake2b(path.read_bytes(), digest_size=16).digest()
    except ImageError as error:
        return error
    except OSError as error:
        return ImageError(f"{path}: cannot be read ({error})", "image-damaged")
    image = Image.fromarray(pixels)
    small = image.convert("L").resize((_HASH_SIDE + 1, _HASH_SIDE), Image.Resampling.BOX)
    grey = np.asarray(small, dtype=np.int16)
    bits = grey[:, 1:] > grey[:, :-1]
    thumbnail = np.asarray(image.resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX))
    return Picture((pixels.shape[0], pixels.shape[1]), digest, bits.ravel(), thumbnail)


def same_files(one: Sequence[Picture], other: Sequence[Picture]) -> list[tuple[int, int]]:
    """Return the pairs (index in one, index in other) of files with the same bytes."""
    where: dict[bytes, list[int]] = {}
    for index, picture in enumerate(other):
        where.setdefault(picture.digest, []).append(index)
    return [(i, j) for i, picture in enumerate(one) for j in where.get(picture.digest, ())]


def similar_pictures(
    one: Sequence[Picture], other: Sequence[Picture]
) -> list[tuple[int, int, float]]:
    """Return the pairs of nearly the same picture, with the correlation of their thumbnails."""
    if not one or not other:
        return []
    # With bits as +1 and -1 a product of matrices counts the bits that agree.
    signs, others = _signs(one), _signs(other)
    pairs = []
    for start in range(0, len(one), _CHUNK):
        differing = (64 - signs[start : start + _CHUNK] @ others.T) / 2
        for row, column in zip(*np.nonzero(differing <= _MAX_BITS), strict=True):
            first, second = one[start + row], other[column]
            alike = _correlation(first.thumbnail, second.thumbnail)
            if alike >= _ALIKE:
                pairs.append((start + int(row), int(column), alike))
    return pairs


def _signs(pictures: Sequence[Picture]) -> npt.NDArray[np.float32]:
    return np.stack([picture.bits for picture in pictures]).astype(np.float32) * 2 - 1


def _correlation(one: Bytes, other: Bytes) -> float:
    """Correlation of two thumbnails' deviations from their own mean; at most 1.

    It is blind to brightness and contrast. The noise term, of the size of rounding, keeps it low
    where there is no texture: two evenly dark pictures are no evidence of anything.
    """
    a, b = (picture.astype(np.float64) for picture in (one, other))
    a, b = a - a.mean(axis=(0, 1)), b - b.mean(axis=(0, 1))
    noise = 0.5**2
    product = np.sqrt(((a**2).mean() + noise) * ((b**2).mean() + noise))
    return float((a * b).mean() / product)
