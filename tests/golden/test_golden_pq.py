from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pq_twin import pq_counts

from unisolo.categories import Categories, Category
from unisolo.evaluation import PanopticEvaluator
from unisolo.results import Result, Segment
from unisolo.structures import ImageMeta


@pytest.fixture
def case(golden: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    return golden("panoptic_pq_a")


def image_count(case: dict[str, Any]) -> int:
    return sum(name.startswith("gt_map_") for name in case)


def categories_of(case: dict[str, Any]) -> Categories:
    return Categories(
        Category(int(category_id), str(category_id), isthing=category_id < 11)
        for category_id in case["stat_table"][:, 0]
    )


def fill(case: dict[str, Any], folder: Path, backend: str) -> PanopticEvaluator:
    """An evaluator that has seen every image of the case."""
    categories = categories_of(case)
    truth: dict[str, Any] = {"images": [], "annotations": []}
    results, metas = [], []
    for n in range(image_count(case)):
        ids = case[f"gt_map_{n}"]
        rgb = np.stack([ids, ids * 0, ids * 0], axis=-1).astype(np.uint8)
        Image.fromarray(rgb).save(folder / f"{n}.png")
        truth["images"].append({"id": n, "height": ids.shape[0], "width": ids.shape[1]})
        names = ("id", "category_id", "iscrowd", "area")
        segments = [dict(zip(names, row, strict=True)) for row in case[f"gt_segments_{n}"].tolist()]
        truth["annotations"].append(
            {"image_id": n, "file_name": f"{n}.png", "segments_info": segments}
        )
        predicted = []
        for number, category_id, area in case[f"pred_segments_{n}"].tolist():
            label = categories.label(category_id)
            thing = categories[label].isthing
            predicted.append(Segment(number, category_id, label, thing, 1.0, area))
        results.append(
            Result(
                image_size=ids.shape,
                categories=categories,
                scores=torch.zeros(0),
                labels=torch.zeros(0, dtype=torch.int64),
                boxes=torch.zeros(0, 4),
                panoptic_seg=torch.from_numpy(case[f"pred_map_{n}"].astype(np.int32)),
                segments_info=tuple(predicted),
            )
        )
        metas.append(ImageMeta(n, f"{n}.jpg", ids.shape, ids.shape))
    evaluator = PanopticEvaluator(truth, folder, categories, backend)
    evaluator.update(results, metas)
    return evaluator


@pytest.mark.parametrize("backend", ["hotcoco", "official"])
def test_evaluator(case: dict[str, Any], tmp_path: Path, backend: str) -> None:
    if backend == "official":
        pytest.importorskip("panopticapi", reason="pip install --no-deps panopticapi-lite")
    evaluator = fill(case, tmp_path, backend)
    table = [[number, *quality] for number, quality in evaluator.compute_categories().items()]
    np.testing.assert_allclose(table, case["stat_table"], rtol=0, atol=1e-9)
    metrics = evaluator.compute()
    for group, suffix in (("All", ""), ("Things", "_th"), ("Stuff", "_st")):
        for name in ("pq", "sq", "rq"):
            expected = 100 * case["meta"]["results"][group][name]
            found = metrics[f"panoptic/{name.upper()}{suffix}"]
            assert found == pytest.approx(expected, abs=1e-9)


def test_twin(case: dict[str, Any]) -> None:
    table = {int(row[0]): np.zeros(4) for row in case["stat_table"]}
    for n in range(image_count(case)):
        counts = pq_counts(
            case[f"gt_map_{n}"],
            [(row[0], row[1], bool(row[2])) for row in case[f"gt_segments_{n}"].tolist()],
            case[f"pred_map_{n}"],
            [(row[0], row[1]) for row in case[f"pred_segments_{n}"].tolist()],
        )
        for category_id, values in counts.items():
            table[category_id] += values
    found = [[category_id, *values] for category_id, values in table.items()]
    np.testing.assert_allclose(found, case["stat_table"], rtol=0, atol=1e-9)
