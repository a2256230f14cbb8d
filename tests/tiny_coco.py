"""A small data set in COCO's layout with every awkward thing in it, and what is true of it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

SPLIT = "train2017"
HEIGHT, WIDTH = 24, 36
CAT, DOG, RARE = 3, 90, 17  # things, in label order: CAT 0, RARE 1, DOG 2
SKY, GRASS = 95, 200  # stuff: SKY 0, GRASS 1
CATEGORIES = [
    {"id": GRASS, "name": "grass", "isthing": 0, "color": [0, 200, 0], "supercategory": "ground"},
    {"id": DOG, "name": "dog", "isthing": 1, "color": [10, 20, 30], "supercategory": "animal"},
    {"id": CAT, "name": "cat", "isthing": 1, "color": [200, 20, 30], "supercategory": "animal"},
    {"id": SKY, "name": "sky", "isthing": 0, "color": [0, 0, 250], "supercategory": "air"},
    {"id": RARE, "name": "rare", "isthing": 1, "color": [1, 2, 3], "supercategory": ""},
]
EMPTY, MIXED, CROWDED, ONLY_CROWD, DOT = 3, 12, 70, 501, 900000


@dataclass
class TinyCoco:
    root: Path
    panoptic: dict[str, Any]
    instances: dict[str, Any]
    pngs: dict[int, np.ndarray] = field(default_factory=dict)  # image id -> segment ids [H, W]
    masks: dict[int, np.ndarray] = field(default_factory=dict)  # annotation id -> bool [H, W]

    @property
    def panoptic_file(self) -> Path:
        return self.root / "annotations" / f"panoptic_{SPLIT}.json"

    @property
    def instances_file(self) -> Path:
        return self.root / "annotations" / f"instances_{SPLIT}.json"

    def png(self, image_id: int) -> Path:
        return self.root / "annotations" / f"panoptic_{SPLIT}" / f"{image_id:06d}.png"

    def image(self, image_id: int) -> Path:
        return self.root / SPLIT / f"{image_id:06d}.png"

    def segments(self, image_id: int) -> list[dict[str, Any]]:
        (entry,) = (e for e in self.panoptic["annotations"] if e["image_id"] == image_id)
        return entry["segments_info"]

    def write(self) -> None:
        """Write both JSON files and the PNGs as they now are."""
        self.panoptic_file.parent.mkdir(parents=True, exist_ok=True)
        self.panoptic_file.write_text(json.dumps(self.panoptic))
        self.instances_file.write_text(json.dumps(self.instances))
        for image_id, ids in self.pngs.items():
            save_ids(self.png(image_id), ids)


def save_ids(path: Path, ids: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    colors = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=2).astype(np.uint8)
    Image.fromarray(colors).save(path)


def rectangle(top: int, left: int, bottom: int, right: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def polygon(top: int, left: int, bottom: int, right: int) -> list[float]:
    return [left, top, right, top, right, bottom, left, bottom]


def plain_rle(mask: np.ndarray) -> dict[str, Any]:
    """Uncompressed RLE: runs down the columns, beginning with zeros."""
    flat = np.concatenate([[False], mask.ravel(order="F")])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    runs = np.diff(np.concatenate([[0], changes, [mask.size]]))
    return {"size": list(mask.shape), "counts": [int(run) for run in runs]}


def packed_rle(mask: np.ndarray) -> dict[str, Any]:
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(mask.shape), "counts": rle["counts"].decode("ascii")}


def ring() -> np.ndarray:
    return rectangle(2, 2, 12, 14) & ~rectangle(5, 5, 9, 9)


def write_tiny_coco(root: Path) -> TinyCoco:
    """Five images.

    EMPTY: sky and void only. MIXED: a ring with a hole (RLE) whose middle holds another object, two
    overlapping rectangles, a polygon of two parts, stuff and void. CROWDED: a crowd over an object.
    ONLY_CROWD: one crowd, nothing else. DOT: an object of one pixel.
    """
    ids = (DOT, EMPTY, CROWDED, MIXED, ONLY_CROWD)  # the file's order is not the ids' order
    images = [{"id": i, "file_name": f"{i:06d}.png", "height": HEIGHT, "width": WIDTH} for i in ids]
    rng = np.random.default_rng(0)
    tiny = TinyCoco(
        root,
        {"images": images, "annotations": [], "categories": CATEGORIES},
        {
            "images": images,
            "annotations": [],
            "categories": [{"id": c["id"], "name": c["name"]} for c in CATEGORIES if c["isthing"]],
        },
    )
    (root / SPLIT).mkdir(parents=True)
    for image_id in ids:
        pixels = rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tiny.image(image_id))
    _add_panoptic(tiny)
    _add_instances(tiny)
    tiny.write()
    return tiny


def _add_panoptic(tiny: TinyCoco) -> None:
    two_parts = rectangle(14, 4, 18, 8) | rectangle(14, 20, 20, 26)
    back, front = rectangle(4, 16, 14, 26), rectangle(8, 20, 18, 34)
    plan: dict[int, list[tuple[int, int, int, np.ndarray]]] = {
        EMPTY: [(7, SKY, 0, rectangle(0, 0, 10, WIDTH))],
        MIXED: [
            (9_000_001, SKY, 0, rectangle(0, 0, 13, WIDTH)),
            (300, GRASS, 0, rectangle(13, 0, 22, WIDTH)),
            (70_000, CAT, 0, ring()),
            (65_536, RARE, 0, rectangle(6, 6, 8, 8)),
            (256, DOG, 0, two_parts),
            (257, CAT, 0, back),
            (258, CAT, 0, front),
        ],
        CROWDED: [
            (5, GRASS, 0, rectangle(0, 0, HEIGHT, WIDTH)),
            (11, DOG, 1, rectangle(0, 0, 12, 20)),
            (12, DOG, 0, rectangle(2, 2, 6, 6)),
        ],
        ONLY_CROWD: [(1, CAT, 1, rectangle(3, 3, 20, 30))],
        DOT: [(2, GRASS, 0, rectangle(0, 0, HEIGHT, WIDTH)), (1, RARE, 0, rectangle(5, 7, 6, 8))],
    }
    for image_id, segments in plan.items():
        ids = np.zeros((HEIGHT, WIDTH), dtype=np.int64)
        for segment_id, _, _, mask in segments:
            ids[mask] = segment_id
        infos = []
        for segment_id, category_id, crowd, _ in segments:
            rows, columns = np.nonzero(ids == segment_id)
            x, y = int(columns.min()), int(rows.min())
            infos.append(
                {
                    "id": segment_id,
                    "category_id": category_id,
                    "iscrowd": crowd,
                    "area": len(rows),
                    "bbox": [x, y, int(columns.max()) - x + 1, int(rows.max()) - y + 1],
                }
            )
        tiny.pngs[image_id] = ids
        tiny.panoptic["annotations"].append(
            {"image_id": image_id, "file_name": f"{image_id:06d}.png", "segments_info": infos}
        )


def _add_instances(tiny: TinyCoco) -> None:
    two_parts = [polygon(14, 4, 18, 8), polygon(14, 20, 20, 26)]
    two_parts_mask = rectangle(14, 4, 18, 8) | rectangle(14, 20, 20, 26)
    back, front = rectangle(4, 16, 14, 26), rectangle(8, 20, 18, 34)
    crowd, dot = rectangle(0, 0, 12, 20), rectangle(5, 7, 6, 8)
    plan: list[tuple[int, int, int, int, Any, np.ndarray]] = [
        (1, MIXED, CAT, 0, packed_rle(ring()), ring()),
        (2, MIXED, RARE, 0, plain_rle(rectangle(6, 6, 8, 8)), rectangle(6, 6, 8, 8)),
        (3, MIXED, DOG, 0, two_parts, two_parts_mask),
        (4, MIXED, CAT, 0, [polygon(4, 16, 14, 26)], back),
        (5, MIXED, CAT, 0, plain_rle(front), front),
        (6, CROWDED, DOG, 1, plain_rle(crowd), crowd),
        (7, CROWDED, DOG, 0, [polygon(2, 2, 6, 6)], rectangle(2, 2, 6, 6)),
        (8, ONLY_CROWD, CAT, 1, packed_rle(rectangle(3, 3, 20, 30)), rectangle(3, 3, 20, 30)),
        (9, DOT, RARE, 0, plain_rle(dot), dot),
    ]
    for annotation_id, image_id, category_id, iscrowd, segmentation, mask in plan:
        rows, columns = np.nonzero(mask)
        x, y = int(columns.min()), int(rows.min())
        tiny.masks[annotation_id] = mask
        tiny.instances["annotations"].append(
            {
                "id": annotation_id,
                "image_id": image_id,
                "category_id": category_id,
                "iscrowd": iscrowd,
                "segmentation": segmentation,
                "area": len(rows),
                "bbox": [x, y, int(columns.max()) - x + 1, int(rows.max()) - y + 1],
            }
        )
