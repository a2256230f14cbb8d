"""The evaluator of docs/examples/semantic/semantic.py, against loops over pixels."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from tiny_coco import MIXED, SPLIT, TinyCoco, write_tiny_coco

from unisolo.data import CocoPanoptic
from unisolo.results import Result, Segment
from unisolo.structures import ImageMeta


@pytest.fixture
def tiny(tmp_path: Path) -> TinyCoco:
    return write_tiny_coco(tmp_path / "tiny")


def evaluator(semantic: ModuleType, dataset: CocoPanoptic) -> Any:
    (found,) = semantic.SemanticTask(dataset.categories).make_evaluators(dataset)
    return found


def random_results(dataset: CocoPanoptic, seed: int = 0) -> list[tuple[Result, ImageMeta]]:
    """Blocks of random categories and of void for every image but the last."""
    rng = np.random.default_rng(seed)
    pairs = []
    for index in range(len(dataset) - 1):
        meta = dataset[index].meta
        height, width = meta.orig_size
        coarse = rng.integers(0, len(dataset.categories) + 1, (height // 4 + 1, width // 4 + 1))
        ids = torch.from_numpy(coarse.repeat(4, 0).repeat(4, 1)[:height, :width].astype(np.int32))
        segments = tuple(
            Segment(n, category.id, n - 1, category.isthing, 1.0, int((ids == n).sum()))
            for n, category in enumerate(dataset.categories, start=1)
            if (ids == n).any()
        )
        empty = torch.zeros(0)
        pairs.append(
            (
                Result(meta.orig_size, dataset.categories, empty, empty.long(), torch.zeros(0, 4),
                       panoptic_seg=ids, segments_info=segments),
                meta,
            )
        )  # fmt: skip
    return pairs


def brute_force(tiny: TinyCoco, dataset: CocoPanoptic, pairs: Any) -> dict[str, float]:
    """The metrics by their definition, category by category and pixel set by pixel set."""
    found = {meta.image_id: result for result, meta in pairs}
    inter = dict.fromkeys(range(len(dataset.categories)), 0)
    union, right, total = dict(inter), 0, 0
    for image_id, ids in tiny.pngs.items():
        truth = np.full(ids.shape, -1)
        for segment in tiny.segments(image_id):
            if not segment["iscrowd"]:
                truth[ids == segment["id"]] = dataset.categories.label(segment["category_id"])
        guess = np.full(ids.shape, -1)
        if image_id in found:
            for segment in found[image_id].segments_info:
                guess[found[image_id].panoptic_seg.numpy() == segment.id] = segment.label
        scored = truth >= 0
        right += int((scored & (truth == guess)).sum())
        total += int(scored.sum())
        for label in inter:
            inter[label] += int((scored & (truth == label) & (guess == label)).sum())
            union[label] += int((scored & ((truth == label) | (guess == label))).sum())
    iou = {label: 100 * inter[label] / union[label] for label in inter if union[label]}
    things = dataset.categories.num_things

    def mean(labels: Any) -> float:
        values = [iou[label] for label in labels if label in iou]
        return sum(values) / len(values) if values else math.nan

    return {
        "semantic/mIoU": mean(range(len(inter))),
        "semantic/mIoU_th": mean(range(things)),
        "semantic/mIoU_st": mean(range(things, len(inter))),
        "semantic/accuracy": 100 * right / total,
    }


def test_metrics_equal_the_brute_force(semantic: ModuleType, tiny: TinyCoco) -> None:
    dataset = CocoPanoptic.from_root(tiny.root, SPLIT)
    for seed in range(3):
        scored, pairs = evaluator(semantic, dataset), random_results(dataset, seed)
        for result, meta in pairs:
            scored.update([result], [meta])
        with pytest.warns(UserWarning, match="1 of 5 images were never given"):
            metrics = scored.compute()
        assert metrics == pytest.approx(brute_force(tiny, dataset, pairs), abs=1e-9)
        assert 0 < metrics["semantic/mIoU"] < 100


def test_the_truth_itself_scores_100(semantic: ModuleType, tiny: TinyCoco) -> None:
    dataset = CocoPanoptic.from_root(tiny.root, SPLIT)
    scored = evaluator(semantic, dataset)
    for index in range(len(dataset)):
        meta = dataset[index].meta
        ids = torch.from_numpy(tiny.pngs[int(meta.image_id)].astype(np.int32))
        segments = tuple(
            Segment(s["id"], s["category_id"], dataset.categories.label(s["category_id"]), False,
                    1.0, s["area"])
            for s in tiny.segments(int(meta.image_id))
        )  # fmt: skip
        result = Result(meta.orig_size, dataset.categories, torch.zeros(0), torch.zeros(0).long(),
                        torch.zeros(0, 4), panoptic_seg=ids, segments_info=segments)  # fmt: skip
        scored.update([result], [meta])
    assert set(scored.compute().values()) == {100.0}


def test_shares_of_processes_and_files_give_the_whole(
    semantic: ModuleType, tiny: TinyCoco, tmp_path: Path
) -> None:
    dataset = CocoPanoptic.from_root(tiny.root, SPLIT)
    pairs = random_results(dataset)
    whole, *shares = (evaluator(semantic, dataset) for _ in range(4))
    whole.update(*zip(*pairs, strict=True))
    for number, (result, meta) in enumerate(pairs):
        shares[number % 2].update([result], [meta])
    shares[2].merge([shares[0].state(), shares[1].state()])
    assert (shares[2].confusion() == whole.confusion()).all()
    with pytest.raises(ValueError, match="evaluated twice"):
        shares[2].merge([shares[0].state(), shares[0].state()])
    (path,) = whole.save(tmp_path / "out")
    again = evaluator(semantic, dataset)
    again.merge([json.loads(path.read_text())["counts"]])
    assert (again.confusion() == whole.confusion()).all()
    again.reset()
    assert int(again.confusion()[:-1, :-1].sum()) == 0
    with pytest.raises(ValueError, match="has no map"):
        again.update([pairs[0][0].__class__(**{**vars(pairs[0][0]), "panoptic_seg": None,
                                               "segments_info": None})], [pairs[0][1]])  # fmt: skip


def test_nothing_to_score_is_nan(semantic: ModuleType, tiny: TinyCoco) -> None:
    tiny.panoptic["images"] = [i for i in tiny.panoptic["images"] if i["id"] == MIXED]
    entry = next(e for e in tiny.panoptic["annotations"] if e["image_id"] == MIXED)
    tiny.panoptic["annotations"] = [{**entry, "segments_info": []}]
    tiny.pngs[MIXED][:] = 0
    tiny.write()
    dataset = CocoPanoptic.from_root(tiny.root, SPLIT)
    with pytest.warns(UserWarning, match="never given"):
        assert all(math.isnan(value) for value in evaluator(semantic, dataset).compute().values())
