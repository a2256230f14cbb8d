"""Instances as a Label Studio task with predictions, and the labelling config they belong to.

A mask becomes a brush region. Label Studio packs it as runs of the values of an RGBA picture,
row by row: 32 bits tell how many values there are, 5 bits the size of a value less one, four times
4 bits the sizes of run lengths less one; then each run is a bit 1, 2 bits naming the size of its
length, the length less one, and the value.
"""

from __future__ import annotations

from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np
from numpy.typing import NDArray

from unisolo.categories import Categories
from unisolo.results import Result

__all__ = ["encode_brush", "label_studio_config", "to_label_studio"]

_VALUE_BITS = 8
_LENGTH_BITS = np.array([3, 4, 8, 16])
_LONGEST = 1 << 16


def label_studio_config(categories: Categories) -> str:
    """Return the labelling config that `to_label_studio` writes for.

    Args:
        categories: Its things become the labels, with their colours.

    Returns:
        XML: an image `image`, brush labels `masks` and rectangle labels `boxes`.
    """
    labels = "".join(
        f'    <Label value={quoteattr(c.name)} background="#{bytes(c.color).hex()}"/>\n'
        for c in categories.things
    )
    return (
        "<View>\n"
        '  <Image name="image" value="$image"/>\n'
        f'  <BrushLabels name="masks" toName="image">\n{labels}  </BrushLabels>\n'
        f'  <RectangleLabels name="boxes" toName="image">\n{labels}  </RectangleLabels>\n'
        "</View>\n"
    )


def to_label_studio(result: Result, image: str, model_version: str, boxes: bool) -> dict[str, Any]:
    """Return a task with predictions; see `Result.to_label_studio`."""
    host = result.cpu()
    height, width = host.image_size
    regions = []
    for number, one in enumerate(host):
        name = one.categories[int(one.labels[0])].name
        common = {
            "to_name": "image",
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "score": float(one.scores[0]),
        }
        masks = one.masks
        if masks is not None:
            value: dict[str, Any] = {
                "format": "rle",
                "rle": encode_brush(masks[0].numpy()),
                "brushlabels": [name],
            }
            kind = {"from_name": "masks", "type": "brushlabels"}
            regions.append({"id": f"mask{number}", **kind, **common, "value": value})
        if boxes or masks is None:
            value = {**_percent(one, height, width), "rectanglelabels": [name]}
            kind = {"from_name": "boxes", "type": "rectanglelabels"}
            regions.append({"id": f"box{number}", **kind, **common, "value": value})
    prediction = {
        "model_version": model_version,
        "score": float(host.scores.mean()) if len(host) else 0.0,
        "result": regions,
    }
    return {"data": {"image": image}, "predictions": [prediction]}


def encode_brush(mask: NDArray[np.bool_]) -> list[int]:
    """Pack a mask as Label Studio's RLE.

    Args:
        mask: [H, W] bool.

    Returns:
        The bytes as numbers from 0 to 255.
    """
    flat = mask.reshape(-1)
    starts = np.flatnonzero(np.concatenate([[True], flat[1:] != flat[:-1]]))
    lengths = np.diff(np.append(starts, flat.size)) * 4  # a pixel has four values
    pieces = -(-lengths // _LONGEST)
    values = np.repeat(np.where(flat[starts], 255, 0), pieces)
    ends = np.cumsum(pieces)
    lengths_of_pieces = np.full(int(pieces.sum()), _LONGEST)
    lengths_of_pieces[ends - 1] = lengths - (pieces - 1) * _LONGEST
    sizes = np.searchsorted(1 << _LENGTH_BITS, lengths_of_pieces)
    # Every run as a row of bits; the places that a shorter length does not use are cut out.
    bits = np.concatenate(
        [
            np.ones((len(sizes), 1), np.uint8),
            _bits(sizes, 2),
            _bits(lengths_of_pieces - 1, 16),
            _bits(values, _VALUE_BITS),
        ],
        axis=1,
    )
    used = np.ones_like(bits, dtype=bool)
    used[:, 3:19] = np.arange(16) >= 16 - _LENGTH_BITS[sizes][:, None]
    head = [_bits(np.array([flat.size * 4]), 32), _bits(np.array([_VALUE_BITS - 1]), 5)]
    head.append(_bits(_LENGTH_BITS - 1, 4))
    stream = np.concatenate([*(part.reshape(-1) for part in head), bits[used]])
    return list(np.packbits(stream).tolist())


def _bits(values: NDArray[Any], size: int) -> NDArray[np.uint8]:
    """[N] whole numbers as [N, size] bits, the highest first."""
    return (values[:, None] >> np.arange(size - 1, -1, -1) & 1).astype(np.uint8)


def _percent(one: Result, height: int, width: int) -> dict[str, float]:
    """The box of a single instance in percent of the image."""
    left, top, right, bottom = one.boxes[0].tolist()
    return {
        "x": 100 * left / width,
        "y": 100 * top / height,
        "width": 100 * (right - left) / width,
        "height": 100 * (bottom - top) / height,
        "rotation": 0.0,
    }
