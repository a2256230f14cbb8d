"""Masks as RLE, maps of ids as colours, pictures as PNG."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["encode_jpeg", "encode_png", "encode_rle", "ids_to_rgb", "rgb_to_ids"]

_RLE_CHUNK_PIXELS = 1 << 24
"""Mask pixels unpacked at once, one byte each, while writing RLE."""


def encode_rle(packed: NDArray[np.uint8], width: int) -> list[dict[str, Any]]:
    """Encode packed masks as compressed COCO RLE.

    RLE runs down the columns. Turning the packed bytes and unpacking along the turned axis gives
    column-major masks directly: about three times faster than unpacking rows and turning pixels.

    Args:
        packed: [N, H, ceil(W / 8)] uint8, bits as `numpy.packbits(axis=-1)` orders them; what
            lies beyond the width is ignored.
        width: W.

    Returns:
        N dicts with `size` [H, W] and `counts`, an ASCII str that JSON can hold.
    """
    from hotcoco import mask as rle_ops

    count, height, row_bytes = packed.shape
    chunk = max(1, _RLE_CHUNK_PIXELS // max(1, height * row_bytes * 8))
    shifts = np.arange(7, -1, -1, dtype=np.uint8)[:, None]
    rles: list[dict[str, Any]] = []
    for start in range(0, count, chunk):
        columns = np.ascontiguousarray(packed[start : start + chunk].transpose(0, 2, 1))
        bits = np.right_shift(columns[:, :, None, :], shifts)  # [n, ceil(W / 8), 8, H]
        np.bitwise_and(bits, 1, out=bits)
        masks = bits.reshape(len(columns), row_bytes * 8, height)[:, :width]
        rles.extend(rle_ops.encode(masks.transpose(2, 1, 0)))  # wants [H, W, n], column-major
    return [{"size": [height, width], "counts": rle["counts"].decode("ascii")} for rle in rles]


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
