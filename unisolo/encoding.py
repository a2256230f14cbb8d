"""Masks as RLE, maps of ids as colours, pictures as PNG."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["encode_jpeg", "encode_png", "encode_rle", "ids_to_rgb", "rgb_to_ids"]


_UNPACKED_PIXELS = 1 << 24
"""Mask pixels unpacked at once, one byte each, while writing RLE."""

_LARGE_BYTES, _BUSY_SHARE = 1 << 16, 1 / 40
"""Bytes of a packed mask from which on its runs are found without unpacking it, unless a larger
share of the bytes changes from row to row: below and above, unpacking is faster."""


def encode_rle(packed: NDArray[np.uint8], width: int) -> list[dict[str, Any]]:
    """Encode packed masks as compressed COCO RLE.

    Large masks of things have few runs for their bits, which are found without unpacking: two to
    ten times as fast. Small masks, and those like noise, are unpacked.

    Memory: a few times the bits of one large mask, or one byte a pixel of that mask or of 16
    million pixels of small ones; and the run lengths.

    Args:
        packed: [N, H, ceil(W / 8)] uint8, bits as `numpy.packbits(axis=-1)` orders them; what
            lies beyond the width is ignored.
        width: W.

    Returns:
        N dicts with `size` [H, W] and `counts`, an ASCII str that JSON can hold.
    """
    height, row_bytes = packed.shape[1:]
    if height * row_bytes < _LARGE_BYTES:
        counts = _unpacked_counts(packed, width)
    else:
        counts = [_large_counts(mask, width) for mask in packed]
    return [{"size": [height, width], "counts": text} for text in counts]


def _large_counts(mask: NDArray[np.uint8], width: int) -> str:
    changes = _changes(mask, width)
    if np.count_nonzero(changes) > _BUSY_SHARE * changes.size:
        return _unpacked_counts(mask[None], width)[0]
    return _rle_string(_run_lengths(changes, width))


def _changes(mask: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    """Bits where a pixel of a packed mask [H, ceil(W / 8)] differs from the one before it.

    That is the one above it, or for the first of a column the last of the column before; before the
    first of all is a 0. On packed rows both are one exclusive or.
    """
    row_bytes = mask.shape[1]
    changes = np.empty_like(mask)
    np.bitwise_xor(mask[1:], mask[:-1], out=changes[1:])
    left = mask[-1] >> 1  # the last row, one pixel to the right
    left[1:] |= mask[-1, :-1] << 7
    np.bitwise_xor(mask[0], left, out=changes[0])
    changes[:, -1] &= 0xFF << (8 * row_bytes - width) & 0xFF
    return changes


def _run_lengths(changes: NDArray[np.uint8], width: int) -> NDArray[np.int64]:
    """Lengths of the runs of 0, 1, 0, ... down the columns, from `_changes`; the first may be 0."""
    height, row_bytes = changes.shape
    # Indices into flat arrays, whose search is ten times as fast as that of two dimensions.
    places = np.flatnonzero(changes.ravel() != 0)
    bits = np.flatnonzero(np.unpackbits(changes.ravel()[places]))
    rows, columns = np.divmod(places[bits >> 3], row_bytes)
    starts = (8 * columns + (bits & 7)) * height + rows
    starts.sort()
    lengths: NDArray[np.int64] = np.diff(starts, prepend=0, append=height * width)
    return lengths


def _unpacked_counts(packed: NDArray[np.uint8], width: int) -> list[str]:
    """RLE strings of packed masks [N, H, ceil(W / 8)] by way of a byte per pixel.

    Turning the bytes before they are unpacked gives column-major pixels directly: about three times
    as fast as turning pixels.
    """
    from hotcoco import mask as rle_ops

    count, height, row_bytes = packed.shape
    step = max(1, _UNPACKED_PIXELS // max(1, height * row_bytes * 8))
    shifts = np.arange(7, -1, -1, dtype=np.uint8)[:, None]
    counts: list[str] = []
    for start in range(0, count, step):
        columns = np.ascontiguousarray(packed[start : start + step].transpose(0, 2, 1))
        bits = np.right_shift(columns[:, :, None, :], shifts)  # [n, ceil(W / 8), 8, H]
        np.bitwise_and(bits, 1, out=bits)
        masks = bits.reshape(len(columns), row_bytes * 8, height)[:, :width]
        rles = rle_ops.encode(masks.transpose(2, 1, 0))  # wants [H, W, n], column-major
        counts += [str(rle["counts"], "ascii") for rle in rles]
    return counts


def _rle_string(counts: NDArray[np.int64]) -> str:
    """Write run lengths as COCO does.

    From the fourth on it is the difference to the last but one that is written; a number is split
    in groups of 5 bits, the lowest first, and bit 5 of a group says that more follow.
    """
    left = counts.copy()
    left[3:] -= counts[1:-2]
    groups, written = [], []
    more = np.ones(len(left), dtype=bool)
    while more.any():
        group = left & 0x1F
        left >>= 5
        written.append(more)
        # Numbers are signed: what is left over is all ones where the last group's bit 4 is set.
        more = more & (left != -(group >> 4))
        groups.append(group + 48 + 32 * more)
    # One row a number: its groups follow each other.
    letters = np.stack(groups, axis=1)[np.stack(written, axis=1)].astype(np.uint8)
    return str(letters.tobytes(), "ascii")


def ids_to_rgb(ids: NDArray[np.integer[Any]]) -> NDArray[np.uint8]:
    """Write ids as colours, as COCO's panoptic PNGs do: id = R + 256 G + 65536 B.

    Args:
        ids: [...] whole numbers from 0 to 256^3 - 1.

    Returns:
        [..., 3] uint8 RGB.
    """
    return np.stack([ids & 255, ids >> 8 & 255, ids >> 16], axis=-1).astype(np.uint8)


def rgb_to_ids(rgb: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Read ids from colours; see `ids_to_rgb`.

    Args:
        rgb: [..., 3] uint8 RGB.

    Returns:
        [...] int32.
    """
    wide = rgb.astype(np.int32)
    return np.asarray(wide[..., 0] + 256 * wide[..., 1] + 65536 * wide[..., 2], dtype=np.int32)


def encode_png(pixels: NDArray[np.uint8] | Image.Image) -> bytes:
    """Return a picture ([H, W, 3] uint8 RGB or [H, W] uint8 grey) as the bytes of a PNG file."""
    picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    return _saved(picture, format="PNG")


def encode_jpeg(picture: Image.Image, *, quality: int = 92, sharp: bool = True) -> bytes:
    """Return a picture as the bytes of a JPEG file.

    Args:
        picture: RGB.
        quality: As JPEG has it, 1 to 95.
        sharp: Keep the colour of every pixel, which thin lines and letters need.
    """
    return _saved(picture, format="JPEG", quality=quality, subsampling=0 if sharp else 2)


def _saved(picture: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, **options)
    return buffer.getvalue()
