"""PNGs whose pixels are numbers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unisolo.data.coco_files import DatasetError
from unisolo.encoding import rgb_to_ids
from unisolo.reading import file_problem

__all__ = ["VOID", "VOID_COLOR", "read_numbers", "voc_palette"]

VOID = 255
"""The number that says "not labelled" in VOC and most data sets after it."""

VOID_COLOR = (224, 224, 192)
"""Its colour in VOC's palette."""


def read_numbers(
    path: Path, size: tuple[int, int], colors: Mapping[int, int] | None
) -> NDArray[np.int64]:
    """Read a PNG of numbers: palette places or grey values; or colours, where a table is given.

    Args:
        path: The file.
        size: (H, W) of the upright image it must fit.
        colors: The number of every colour (R + 256 G + 65536 B), for RGB files; None = the colour
            itself is the number.

    Returns:
        [H, W] int64.

    Raises:
        DatasetError: If it is missing, damaged, of another size or kind, or has a colour that
            stands for nothing.
    """
    problem = file_problem(path, "mask PNG")
    if problem is not None:
        raise DatasetError(f"{path}: {problem}; copy it there or remove the image")
    try:
        with Image.open(path) as image:
            mode, found = image.mode, (image.height, image.width)
            if found == size:
                array = np.asarray(image)
    # Decoders fail in many ways on damaged files; the person needs the name of the file.
    except Exception as error:
        raise DatasetError(f"{path}: damaged mask ({error}); copy it again") from error
    if found != size:
        raise DatasetError(
            f"{path}: the mask is {found[0]} x {found[1]} (height x width) but the upright image "
            f"is {size[0]} x {size[1]}; write it at that size"
        )
    if mode == "RGB":
        return _numbers_of_colors(path, rgb_to_ids(array).astype(np.int64), colors)
    if mode in ("P", "L", "1", "I", "I;16"):
        return array.astype(np.int64)
    raise DatasetError(
        f"{path}: a mask must be a palette, grey or RGB image, this one is {mode}; write it again"
    )


def voc_palette(count: int) -> NDArray[np.uint8]:
    """Return the first colours of VOC's palette: bits of the number, spread over R, G and B."""
    numbers = np.arange(count)
    colors = np.zeros((count, 3), dtype=np.uint8)
    for place in range(8):
        for channel in range(3):
            bit = (numbers >> (3 * place + channel)) & 1
            colors[:, channel] |= (bit << (7 - place)).astype(np.uint8)
    return colors


def _numbers_of_colors(
    path: Path, found: NDArray[np.int64], colors: Mapping[int, int] | None
) -> NDArray[np.int64]:
    if colors is None:
        return found
    values, places = np.unique(found, return_inverse=True)
    strange = [value for value in values.tolist() if value not in colors]
    if strange:
        red, green, blue = strange[0] & 255, strange[0] >> 8 & 255, strange[0] >> 16
        raise DatasetError(
            f"{path}: has the colour ({red}, {green}, {blue}), which stands for no class; write "
            "class numbers (grey or palette), or list the colour in labelmap.txt"
        )
    table = np.array([colors[value] for value in values.tolist()], dtype=np.int64)
    return np.asarray(table[places.reshape(found.shape)])
