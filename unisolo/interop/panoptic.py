"""The panoptic map as COCO's PNG and annotation, there and back."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from unisolo.categories import Categories
from unisolo.encoding import encode_png, ids_to_rgb, rgb_to_ids
from unisolo.files import write_bytes
from unisolo.ops.boxes import masks_to_boxes
from unisolo.ops.masks import pack_bits
from unisolo.reading import file_problem, short
from unisolo.results import Result, Segment

__all__ = ["from_panoptic", "save_panoptic", "to_panoptic"]

_MAX_PANOPTIC_ID = 256**3 - 1


def to_panoptic(
    result: Result, image_id: int | str | None, file_name: str
) -> tuple[NDArray[np.uint8], dict[str, Any]]:
    """Return PNG pixels and annotation; see `Result.to_panoptic`."""
    if result.panoptic_seg is None or result.segments_info is None:
        raise ValueError("this result has no panoptic map: predict with task='panoptic'")
    ids = result.panoptic_seg.cpu().numpy()
    if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) <= _MAX_PANOPTIC_ID:
        raise ValueError(
            f"panoptic ids must be 0 to {_MAX_PANOPTIC_ID}, got {ids.min()} to {ids.max()}"
        )
    areas = _areas(ids, [segment.id for segment in result.segments_info], "panoptic_seg")
    segments = [
        {
            "id": segment.id,
            "category_id": segment.category_id,
            "iscrowd": 0,
            "area": areas[segment.id],
            "isthing": int(segment.isthing),
            "score": segment.score,
        }
        for segment in result.segments_info
    ]
    annotation = {
        "image_id": Path(file_name).stem if image_id is None else image_id,
        "file_name": file_name,
        "segments_info": segments,
    }
    return ids_to_rgb(ids), annotation


def save_panoptic(
    result: Result, out_dir: str | Path, image_id: int | str | None, file_name: str
) -> dict[str, Any]:
    """Write the PNG and return the annotation; see `Result.save_panoptic`."""
    rgb, annotation = to_panoptic(result, image_id, file_name)
    write_bytes(Path(out_dir) / file_name, encode_png(rgb))
    return annotation


def from_panoptic(
    png: str | os.PathLike[str] | NDArray[Any],
    annotation: Mapping[str, Any],
    categories: Categories,
) -> Result:
    """Read a panoptic map; see `Result.from_panoptic`."""
    ids, where = _read_ids(png)
    entries = annotation.get("segments_info")
    if not isinstance(entries, list):
        raise ValueError(f"{where}: its annotation has no list 'segments_info'")
    segments: dict[int, Segment] = {}
    for entry in entries:
        segment = _segment(entry, categories, where)
        if segment.id in segments:
            raise ValueError(f"{where}: segment id {segment.id} appears twice; renumber one")
        segments[segment.id] = segment
    areas = _areas(ids, list(segments), where)
    listed = tuple(
        Segment(s.id, s.category_id, s.label, s.isthing, s.score, areas[s.id])
        for s in segments.values()
    )
    things = [segment for segment in listed if segment.isthing]
    height, width = ids.shape
    packed = torch.empty(len(things), height, (width + 7) // 8, dtype=torch.uint8)
    boxes = torch.empty(len(things), 4)
    for number, segment in enumerate(things):  # one at a time: full-size masks of all are many
        mask = torch.from_numpy(ids == segment.id)[None]
        packed[number] = pack_bits(mask)[0]
        boxes[number] = masks_to_boxes(mask)[0]
    return Result(
        image_size=(height, width),
        categories=categories,
        scores=torch.tensor([segment.score for segment in things], dtype=torch.float32),
        labels=torch.tensor([segment.label for segment in things], dtype=torch.int64),
        boxes=boxes,
        packed_masks=packed,
        panoptic_seg=torch.from_numpy(ids),
        segments_info=listed,
    )


def _read_ids(png: str | os.PathLike[str] | NDArray[Any]) -> tuple[NDArray[np.int32], str]:
    """[H, W] segment ids, and what the source is called in messages."""
    if isinstance(png, (str, os.PathLike)):
        where = str(png)
        problem = file_problem(png, "panoptic PNG")
        if problem is not None:
            raise ValueError(f"{where}: {problem}; check the path")
        try:
            with Image.open(png) as image:
                mode, array = image.mode, np.asarray(image)
        # Decoders fail in many ways on damaged files; the person needs the name of the file.
        except Exception as error:
            raise ValueError(f"{where}: damaged panoptic PNG ({error}); copy it again") from error
        if mode != "RGB":
            raise ValueError(f"{where}: a panoptic PNG must be RGB, this one is {mode}")
    else:
        where, array = "the panoptic array", np.asarray(png)
    if array.ndim == 3 and array.shape[2] == 3 and array.dtype == np.uint8:
        return rgb_to_ids(array), where
    if array.ndim == 2 and np.issubdtype(array.dtype, np.integer):
        if array.size and not 0 <= int(array.min()) <= int(array.max()) <= _MAX_PANOPTIC_ID:
            raise ValueError(f"{where}: ids must be 0 to {_MAX_PANOPTIC_ID}")
        return np.ascontiguousarray(array, dtype=np.int32), where
    raise ValueError(
        f"{where} must be [H, W, 3] uint8 RGB or [H, W] whole numbers, "
        f"got {array.dtype} of shape {array.shape}"
    )


def _segment(entry: Any, categories: Categories, where: str) -> Segment:
    """One entry of `segments_info`; its area is measured later."""
    if not isinstance(entry, Mapping):
        raise ValueError(f"{where}: segment {short(entry)} is not a mapping")
    number = entry.get("id")
    category_id: Any = entry.get("category_id")
    if not isinstance(number, int) or not 0 < number <= _MAX_PANOPTIC_ID:
        raise ValueError(
            f"{where}: segment id {short(number)} must be from 1 to {_MAX_PANOPTIC_ID} (0 is void)"
        )
    if category_id not in categories:
        raise ValueError(
            f"{where}: segment {number} has category id {short(category_id)}, "
            "which is not one of the categories"
        )
    label = categories.label(category_id)
    try:
        score = float(entry.get("score", 1.0))
    except (TypeError, ValueError):
        raise ValueError(
            f"{where}: segment {number} has score {short(entry['score'])}; write a number"
        ) from None
    return Segment(number, category_id, label, categories[label].isthing, score, 0)


def _areas(ids: NDArray[np.int32], listed: list[int], where: str) -> dict[int, int]:
    """Pixels of every segment; the ids of the map and of the table must be the same."""
    values, counts = np.unique(ids, return_counts=True)
    areas = dict(zip(values.tolist(), counts.tolist(), strict=True))
    areas.pop(0, None)
    if set(listed) != set(areas):
        raise ValueError(
            f"segments_info does not fit {where}: ids {sorted(set(listed) - set(areas))} have no "
            f"pixel, ids {sorted(set(areas) - set(listed))} are not listed"
        )
    return areas
