"""Evaluation folders without a model: predictions are ground truth, moved, renamed and dropped."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tiny_coco import packed_rle, save_ids
from tiny_model import tiny_config

from unisolo import Config
from unisolo.build import build_dataset
from unisolo.files import write_json
from unisolo.ops.masks import pack_bits
from unisolo.report import make_record, write_record
from unisolo.results import Result, Segment
from unisolo.structures import ImageMeta
from unisolo.tasks import get_task

Map = tuple[np.ndarray, list[int]]
"""Segment ids 1, 2, ... of each pixel, and the label of each segment."""


def categories_of(things: int, stuff: int, names: dict[int, str] | None = None) -> list[dict]:
    """`categories` of a COCO file, ids with gaps; `names` replaces some by position."""
    entries = [
        {
            "id": 3 * n + 1,
            "name": f"{'thing' if n < things else 'stuff'} {n}",
            "isthing": n < things,
        }
        for n in range(things + stuff)
    ]
    for place, name in (names or {}).items():
        entries[place]["name"] = name
    return [{**entry, "isthing": int(entry["isthing"])} for entry in entries]


def random_map(rng: np.random.Generator, size: tuple[int, int], things: int, stuff: int) -> Map:
    """Bands of stuff with ellipses over them."""
    height, width = size
    ids = np.zeros(size, dtype=np.int64)
    labels: list[int] = []
    for band in range(min(stuff, 3)):
        labels.append(things + int(rng.integers(stuff)))
        ids[band * height // 3 : (band + 1) * height // 3] = len(labels)
    y, x = np.mgrid[:height, :width]
    for _ in range(int(rng.integers(1, 9)) if things else 0):
        radius = rng.uniform(0.04, 0.2, 2) * min(size)
        middle = rng.uniform(0, 1, 2) * size
        inside = ((y - middle[0]) / radius[0]) ** 2 + ((x - middle[1]) / radius[1]) ** 2 < 1
        labels.append(int(rng.integers(things)))
        ids[inside] = len(labels)
    return ids, labels


def write_data(
    root: Path,
    *,
    images: int,
    things: int,
    stuff: int,
    size: tuple[int, int] = (48, 64),
    names: dict[int, str] | None = None,
    seed: int = 0,
) -> list[Map]:
    """Write a data set in COCO's layout, split "val2017"; return what is in its images."""
    rng = np.random.default_rng(seed)
    categories = categories_of(things, stuff, names)
    maps = [random_map(rng, size, things, stuff) for _ in range(images)]
    entries, panoptic, instances = [], [], []
    pixels = rng.integers(60, 200, (*size, 3), dtype=np.uint8)
    (root / "val2017").mkdir(parents=True)
    for number, (ids, labels) in enumerate(maps, start=1):
        name = f"{number:06d}"
        entries.append(
            {"id": number, "file_name": f"{name}.jpg", "height": size[0], "width": size[1]}
        )
        Image.fromarray(pixels).save(root / "val2017" / f"{name}.jpg")
        save_ids(root / "annotations" / "panoptic_val2017" / f"{name}.png", ids)
        segments = []
        for segment, label in enumerate(labels, start=1):
            mask = ids == segment
            if not mask.any():
                continue
            fields = {"id": segment, "category_id": categories[label]["id"], "iscrowd": 0}
            fields |= {"area": int(mask.sum()), "bbox": bbox_of(mask)}
            segments.append(fields)
            if label < things:
                place = {"id": len(instances) + 1, "image_id": number}
                instances.append({**fields, **place, "segmentation": packed_rle_of(mask)})
        panoptic.append({"image_id": number, "file_name": f"{name}.png", "segments_info": segments})
    kinds = {"panoptic": (panoptic, categories), "instances": (instances, categories[:things])}
    for kind, (listed, known) in kinds.items():
        tree = {"images": entries, "annotations": listed, "categories": known}
        (root / "annotations" / f"{kind}_val2017.json").write_text(json.dumps(tree))
    return maps


def bbox_of(mask: np.ndarray) -> list[int]:
    rows, columns = np.nonzero(mask)
    left, top = int(columns.min()), int(rows.min())
    return [left, top, int(columns.max()) - left + 1, int(rows.max()) - top + 1]


def packed_rle_of(mask: np.ndarray) -> dict[str, Any]:
    return {**packed_rle(mask), "size": list(mask.shape)}


def perturbed(
    rng: np.random.Generator, truth: Map, categories: Any, extra: int, masks: bool
) -> Result:
    """A prediction that is right often, wrong in every way sometimes; `extra` weak ones more."""
    ids, labels = truth
    size = (ids.shape[0], ids.shape[1])
    things = categories.num_things
    found: list[tuple[float, int, np.ndarray]] = []
    seg = np.zeros(size, dtype=np.int32)
    segments = []
    for segment, label in enumerate(labels, start=1):
        mask = ids == segment
        # Instance data has no stuff.
        if not mask.any() or label >= len(categories) or rng.random() < 0.15:
            continue
        mask = np.roll(mask, rng.integers(-1, 2, 2), (0, 1))
        score, kept = float(rng.uniform(0.3, 1)), label
        if label < things:
            if rng.random() < 0.2:
                kept = min(things - 1, label + 1)
            found.append((score, kept, mask))
        seg[mask] = segment
        segments.append((segment, kept, score if label < things else 1.0))
    for _ in range(extra):
        mask = np.zeros(size, dtype=bool)
        top, left = (int(rng.integers(side - 1)) for side in size)
        mask[top : top + int(rng.integers(2, 30)), left : left + int(rng.integers(2, 30))] = True
        found.append((float(rng.uniform(0.05, 0.4)), int(rng.integers(things)), mask))
    found.sort(key=lambda entry: -entry[0])
    stack = np.array([mask for _, _, mask in found]).reshape(-1, *size).astype(bool)
    corners = [(x, y, x + w, y + h) for x, y, w, h in (bbox_of(mask) for _, _, mask in found)]
    areas = np.bincount(seg.ravel(), minlength=len(labels) + 1)
    return Result(
        size,
        categories,
        torch.tensor([score for score, _, _ in found], dtype=torch.float32),
        torch.tensor([label for _, label, _ in found], dtype=torch.int64),
        torch.tensor(corners, dtype=torch.float32).reshape(-1, 4),
        pack_bits(torch.from_numpy(stack)) if masks else None,
        torch.from_numpy(seg),
        tuple(
            Segment(n, categories.id(k), k, k < things, score, int(areas[n]))
            for n, k, score in segments
            if areas[n]
        ),
    )


def empty(categories: Any, size: tuple[int, int]) -> Result:
    """Nothing was found."""
    return Result(
        size,
        categories,
        torch.zeros(0),
        torch.zeros(0, dtype=torch.int64),
        torch.zeros(0, 4),
        pack_bits(torch.zeros(0, *size, dtype=torch.bool)),
        torch.zeros(size, dtype=torch.int32),
        (),
    )


def evaluated(
    root: Path,
    out: Path,
    *,
    maps: list[Map] | None,
    task: str = "panoptic",
    extra: int = 2,
    record: bool = True,
    seed: int = 0,
) -> Config:
    """Write the folder an evaluation of `root` leaves; `maps` None = nothing was found."""
    config = tiny_config(f"data.root={root}", f"task={task}")
    dataset = build_dataset(config, split="val")
    adapter = get_task(task)(dataset.categories)
    evaluators = adapter.make_evaluators(dataset)
    rng = np.random.default_rng(seed)
    sizes = {e["id"]: (e["height"], e["width"]) for e in dataset.coco_ground_truth()["images"]}
    for number in dataset.image_ids:
        size = sizes[number]
        result = (
            empty(dataset.categories, size)
            if maps is None
            else perturbed(rng, maps[number - 1], dataset.categories, extra, task != "detection")
        )
        for evaluator in evaluators:
            evaluator.update([result], [ImageMeta(number, f"{number:06d}.jpg", size, size)])
    metrics: dict[str, float] = {}
    for evaluator in evaluators:
        evaluator.save(out)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            metrics |= evaluator.compute()
    if record:
        facts = make_record(
            config,
            device=torch.device("cpu"),
            processes=1,
            images=len(dataset),
            seconds=1.5,
            backend="hotcoco",
        )
        write_record(out, facts)
    write_json(out / "metrics.json", metrics)
    return config
