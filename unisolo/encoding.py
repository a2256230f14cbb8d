"""Masks as RLE, maps of ids as colours, pictures as PNG."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["encode_jpeg", "encode_png", "encode_rle", "ids_to_rgb", "rgb_to_ids"]


def encode_rle(packed: NDArray[np.uint8], width: int) -> list[dict[str, Any]]:
    """Encode packed masks as compressed COCO RLE, without unpacking them.

    Memory: a few times the bits of one mask, besides its run lengths.

    Args:
        packed: [N, H, ceil(W / 8)] uint8, bits as `numpy.packbits(axis=-1)` orders them; what
            lies beyond the width is ignored.
        width: W.

    Returns:
        N dicts with `size` [H, W] and `counts`, an ASCII str that JSON can hold.
    """
    height = packed.shape[1]
    return [
        {"size": [height, width], "counts": _rle_string(_run_lengths(mask, width))}
        for mask in packed
    ]


def _run_lengths(mask: NDArray[np.uint8], width: int) -> NDArray[np.int64]:
    """Lengths of the runs of 0, 1, 0, ... down the columns of a packed mask; the first may be 0.

    A run begins where a pixel differs from the one before it: that above it, or for the first of a
    column the last of the column before. On packed rows both are one exclusive or, and few bytes of
    the result are not 0.
    """
    height, row_bytes = mask.shape
    changes = np.empty_like(mask)
    np.bitwise_xor(mask[1:], mask[:-1], out=changes[1:])
    left = mask[-1] >> 1  # the last row, one pixel to the right
    left[1:] |= mask[-1, :-1] << 7
    np.bitwise_xor(mask[0], left, out=changes[0])
    changes[:, -1] &= 0xFF << (8 * row_bytes - width) & 0xFF
    # Indices into flat arrays, whose search is ten times as fast as that of two dimensions.
    places = np.flatnonzero(changes.ravel() != 0)
    bits = np.flatnonzero(np.unpackbits(changes.ravel()[places]))
    rows, columns = np.divmod(places[bits >> 3], row_bytes)
    starts = (8 * columns + (bits & 7)) * height + rows
    starts.sort()
    lengths: NDArray[np.int64] = np.diff(starts, prepend=0, append=height * width)
    return lengths


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
