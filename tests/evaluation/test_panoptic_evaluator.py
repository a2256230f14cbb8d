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


def result(
    ids: np.ndarray, segments: list[tuple[int, int]], categories: Any = CATEGORIES
) -> Result:
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
    numbers = [1, 4, 5, 7, 300, 70_001, 2_000_006]
    categories = [2, 1, 9, 5, 2, 5, 2]
    truth, found = {}, {}
    for image_id in range(images):
        ids = np.kron(rng.choice([0, *numbers], (4, 4)), np.ones((2, 3), dtype=np.int64))
        crowd = [c in (2, 5) and rng.random() < 0.3 for c in categories]
        truth[image_id] = (ids, list(zip(numbers, categories, crowd, strict=True)))
        predicted = np.searchsorted(numbers, ids, side="right")  # 0 or 1 + place in numbers
        noise = rng.random(ids.shape) < 0.35
        predicted[noise] = rng.choice([0, 8, 9], int(noise.sum()))
        guesses = [5 if rng.random() < 0.15 else c for c in [*categories, 17, 1]]
        found[image_id] = (predicted, list(enumerate(guesses, start=1)))
    return truth, found


def evaluator_of(
    folder: Path, truth: dict[Any, Any], found: dict[Any, Any], backend: str = "hotcoco"
) -> PanopticEvaluator:
    evaluator = PanopticEvaluator(*write_truth(folder, truth), CATEGORIES, backend)
    evaluator.update([result(*entry) for entry in found.values()], [meta(i) for i in found])
    return evaluator


@given(st.integers(0, 100_000))
@settings(max_examples=60)
def test_back_ends_and_twin_agree(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    pytest.importorskip("panopticapi", reason="pip install --no-deps panopticapi-lite")
    truth, found = scene(seed)
    folder = tmp_path_factory.mktemp("truth")
    expected = {category.id: np.zeros(4) for category in CATEGORIES}
    for image_id, (ids, segments) in truth.items():
        painted = set(np.unique(ids))
        predicted, guesses = found[image_id]
        there = set(np.unique(predicted))
        counts = pq_counts(
            ids,
            [entry for entry in segments if entry[0] in painted],
            predicted,
            [entry for entry in guesses if entry[0] in there],
        )
        for category_id, values in counts.items():
            expected[category_id] += values
    averages = []
    for backend in BACKENDS:
        evaluator = evaluator_of(folder, truth, found, backend)
        counted = evaluator.compute_categories()
        assert list(counted) == [category.id for category in CATEGORIES]
        for category_id, quality in counted.items():
            assert quality == pytest.approx(expected[category_id], abs=1e-9), backend
        averages.append(evaluator.compute())
    assert list(averages[0]) == KEYS
    assert averages[0] == pytest.approx(averages[1], abs=1e-8, nan_ok=True)


def test_scenes_have_every_kind_of_match() -> None:
    total = np.zeros(4)
    for seed in range(10):
        truth, found = scene(seed)
        for image_id, (ids, segments) in truth.items():
            predicted, guesses = found[image_id]
            present = [entry for entry in guesses if (predicted == entry[0]).any()]
            painted = [entry for entry in segments if (ids == entry[0]).any()]
            total += sum(pq_counts(ids, painted, predicted, present).values())
    assert (total > 10).all()


@pytest.mark.parametrize("backend", BACKENDS)
class TestByHand:
    def quality(self, tmp_path: Path, backend: str, truth: Any, found: Any) -> dict[str, float]:
        return evaluator_of(tmp_path, truth, found, backend).compute()

    def test_averages(self, tmp_path: Path, backend: str) -> None:
        """Cat: IoU 3/4. Dog: missed. Sky: invented. PQ of the three: 75, 0, 0."""
        ids = np.array([[1, 1, 1, 1], [2, 2, 2, 2], [3, 3, 3, 3]])
        predicted = np.array([[1, 1, 1, 4], [4, 4, 4, 4], [3, 3, 3, 3]])
        truth = {7: (ids, [(1, 2, False), (2, 5, False), (3, 1, False)])}
        found = {7: (predicted, [(1, 2), (3, 1), (4, 9)])}
        metrics = self.quality(tmp_path, backend, truth, found)
        expected = [175 / 4, 175 / 4, 50, 75 / 2, 75 / 2, 50, 50, 50, 50]
        assert metrics == pytest.approx(dict(zip(KEYS, expected, strict=True)))

    def test_exactly_half_is_no_match(self, tmp_path: Path, backend: str) -> None:
        truth = {1: (np.array([[1, 1]]), [(1, 2, False)])}
        metrics = self.quality(tmp_path, backend, truth, {1: (np.array([[1, 0]]), [(1, 2)])})
        assert metrics["panoptic/PQ"] == 0

    def test_empty_predictions_are_zero(self, tmp_path: Path, backend: str) -> None:
        ids = np.array([[1, 2], [1, 0]])
        truth = {n: (ids, [(1, 2, False), (2, 9, False)]) for n in (1, 2)}
        void = np.zeros_like(ids)
        metrics = self.quality(tmp_path, backend, truth, {1: (void, []), 2: (void, [])})
        assert metrics == dict.fromkeys(KEYS, 0.0)

    def test_image_that_never_came_counts_as_missed(self, tmp_path: Path, backend: str) -> None:
        ids = np.full((2, 2), 1)
        truth = {n: (ids, [(1, 2, False)]) for n in (1, 2)}
        with pytest.warns(UserWarning, match="1 of 2 images"):
            metrics = self.quality(tmp_path, backend, truth, {1: (ids, [(1, 2)])})
        assert metrics["panoptic/PQ"] == pytest.approx(100 / 1.5)

    def test_no_stuff_is_undefined_for_stuff_only(self, tmp_path: Path, backend: str) -> None:
        ids = np.ones((2, 2), dtype=np.int64)
        metrics = self.quality(tmp_path, backend, {1: (ids, [(1, 2, False)])}, {1: (ids, [(1, 2)])})
        assert metrics["panoptic/PQ"] == metrics["panoptic/PQ_th"] == 100
        assert math.isnan(metrics["panoptic/PQ_st"])

    def test_only_crowd_and_void_is_undefined(self, tmp_path: Path, backend: str) -> None:
        """Predictions on void, or on crowd of their category, are neither right nor wrong."""
        ids = np.array([[1, 1, 0, 0], [1, 1, 0, 0]])
        predicted = np.array([[1, 1, 2, 2], [1, 1, 2, 2]])
        truth = {1: (ids, [(1, 2, True)])}
        metrics = self.quality(tmp_path, backend, truth, {1: (predicted, [(1, 2), (2, 5)])})
        assert all(math.isnan(value) for value in metrics.values())

    def test_crowd_of_another_category_is_no_excuse(self, tmp_path: Path, backend: str) -> None:
        ids = np.ones((2, 2), dtype=np.int64)
        metrics = self.quality(tmp_path, backend, {1: (ids, [(1, 2, True)])}, {1: (ids, [(1, 5)])})
        assert metrics["panoptic/PQ"] == 0


def test_states_of_two_processes_merge(tmp_path: Path) -> None:
    truth, found = scene(3, images=4)
    whole = evaluator_of(tmp_path, truth, found).compute()
    shards = [PanopticEvaluator(*write_truth(tmp_path, truth), CATEGORIES) for _ in range(2)]
    for image_id, entry in found.items():
        shards[image_id % 2].update([result(*entry)], [meta(image_id)])
    states = [pickle.loads(pickle.dumps(shard.state())) for shard in shards]
    shards[1].merge(states)
    assert shards[1].compute() == pytest.approx(whole, abs=1e-9, nan_ok=True)
    with pytest.raises(ValueError, match="evaluated twice"):
        shards[0].merge([states[0], states[0]])


def test_compute_twice_and_reset(tmp_path: Path) -> None:
    truth, found = scene(4)
    for backend in BACKENDS:
        if backend == "official":
            pytest.importorskip("panopticapi")
        evaluator = evaluator_of(tmp_path, truth, found, backend)
        assert evaluator.compute() == evaluator.compute()
        evaluator.reset()
        assert evaluator.state() == []


def test_nothing_dense_is_kept(tmp_path: Path) -> None:
    ids = np.kron(np.arange(1, 13).reshape(3, 4), np.ones((160, 160), dtype=np.int64))
    segments = [(n, 2) for n in range(1, 13)]
    evaluator = evaluator_of(tmp_path, {1: (ids, [(n, 2, False) for n, _ in segments])}, {})
    before = len(pickle.dumps(evaluator))
    evaluator.update([result(ids, segments)], [meta(1)])
    assert len(pickle.dumps(evaluator)) - before < ids.size / 50


def test_save_writes_what_panopticapi_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluation = pytest.importorskip("panopticapi.evaluation")
    truth, found = scene(5)
    evaluator = evaluator_of(tmp_path / "truth", truth, found)
    paths = evaluator.save(tmp_path / "out")
    files = {path for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert files == set(paths)
    saved = json.loads((tmp_path / "out" / "panoptic.json").read_text())
    assert {"images", "annotations", "categories"} <= set(saved)
    for entry, (ids, _) in zip(saved["annotations"], found.values(), strict=True):
        png = np.array(Image.open(tmp_path / "out" / "panoptic" / entry["file_name"]))
        assert np.array_equal(png @ [1, 256, 65536], ids)
        assert all(s["area"] == (ids == s["id"]).sum() for s in entry["segments_info"])
    (tmp_path / "truth.json").write_text(json.dumps(write_truth(tmp_path / "truth", truth)[0]))
    stat = evaluation.pq_compute_single_core(
        0,
        list(
            zip(
                json.loads((tmp_path / "truth.json").read_text())["annotations"],
                saved["annotations"],
                strict=True,
            )
        ),
        str(tmp_path / "truth"),
        str(tmp_path / "out" / "panoptic"),
        {category["id"]: category for category in saved["categories"]},
    )
    for category_id, quality in evaluator.compute_categories().items():
        assert quality.iou == pytest.approx(stat[category_id].iou, abs=1e-9)


def test_predictions_that_cannot_be_are_refused(tmp_path: Path) -> None:
    ids = np.ones((2, 3), dtype=np.int64)
    truth = {n: (ids, [(1, 2, False)]) for n in (1, 2)}
    evaluator = evaluator_of(tmp_path, truth, {1: (ids, [(1, 2)])})
    good = result(ids, [(1, 2)])
    with pytest.raises(ValueError, match="image 1 was evaluated twice"):
        evaluator.update([good], [meta(1)])
    with pytest.raises(ValueError, match="image id 3 is not among"):
        evaluator.update([good], [meta(3)])
    with pytest.raises(ValueError, match=r"\(3, 2\), the ground truth \(2, 3\)"):
        evaluator.update([result(ids.T, [(1, 2)])], [meta(2)])
    with pytest.raises(ValueError, match="no panoptic map"):
        fields = ("image_size", "categories", "scores", "labels", "boxes")
        evaluator.update([Result(*(getattr(good, name) for name in fields))], [meta(2)])
    with pytest.raises(ValueError, match="category id 30"):
        other = Categories([Category(30, "fish")])
        evaluator.update([result(ids, [(1, 30)], other)], [meta(2)])


def test_wrong_truth_or_options_are_refused(tmp_path: Path) -> None:
    ids = np.ones((2, 3), dtype=np.int64)
    truth, folder = write_truth(tmp_path, {1: (ids, [(1, 2, False)])})

    def refuse(match: str, change: Callable[[dict[str, Any]], Any]) -> None:
        wrong = json.loads(json.dumps(truth))
        change(wrong)
        with pytest.raises(ValueError, match=match):
            PanopticEvaluator(wrong, folder, CATEGORIES)

    refuse("no annotation", lambda t: t["annotations"].clear())
    refuse("'images' lacks it", lambda t: t["images"].clear())
    refuse("category id 3", lambda t: t["annotations"][0]["segments_info"][0].update(category_id=3))
    refuse("lacks", lambda t: t["images"][0].pop("height"))
    with pytest.raises(ValueError, match="backend"):
        PanopticEvaluator(truth, folder, CATEGORIES, backend="numpy")
    with pytest.raises(ValueError, match="folder"):
        PanopticEvaluator(truth, tmp_path / "no", CATEGORIES)


def test_official_without_panopticapi_names_the_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    truth, found = scene(6)
    evaluator = evaluator_of(tmp_path, truth, found, "official")
    monkeypatch.setitem(sys.modules, "panopticapi.evaluation", None)
    with pytest.raises(ImportError, match="--no-deps panopticapi-lite"):
        evaluator.compute()
