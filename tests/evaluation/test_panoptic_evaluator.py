from __future__ import annotations

import json
import math
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pq_twin import pq_counts

from unisolo.categories import Categories, Category
from unisolo.evaluation import PanopticEvaluator
from unisolo.results import Result, Segment
from unisolo.structures import ImageMeta

CATEGORIES = Categories(
    [
        Category(2, "cat"),
        Category(5, "dog"),
        Category(17, "absent"),
        Category(1, "grass", isthing=False),
        Category(9, "sky", isthing=False),
    ]
)
KEYS = [f"panoptic/{name}{group}" for group in ("", "_th", "_st") for name in ("PQ", "SQ", "RQ")]
BACKENDS = ["hotcoco", "official"]


@pytest.fixture(autouse=True)
def _official_is_installed(request: pytest.FixtureRequest) -> None:
    callspec = getattr(request.node, "callspec", None)
    if callspec is not None and callspec.params.get("backend") == "official":
        pytest.importorskip("panopticapi", reason="pip install --no-deps panopticapi-lite")


def result(ids: np.ndarray, segments: list[tuple[int, int]], categories: Any = CATEGORIES) -> Result:
    """Result of a map and its (id, category id) list; segments without a pixel are left out."""
    listed = []
    for number, category_id in segments:
        label = categories.label(category_id)
        area = int((ids == number).sum())
        if area:
            thing = categories[label].isthing
            listed.append(Segment(number, category_id, label, thing, 1.0, area))
    return Result(
        image_size=ids.shape,
        categories=categories,
        scores=torch.zeros(0),
        labels=torch.zeros(0, dtype=torch.int64),
        boxes=torch.zeros(0, 4),
        panoptic_seg=torch.from_numpy(ids.astype(np.int32)),
        segments_info=tuple(listed),
    )


def meta(image_id: int | str) -> ImageMeta:
    return ImageMeta(image_id, f"{image_id}.jpg", (0, 0), (0, 0))


def write_truth(
    folder: Path, images: dict[Any, tuple[np.ndarray, list[tuple[int, int, bool]]]]
) -> tuple[dict[str, Any], Path]:
    """COCO panoptic file and folder of {image id: (map, (id, category id, is crowd) list)}."""
    folder.mkdir(parents=True, exist_ok=True)
    truth: dict[str, Any] = {"images": [], "annotations": [], "categories": CATEGORIES.to_coco()}
    for image_id, (ids, segments) in images.items():
        rgb = np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)
        Image.fromarray(rgb).save(folder / f"{image_id}.png")
        height, width = ids.shape
        truth["images"].append({"id": image_id, "height": height, "width": width})
        entries = [
            {"id": n, "category_id": c, "iscrowd": int(crowd), "area": int((ids == n).sum())}
            for n, c, crowd in segments
            if (ids == n).any()
        ]
        truth["annotations"].append(
            {"image_id": image_id, "file_name": f"{image_id}.png", "segments_info": entries}
        )
    return truth, folder


def scene(seed: int, images: int = 3) -> tuple[dict[int, Any], dict[int, Any]]:
    """Coarse random maps: exact halves, void, several crowds of one category, ids of 3 bytes."""
    rng = np.random.default_rng(seed)
    truth, found = {}, {}
    for image_id in range(images):
        categories = [2, 2, 5, 1, 9, 2, 5]
        numbers = [1, 300, 70_001, 4, 5, 2_000_006, 7]
        crowd = [False] * 5 + [True, True] if rng.random() < 0.5 else [False] * 5 + [True] * 2
        crowd[0] = bool(rng.random() < 0.2)
        choices = np.array([0, *numbers])
        ids = np.kron(rng.choice(choices, (4, 4)), np.ones((2, 3), int))
        predicted = np.where(rng.random(ids.shape) < 0.7, np.searchsorted(choices, ids), 0)
        predicted[rng.random(ids.shape) < 0.05] = 8
        order = [0, *np.argsort(numbers) + 1]  # searchsorted needs sorted numbers
        lookup = {n: c for n, c in zip(numbers, categories, strict=True)}
        ranked = sorted(choices)
        predicted = np.searchsorted(ranked, ids)
        noise = rng.random(ids.shape)
        predicted[noise < 0.3] = rng.choice([0, 8, 9], int((noise < 0.3).sum()))
        segments = [(rank, lookup[n]) for rank, n in enumerate(ranked) if n]
        segments += [(8, 17 if rng.random() < 0.5 else 2), (9, 1)]
        del order
        segments = [(n, 5 if rng.random() < 0.15 else c) for n, c in segments]
        truth[image_id] = (ids, list(zip(numbers, categories, crowd, strict=True)))
        found[image_id] = (predicted, segments)
    return truth, found
