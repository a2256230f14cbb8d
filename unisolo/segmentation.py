"""COCO segmentations (polygons, plain and compressed RLE) as masks, and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "SegmentationError",
    "area_and_box",
    "decode",
    "encode",
    "to_rle",
    "usable",
]

_FAR = 1e6
"""Polygon coordinates beyond this are mistakes, and would make rasterising eat all memory."""


class SegmentationError(ValueError):
    """A segmentation that cannot be used.

    Attributes:
        code: What kind of fault: "mask-kind", "rle-size", "rle-damaged", "polygon-odd",
            "polygon-number" or "polygon-far".
    """

    def __init__(self, message: str, code: str = "mask-kind") -> None:
        super().__init__(message)
        self.code = code


def usable(segmentation: Any) -> Any:
    """Leave out what cannot enclose a pixel.

    Args:
        segmentation: As in a COCO file: a list of polygons [x1, y1, x2, y2, ...], or an RLE
            mapping with `size` and `counts`. None and [] count as no mask.

    Returns:
        The segmentation without polygons of fewer than three points; None where nothing is left.

    Raises:
        SegmentationError: If it is none of these.
    """
    if segmentation is None:
        return None
    if isinstance(segmentation, dict):
        if "size" not in segmentation or "counts" not in segmentation:
            raise SegmentationError("an RLE segmentation needs 'size' and 'counts'")
        return segmentation
    if not isinstance(segmentation, list) or not all(isinstance(p, list) for p in segmentation):
        raise SegmentationError("a segmentation must be an RLE mapping or a list of polygons")
    # A first polygon of four numbers would make pycocotools take the list for boxes.
    return [polygon for polygon in segmentation if len(polygon) >= 6] or None


def to_rle(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """Bring a usable segmentation to compressed RLE.

    Args:
        segmentation: What `usable` returned, not None.
        height: Height of the image in pixels.
        width: Its width.

    Returns:
        The RLE of pycocotools; the parts of a multi-part polygon are united.

    Raises:
        SegmentationError: If an RLE is of another size or its counts are no numbers, or polygon
            coordinates are odd in number, not finite or absurdly far away.
    """
    from pycocotools import mask as coco_mask

    if isinstance(segmentation, dict):
        size, counts = segmentation["size"], segmentation["counts"]
        if size not in ([height, width], (height, width)):
            raise SegmentationError(
                f"its RLE has size {size} but the image is {[height, width]}", "rle-size"
            )
        if isinstance(counts, (str, bytes)):
            return segmentation
        _check_plain_counts(counts, height, width)
        return dict(coco_mask.frPyObjects(segmentation, height, width))
    for polygon in segmentation:
        _check_polygon(polygon)
    return dict(coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width)))


def _check_plain_counts(counts: Any, height: int, width: int) -> None:
    if not isinstance(counts, list) or not all(isinstance(count, int) for count in counts):
        raise SegmentationError("its RLE counts are neither text nor whole numbers", "rle-damaged")
    if sum(counts) != height * width or min(counts, default=0) < 0:
        raise SegmentationError(
            f"its RLE counts sum to {sum(counts)}, not to {height} x {width} pixels", "rle-damaged"
        )


def _check_polygon(polygon: list[Any]) -> None:
    if len(polygon) % 2:
        raise SegmentationError(
            f"a polygon has {len(polygon)} numbers; x and y come in pairs", "polygon-odd"
        )
    # NaN is the one number that differs from itself.
    if not all(isinstance(value, (int, float)) and value == value for value in polygon):
        raise SegmentationError(
            "a polygon has coordinates that are not finite numbers", "polygon-number"
        )
    if polygon and max(map(abs, polygon)) >= _FAR:
        raise SegmentationError(
            "a polygon has coordinates that are not finite or far outside", "polygon-far"
        )


def decode(segmentation: Any, height: int, width: int) -> npt.NDArray[np.bool_]:
    """Rasterise a usable segmentation.

    Returns:
        [H, W] bool.

    Raises:
        SegmentationError: As `to_rle`, or if a compressed RLE is damaged.
    """
    runs = _checked_runs(segmentation, height, width)
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return np.asarray(flat.reshape(width, height).T, dtype=np.bool_)


def area_and_box(
    segmentation: Any, height: int, width: int
) -> tuple[int, tuple[int, int, int, int]]:
    """Measure a usable segmentation from its runs, without making the mask.

    Args:
        segmentation: What `usable` returned, not None.
        height: Height of the image in pixels.
        width: Its width.

    Returns:
        The number of pixels, and their extent (left, top, right, bottom), half-open; zeros where
        there is no pixel.

    Raises:
        SegmentationError: As `decode`.
    """
    runs = _checked_runs(segmentation, height, width)
    ends = np.cumsum(runs)[1::2]
    lengths = runs[1::2]
    ends, lengths = ends[lengths > 0], lengths[lengths > 0]
    if not len(ends):
        return 0, (0, 0, 0, 0)
    first, last = ends - lengths, ends - 1
    one_column = first // height == last // height
    # A run that goes on in the next column reaches the bottom here and the top there.
    top = np.where(one_column, first % height, 0).min()
    bottom = np.where(one_column, last % height, height - 1).max()
    left, right = first[0] // height, last[-1] // height
    return int(lengths.sum()), (int(left), int(top), int(right) + 1, int(bottom) + 1)


def _checked_runs(segmentation: Any, height: int, width: int) -> npt.NDArray[np.int64]:
    runs = _runs(to_rle(segmentation, height, width)["counts"])
    # Checked here because pycocotools leaves pixels past the last run uninitialised.
    if runs.min() < 0 or runs.sum() != height * width:
        raise SegmentationError(
            f"its RLE is damaged: its runs do not add up to {height} x {width} pixels",
            "rle-damaged",
        )
    return runs


def _runs(counts: str | bytes) -> npt.NDArray[np.int64]:
    """Run lengths of COCO's compressed counts.

    Each number is written in base 32, lowest digit first, one character (48 + digit) per digit; bit
    32 says that more digits follow, bit 16 of the last digit is the sign. From the fourth number on
    it is the difference to the number two before.
    """
    text = counts.encode("utf-8") if isinstance(counts, str) else counts
    codes = np.frombuffer(text, dtype=np.uint8).astype(np.int64) - 48
    last = (codes & 32) == 0
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or not last[-1]:
        raise SegmentationError(
            "its RLE is damaged: the counts are not COCO's compressed text", "rle-damaged"
        )
    ends = np.flatnonzero(last) + 1
    starts = np.concatenate([[0], ends[:-1]])
    lengths = ends - starts
    if lengths.max() > 7:  # 35 bits: more than any image has pixels
        raise SegmentationError("its RLE is damaged: a run is longer than any image", "rle-damaged")
    digits = (codes & 31) << 5 * (np.arange(len(codes)) - np.repeat(starts, lengths))
    runs = np.add.reduceat(digits, starts)
    runs -= ((codes[ends - 1] & 16) != 0) * (1 << 5 * lengths)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs


def encode(mask: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """Return the compressed RLE of a [H, W] mask, counts as ASCII text so that JSON can hold it."""
    from pycocotools import mask as coco_mask

    rle = dict(coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8)))
    rle["counts"] = rle["counts"].decode("ascii")
    return rle
