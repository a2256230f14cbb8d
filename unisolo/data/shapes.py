"""The embedded data set: generated scenes, written to disk as a real COCO panoptic data set.

Layout under the root, as COCO 2017: `train2017/`, `val2017/` (JPEG, some PNG),
`annotations/panoptic_{split}.json`, `annotations/panoptic_{split}/*.png` (segment id =
R + 256 G + 65536 B, 0 is void) and `annotations/instances_{split}.json` (things only).
Nothing reads it but the readers that read COCO. Scenes hold occlusion, holes, touching objects of
one category, crowds, void, and now and then nothing but stuff.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from unisolo.data.shapes_scene import CATEGORIES, Scene, draw_scene
from unisolo.encoding import ids_to_rgb, rgb_to_ids

__all__ = ["generate_shapes"]

_SPLITS = ("train2017", "val2017")
_MARKER = "unisolo_shapes.json"
_VERSION = 2  # of the drawings: raise it when the same seed draws something else
_MIN_SIDE = 32

# Rare kinds of image follow the index, not chance, so that a small data set has them too.
_EMPTY_EVERY, _EMPTY_AT = 25, 4
_CROWD_EVERY, _CROWD_AT = 20, 2
_PNG_EVERY, _PNG_AT = 10, 1


def generate_shapes(
    root: str | Path,
    *,
    num_train: int = 600,
    num_val: int = 100,
    image_size: tuple[int, int] = (192, 192),
    seed: int = 0,
) -> Path:
    """Write the embedded data set, or find it already written.

    Image `i` of a split depends on `seed`, the split, `i` and `image_size` alone, bit for bit on
    one machine: a larger data set begins with the smaller one. A call with the parameters of a
    finished earlier call returns at once; an interrupted one is written anew.

    Args:
        root: Folder to write; made if absent. Must be empty or written by this function with the
            same parameters.
        num_train: Number of training images.
        num_val: Number of validation images; no scene is shared with training.
        image_size: (H, W) of every image in pixels, each at least 32.
        seed: Seed, not negative.

    Returns:
        The root folder.

    Raises:
        ValueError: If a parameter is out of range, or the folder holds anything else.
        NotADirectoryError: If `root` is a file.
    """
    root = Path(root)
    counts = dict(zip(_SPLITS, (num_train, num_val), strict=True))
    _check(counts, image_size, seed)
    parameters = {
        "version": _VERSION,
        "num_train": num_train,
        "num_val": num_val,
        "image_size": list(image_size),
        "seed": seed,
    }
    if _is_finished(root, parameters):
        return root
    annotations = root / "annotations"
    annotations.mkdir(parents=True, exist_ok=True)
    _write_json(root / _MARKER, {**parameters, "finished": False})
    for split, count in counts.items():
        _write_split(root, split, count, image_size, seed)
    _write_json(root / _MARKER, {**parameters, "finished": True})
    return root


def _check(counts: dict[str, int], image_size: tuple[int, int], seed: int) -> None:
    if min(counts.values()) < 0 or sum(counts.values()) < 1:
        raise ValueError(
            f"num_train={counts['train2017']}, num_val={counts['val2017']}: "
            "neither may be negative and one must be at least 1"
        )
    if len(image_size) != 2 or min(image_size) < _MIN_SIDE:
        raise ValueError(f"image_size={image_size}: give (H, W), each at least {_MIN_SIDE} pixels")
    if seed < 0:
        raise ValueError(f"seed={seed}: give 0 or more")


def _is_finished(root: Path, parameters: dict[str, Any]) -> bool:
    """Whether the data set is there already; raises if the folder is not ours to write."""
    if not root.exists():
        return False
    if not root.is_dir():
        raise NotADirectoryError(f"{root} is a file; give a folder for the generated data set")
    if not any(root.iterdir()):
        return False
    marker = root / _MARKER
    if not marker.is_file():
        raise ValueError(
            f"{root} is not empty and was not written by generate_shapes (no {_MARKER}); "
            "give another folder or empty this one"
        )
    found = json.loads(marker.read_text(encoding="utf-8"))
    finished = bool(found.pop("finished", False))
    if found != parameters:
        differing = [
            f"{key}: {found.get(key)} there, {value} asked"
            for key, value in parameters.items()
            if found.get(key) != value
        ]
        raise ValueError(
            f"{root} holds a generated data set with other parameters ({'; '.join(differing)}); "
            "give another folder or delete this one"
        )
    complete = all((root / "annotations" / f"panoptic_{split}.json").is_file() for split in _SPLITS)
    return finished and complete


# --- one split ------------------------------------------------------------------------------------


def _write_split(
    root: Path, split: str, count: int, image_size: tuple[int, int], seed: int
) -> None:
    """Write the images, the panoptic PNGs and both JSON files of one split."""
    panoptic_dir = root / "annotations" / f"panoptic_{split}"
    for folder in (root / split, panoptic_dir):
        folder.mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    panoptic: list[dict[str, Any]] = []
    instances: list[dict[str, Any]] = []
    for index in range(count):
        rng = np.random.default_rng([seed, _SPLITS.index(split), index])
        image_id = _image_id(rng, split, index)
        scene = draw_scene(
            rng,
            image_size,
            things=index % _EMPTY_EVERY != _EMPTY_AT,
            crowd=index % _CROWD_EVERY == _CROWD_AT,
        )
        image_name = f"{image_id:012d}.{'png' if index % _PNG_EVERY == _PNG_AT else 'jpg'}"
        Image.fromarray(scene.image).save(root / split / image_name, quality=92)
        images.append(
            {
                "id": image_id,
                "file_name": image_name,
                "height": image_size[0],
                "width": image_size[1],
                "license": 1,
            }
        )
        ids = _segment_ids(rng, scene)
        png_name = f"{image_id:012d}.png"
        Image.fromarray(ids_to_rgb(ids)[scene.index_map]).save(panoptic_dir / png_name)
        boxes_areas = _boxes_and_areas(scene)
        panoptic.append(_panoptic_entry(scene, image_id, png_name, ids, boxes_areas))
        instances.extend(_instance_entries(scene, image_id, boxes_areas))
    header = _header(split, images)
    folder = root / "annotations"
    categories = CATEGORIES.to_coco()
    _write_json(
        folder / f"panoptic_{split}.json",
        {**header, "annotations": panoptic, "categories": categories},
    )
    # As in COCO, the instances file lists things only, without `isthing` and `color`.
    things = [
        {key: entry[key] for key in ("id", "name", "supercategory")}
        for entry in categories
        if entry["isthing"]
    ]
    _write_json(
        folder / f"instances_{split}.json",
        {**header, "annotations": instances, "categories": things},
    )


def _image_id(rng: np.random.Generator, split: str, index: int) -> int:
    """Rising ids with gaps, never the same in two splits."""
    return 2 * (60 + 23 * index + int(rng.integers(23))) + _SPLITS.index(split)


def _segment_ids(rng: np.random.Generator, scene: Scene) -> npt.NDArray[np.int64]:
    """Panoptic ids [1 + segments], 0 first: the category's colour, shifted until it is unique."""
    ids = [0]
    for category_id, _ in scene.segments:
        category = CATEGORIES[CATEGORIES.label(category_id)]
        base = np.array(category.color)
        # Things of one category share a picture; stuff is one segment and keeps the plain colour.
        shift = 45 if category.isthing else 0
        number = 0
        while number in ids:
            color = np.clip(base + rng.integers(-shift, shift + 1, 3), 0, 255)
            number = int(rgb_to_ids(color.astype(np.uint8)))
            shift = max(shift, 2)
        ids.append(number)
    return np.array(ids, dtype=np.int64)


def _boxes_and_areas(scene: Scene) -> list[tuple[list[int], int]]:
    """([x, y, width, height], pixels) of every segment, whole pixels."""
    result = []
    for number in range(1, len(scene.segments) + 1):
        mask = scene.index_map == number
        columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
        x, y = int(columns[0]), int(rows[0])
        box = [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y]
        result.append((box, int(mask.sum())))
    return result


def _panoptic_entry(
    scene: Scene,
    image_id: int,
    file_name: str,
    ids: npt.NDArray[np.int64],
    boxes_areas: list[tuple[list[int], int]],
) -> dict[str, Any]:
    segments_info = [
        {
            "id": int(segment_id),
            "category_id": category_id,
            "iscrowd": int(iscrowd),
            "area": area,
            "bbox": box,
        }
        for segment_id, (category_id, iscrowd), (box, area) in zip(
            ids[1:], scene.segments, boxes_areas, strict=True
        )
    ]
    return {"image_id": image_id, "file_name": file_name, "segments_info": segments_info}


def _instance_entries(
    scene: Scene, image_id: int, boxes_areas: list[tuple[list[int], int]]
) -> list[dict[str, Any]]:
    """Annotations of the things: annotation ids keep clear of the next image's."""
    entries: list[dict[str, Any]] = []
    pairs = zip(scene.segments, boxes_areas, strict=True)
    for number, ((category_id, iscrowd), (box, area)) in enumerate(pairs, start=1):
        if not CATEGORIES[CATEGORIES.label(category_id)].isthing:
            continue
        entries.append(
            {
                "id": image_id * 100 + number,
                "image_id": image_id,
                "category_id": category_id,
                "iscrowd": int(iscrowd),
                "area": area,
                "bbox": box,
                "segmentation": _segmentation(scene.index_map == number, box, area, iscrowd),
            }
        )
    return entries


def _segmentation(
    mask: npt.NDArray[np.bool_], box: list[int], area: int, iscrowd: bool
) -> dict[str, Any] | list[list[int]]:
    """COCO segmentation of a mask [H, W]; all three spellings of the format occur."""
    x, y, width, height = box
    if iscrowd:  # uncompressed RLE, column by column, starting with the zeros: as COCO's crowds
        flat = np.concatenate([[False], mask.ravel(order="F"), [False]])
        edges = np.flatnonzero(flat[1:] != flat[:-1])
        counts = np.diff(np.concatenate([[0], edges, [mask.size]])).tolist()
        if counts[-1] == 0:
            counts.pop()
        return {"size": list(mask.shape), "counts": counts}
    if area == width * height:  # a full rectangle: the one outline that a polygon keeps exactly
        return [[x, y, x + width, y, x + width, y + height, x, y + height]]
    from pycocotools import mask as coco_mask

    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(mask.shape), "counts": rle["counts"].decode("ascii")}


def _header(split: str, images: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "info": {
            "description": f"unisolo shapes, {split}: generated scenes",
            "version": str(_VERSION),
            "contributor": "unisolo",
        },
        "licenses": [
            {
                "id": 1,
                "name": "Apache License 2.0",
                "url": "https://www.apache.org/licenses/LICENSE-2.0",
            }
        ],
        "images": images,
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content) + "\n", encoding="utf-8")
