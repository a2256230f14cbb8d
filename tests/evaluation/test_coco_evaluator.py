from __future__ import annotations

import copy
import json
import math
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as rle_ops

from unisolo.categories import Categories, Category
from unisolo.evaluation import CocoEvaluator
from unisolo.ops.boxes import masks_to_boxes
from unisolo.ops.masks import pack_bits
from unisolo.results import Result
from unisolo.structures import ImageMeta

pytestmark = pytest.mark.filterwarnings(
    # pycocotools' own, under numpy 2
    "ignore:.*__array__.*:DeprecationWarning"
)

CATEGORIES = Categories(
    [
        Category(2, "common"),
        Category(5, "never predicted"),
        Category(17, "never in the truth"),
        Category(40, "also common"),
        Category(9, "grass", isthing=False),
    ]
)
SIZE = (150, 210)
KEYS = [
    f"{kind}/{name}"
    for kind in ("bbox", "segm")
    for name in ["AP", "AP50", "AP75", "APs", "APm", "APl"]
]


def result(masks: np.ndarray, labels: Any, scores: Any, size: tuple[int, int] = SIZE) -> Result:
    tensor = torch.from_numpy(masks.reshape(-1, *size).astype(bool))
    return Result(
        image_size=size,
        categories=CATEGORIES,
        scores=torch.tensor(scores, dtype=torch.float32),
        labels=torch.tensor(labels, dtype=torch.int64),
        boxes=masks_to_boxes(tensor),
        packed_masks=pack_bits(tensor),
    )


def meta(image_id: int | str, size: tuple[int, int] = SIZE) -> ImageMeta:
    return ImageMeta(
        image_id=image_id, file_name=f"{image_id}.jpg", orig_size=size, input_size=size
    )


def nothing() -> Result:
    return result(np.zeros((0, *SIZE)), [], [])


def rectangle(x: int, y: int, width: int, height: int) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[y : y + height, x : x + width] = True
    return mask


def annotation(number: int, image_id: int | str, category_id: int, mask: np.ndarray) -> dict:
    rle = rle_ops.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {
        "id": number,
        "image_id": image_id,
        "category_id": category_id,
        "iscrowd": 0,
        "area": int(mask.sum()),
        "bbox": rle_ops.toBbox(rle).tolist(),
        "segmentation": {"size": list(SIZE), "counts": rle["counts"].decode()},
    }


def dataset(image_ids: list[Any], annotations: list[dict]) -> dict[str, Any]:
    images = [{"id": i, "height": SIZE[0], "width": SIZE[1]} for i in image_ids]
    return {"images": images, "annotations": annotations, "categories": CATEGORIES.to_coco()}


def scene(seed: int) -> tuple[dict[str, Any], list[tuple[Result, ImageMeta]]]:
    """Six images of small, medium and large ellipses, among them: crowd, polygons, plain counts,
    an image without truth, one without predictions, one with neither, exact ties of score."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    image_ids = [31, 4, 159, 26, 53, 5]
    annotations: list[dict] = []
    predictions = []
    for place, image_id in enumerate(image_ids):
        masks, labels, scores = [], [], []
        for _ in range(rng.integers(3, 9)):
            centre = rng.integers(0, SIZE)
            radius = rng.choice([6, 25, 70]) * rng.uniform(0.7, 1.3, 2)
            category = int(rng.choice([0, 0, 1, 3]))

            def ellipse(shift: float, centre=centre, radius=radius) -> np.ndarray:
                y = (rows - centre[0] - shift) / radius[0]
                x = (columns - centre[1]) / radius[1]
                return y**2 + x**2 <= 1

            mask = ellipse(0)
            if not mask.any():
                continue
            if place not in (1, 5):
                entry = annotation(len(annotations), image_id, CATEGORIES.id(category), mask)
                kind = rng.integers(4)
                if kind == 0:
                    entry["iscrowd"] = 1
                elif kind == 1:
                    y, x, h, w = centre[0], centre[1], radius[0], radius[1]
                    parts = [[x, y, x + w, y, x, y + h], [x - w, y - h, x - 2, y - h, x - 2, y - 2]]
                    entry["segmentation"] = [[float(v) for v in part] for part in parts]
                    entry["area"] = float(h * w)
                elif kind == 2:
                    flat = np.concatenate([[0], mask.T.reshape(-1).astype(int), [2]])
                    counts = np.diff(np.flatnonzero(np.diff(flat)), prepend=0).tolist()
                    entry["segmentation"] = {"size": list(SIZE), "counts": counts}
                annotations.append(entry)
            for _ in range(rng.integers(0, 3)):
                masks.append(ellipse(rng.normal() * radius[0] * 0.2))
                labels.append(category if rng.random() < 0.8 and category != 1 else 2)
                scores.append(round(float(rng.random()), 1))
        if place in (2, 5):
            masks, labels, scores = [], [], []
        predictions.append((result(np.array(masks), labels, scores), meta(image_id)))
    return dataset(image_ids, annotations), predictions


def evaluate(truth: dict, predictions: Any, **options: Any) -> dict[str, float]:
    evaluator = CocoEvaluator(truth, CATEGORIES, **options)
    evaluator.update([r for r, _ in predictions], [m for _, m in predictions])
    return evaluator.compute()


@given(st.integers(0, 10_000))
@settings(max_examples=15)
def test_back_ends_agree(seed: int) -> None:
    truth, predictions = scene(seed)
    before = copy.deepcopy(truth)
    fast = evaluate(truth, predictions)
    official = evaluate(truth, predictions, backend="official")
    assert truth == before
    assert list(fast) == list(official) == KEYS
    assert fast == pytest.approx(official, abs=1e-6, nan_ok=True)


def test_scenes_are_neither_perfect_nor_hopeless() -> None:
    metrics = evaluate(*scene(0))
    assert 5 < metrics["segm/AP"] < 60
    assert metrics["segm/AP"] != metrics["bbox/AP"]


@pytest.mark.parametrize("backend", ["hotcoco", "official"])
class TestByHand:
    def test_one_hit_one_miss(self, backend: str) -> None:
        """One of two objects found exactly: precision 1 up to recall 0.5, 51 of 101 points."""
        objects = [rectangle(10, 10, 40, 40), rectangle(100, 50, 40, 40)]
        truth = dataset([1], [annotation(n, 1, 2, mask) for n, mask in enumerate(objects)])
        metrics = evaluate(truth, [(result(objects[0], [0], [0.3]), meta(1))], backend=backend)
        assert metrics["segm/AP"] == metrics["bbox/AP"] == pytest.approx(100 * 51 / 101)
        assert metrics["segm/APm"] == pytest.approx(100 * 51 / 101)
        assert math.isnan(metrics["segm/APs"])
        assert math.isnan(metrics["bbox/APl"])

    def test_annotation_id_zero_is_no_different(self, backend: str) -> None:
        mask = rectangle(10, 10, 40, 40)
        truth = dataset([0], [annotation(0, 0, 2, mask)])
        metrics = evaluate(truth, [(result(mask, [0], [0.3]), meta(0))], backend=backend)
        assert metrics["segm/AP"] == pytest.approx(100)

    def test_no_prediction_anywhere_is_zero(self, backend: str) -> None:
        truth = dataset([1, 2], [annotation(1, 1, 2, rectangle(10, 10, 40, 40))])
        predictions = [(nothing(), meta(1)), (nothing(), meta(2))]
        metrics = evaluate(truth, predictions, backend=backend)
        assert metrics["segm/AP"] == metrics["bbox/AP"] == metrics["bbox/APm"] == 0.0
        assert math.isnan(metrics["bbox/APs"])

    def test_no_truth_is_undefined(self, backend: str) -> None:
        mask = rectangle(0, 0, 9, 9)
        for predicted in (nothing(), result(mask, [0], [1.0])):
            metrics = evaluate(dataset([1], []), [(predicted, meta(1))], backend=backend)
            assert all(math.isnan(value) for value in metrics.values())

    def test_detections_in_a_crowd_are_ignored(self, backend: str) -> None:
        crowd = {**annotation(1, 1, 2, rectangle(0, 0, 100, 100)), "iscrowd": 1}
        lone = rectangle(120, 20, 40, 40)
        truth = dataset([1], [crowd, annotation(2, 1, 2, lone)])
        inside = [rectangle(10 * n, 10, 8, 60) for n in range(5)]
        found = result(np.stack([*inside, lone]), [0] * 6, [0.9] * 5 + [0.1])
        metrics = evaluate(truth, [(found, meta(1))], backend=backend)
        assert metrics["segm/AP"] == metrics["bbox/AP"] == pytest.approx(100)

    def test_only_crowd_is_undefined(self, backend: str) -> None:
        mask = rectangle(0, 0, 100, 100)
        truth = dataset([1], [{**annotation(1, 1, 2, mask), "iscrowd": 1}])
        metrics = evaluate(truth, [(result(mask, [0], [0.3]), meta(1))], backend=backend)
        assert all(math.isnan(value) for value in metrics.values())

    def test_image_that_never_came_counts_as_missed(self, backend: str) -> None:
        mask = rectangle(10, 10, 40, 40)
        truth = dataset([1, 2], [annotation(n, n, 2, mask) for n in (1, 2)])
        with pytest.warns(UserWarning, match="1 of 2 images"):
            metrics = evaluate(truth, [(result(mask, [0], [1.0]), meta(1))], backend=backend)
        assert metrics["segm/AP"] == pytest.approx(100 * 51 / 101)

    def test_at_most_a_hundred_detections(self, backend: str) -> None:
        mask = rectangle(10, 10, 40, 40)
        truth = dataset([1], [annotation(1, 1, 2, mask)])
        others = [rectangle(n, 100, 10, 10) for n in range(100)]
        found = result(np.stack([*others, mask]), [0] * 101, [0.9] * 100 + [0.1])
        assert evaluate(truth, [(found, meta(1))], backend=backend)["segm/AP"] == 0
        assert evaluate(truth, [(found[1:], meta(1))], backend=backend)["segm/AP"] > 0.5

    def test_size_of_a_mask_is_its_own_not_its_box(self, backend: str) -> None:
        """A false thin diagonal is small as a mask, whatever its box: it must not cost APm."""
        mask = rectangle(10, 10, 40, 40)
        truth = dataset([1], [annotation(1, 1, 2, mask)])
        diagonal = np.zeros(SIZE, bool)
        diagonal[np.arange(60, 120), np.arange(60, 120)] = True
        found = result(np.stack([diagonal, mask]), [0, 0], [0.9, 0.5])
        metrics = evaluate(truth, [(found, meta(1))], backend=backend)
        assert metrics["segm/APm"] == pytest.approx(100)
        assert metrics["segm/AP"] == metrics["bbox/APm"] == pytest.approx(50)

    def test_names_as_image_ids(self, backend: str) -> None:
        mask = rectangle(10, 10, 40, 40)
        truth = dataset(["b", "a"], [annotation(1, "a", 2, mask)])
        predictions = [(result(mask, [0], [1.0]), meta("a")), (nothing(), meta("b"))]
        assert evaluate(truth, predictions, backend=backend)["segm/AP"] == pytest.approx(100)


def test_absent_fields_of_the_truth_are_filled_in() -> None:
    mask = rectangle(10, 10, 40, 40)
    whole = annotation(1, 1, 2, mask)
    polygon = {**whole, "segmentation": [[10, 10, 50, 10, 50, 50, 10, 50]]}
    start = 10 * SIZE[0] + 10  # ten columns, then ten pixels
    runs = [start, *[40, SIZE[0] - 40] * 40]
    runs[-1] += SIZE[0] * SIZE[1] - sum(runs)
    counts = {**whole, "segmentation": {"size": list(SIZE), "counts": runs}}
    for given_truth in (whole, polygon, counts):
        bare = {k: v for k, v in given_truth.items() if k not in ("area", "bbox", "iscrowd", "id")}
        metrics = evaluate(dataset([1], [bare]), [(result(mask, [0], [1.0]), meta(1))])
        assert metrics["segm/APm"] == metrics["bbox/APm"] == pytest.approx(100)
    box_only = {"image_id": 1, "category_id": 2, "bbox": whole["bbox"]}
    found = [(result(mask, [0], [1.0]), meta(1))]
    metrics = evaluate(dataset([1], [box_only]), found, iou_types=("bbox",))
    assert list(metrics) == KEYS[:6]
    assert metrics["bbox/APm"] == pytest.approx(100)
    with pytest.raises(ValueError, match="has no 'segmentation'"):
        CocoEvaluator(dataset([1], [box_only]), CATEGORIES)


def test_stuff_annotations_are_left_out() -> None:
    mask = rectangle(10, 10, 40, 40)
    truth = dataset([1], [annotation(1, 1, 2, mask), annotation(2, 1, 9, mask)])
    found = [(result(mask, [0], [1.0]), meta(1))]
    assert evaluate(truth, found)["segm/AP"] == pytest.approx(100)


def test_states_of_two_processes_merge(tmp_path: Path) -> None:
    truth, predictions = scene(1)
    whole = evaluate(truth, predictions)
    shards = [CocoEvaluator(truth, CATEGORIES) for _ in range(2)]
    for shard, evaluator in enumerate(shards):
        for predicted, its_meta in predictions[shard::2]:
            evaluator.update([predicted], [its_meta])
    states = [pickle.loads(pickle.dumps(evaluator.state())) for evaluator in shards]
    shards[0].merge(states)
    assert shards[0].compute() == pytest.approx(whole, abs=1e-9, nan_ok=True)
    with pytest.raises(ValueError, match="evaluated twice"):
        shards[1].merge([states[1], states[1]])


def test_reset_forgets() -> None:
    truth, predictions = scene(1)
    evaluator = CocoEvaluator(truth, CATEGORIES)
    for _ in range(2):
        evaluator.update([r for r, _ in predictions], [m for _, m in predictions])
        evaluator.reset()
    assert evaluator.state() == []


def test_nothing_dense_is_kept() -> None:
    evaluator = CocoEvaluator(dataset([1], []), CATEGORIES)
    masks = np.stack([rectangle(n, n, 50, 50) for n in range(50)])
    evaluator.update([result(masks, [0] * 50, [0.5] * 50)], [meta(1)])
    assert len(pickle.dumps(evaluator)) < masks.size / 50


def test_save_writes_results_that_pycocotools_loads(tmp_path: Path) -> None:
    from pycocotools.coco import COCO

    truth, predictions = scene(2)
    evaluator = CocoEvaluator(truth, CATEGORIES)
    evaluator.update([r for r, _ in predictions], [m for _, m in predictions])
    assert evaluator.save(tmp_path / "new") == [tmp_path / "new" / "results.json"]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["results.json"]
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    loaded = COCO(str(tmp_path / "truth.json")).loadRes(str(tmp_path / "new" / "results.json"))
    assert len(loaded.anns) == sum(len(r) for r, _ in predictions)


def test_save_without_predictions_is_an_empty_list(tmp_path: Path) -> None:
    (path,) = CocoEvaluator(dataset([1], []), CATEGORIES).save(tmp_path)
    assert json.loads(path.read_text()) == []


def test_predictions_that_cannot_be_are_refused() -> None:
    evaluator = CocoEvaluator(dataset([1, 2], []), CATEGORIES)
    evaluator.update([nothing()], [meta(1)])
    with pytest.raises(ValueError, match="image 1 was evaluated twice"):
        evaluator.update([nothing()], [meta(1)])
    with pytest.raises(ValueError, match="image id 3 is not among"):
        evaluator.update([nothing()], [meta(3)])
    turned = result(np.zeros((0, *SIZE[::-1])), [], [], SIZE[::-1])
    with pytest.raises(ValueError, match=r"\(210, 150\), the ground truth \(150, 210\)"):
        evaluator.update([turned], [meta(2)])
    with pytest.raises(ValueError, match="no masks"):
        boxes = Result(
            SIZE, CATEGORIES, *(getattr(nothing(), n) for n in ("scores", "labels", "boxes"))
        )
        evaluator.update([boxes], [meta(2)])
    with pytest.raises(ValueError, match="category id 9"):
        evaluator.update([result(rectangle(0, 0, 5, 5), [4], [1.0])], [meta(2)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluator.update([nothing()], [meta(2)])  # what was refused has left no trace
        evaluator.compute()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"image_id": 8}, "image id 8"),
        ({"category_id": 3}, "category id 3"),
        ({"segmentation": []}, "segmentation"),
    ],
)
def test_wrong_truth_is_refused(change: dict, match: str) -> None:
    wrong = {**annotation(1, 1, 2, rectangle(0, 0, 5, 5)), **change}
    with pytest.raises(ValueError, match=match):
        CocoEvaluator(dataset([1], [wrong]), CATEGORIES)


def test_wrong_options_are_refused() -> None:
    with pytest.raises(ValueError, match="backend"):
        CocoEvaluator(dataset([1], []), CATEGORIES, backend="fast")
    with pytest.raises(ValueError, match="iou_types"):
        CocoEvaluator(dataset([1], []), CATEGORIES, iou_types=("box",))
    with pytest.raises(ValueError, match="appears twice"):
        CocoEvaluator(dataset([1, 1], []), CATEGORIES)
    with pytest.raises(ValueError, match="lacks"):
        CocoEvaluator({"images": [{"id": 1}], "annotations": []}, CATEGORIES)
