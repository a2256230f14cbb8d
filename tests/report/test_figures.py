"""The figures against matching written out on plain masks, and where there is nothing to match."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scenes import SIDE, evaluator_of, random_scene
from twin import Thing, confusion, right_or_wrong

from unisolo import Category
from unisolo.config import SHOWN_SCORE
from unisolo.report.confusions import Confusion, compact_matrix, top_mistakes
from unisolo.report.figures import measure

KINDS = 3


@pytest.mark.parametrize("seed", range(12))
def test_matches_are_those_of_the_twin(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scenes = [random_scene(rng, KINDS) for _ in range(6)]
    found = measure(evaluator_of(scenes, KINDS), None)
    kept = [(truth, [p for p in guesses if p.score >= SHOWN_SCORE]) for truth, guesses in scenes]

    expected = sum(confusion(truth, guesses, KINDS) for truth, guesses in kept)
    assert found.confusion.counts.tolist() == expected.tolist()

    verdicts = [
        verdict
        for truth, guesses in scenes
        for verdict in right_or_wrong(truth, guesses)
        if verdict[1] is not None
    ]
    assert found.calibration is not None
    assert found.calibration.count == len(verdicts)
    error = 0.0
    for entry in found.calibration.bins:
        inside = [
            v
            for v in verdicts
            if min(int(float(np.float32(v[0])) * 10), 9) == round(entry.low * 10)
        ]
        assert entry.count == len(inside)
        if inside:
            scores, right = (np.mean(column) for column in zip(*inside, strict=True))
            assert entry.score == pytest.approx(scores, abs=1e-6)
            assert entry.right == pytest.approx(right)
            error += len(inside) / len(verdicts) * abs(scores - right)
    assert found.calibration.error == pytest.approx(error, abs=1e-6)

    for image in found.images:
        truth, guesses = kept[image.image_id // 10 - 1]
        marks = [right for _, right in right_or_wrong(truth, guesses)]
        hits = marks.count(True)
        objects = sum(not other.crowd for other in truth)
        assert (image.found, image.invented, image.missed) == (
            hits,
            marks.count(False),
            objects - hits,
        )


def box(top: int, left: int, bottom: int, right: int) -> np.ndarray:
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def test_a_crowd_forgives_and_is_never_missed() -> None:
    scene = ([Thing(0, box(0, 0, 20, 20), crowd=True)], [Thing(1, box(2, 2, 8, 8), score=0.9)])
    found = measure(evaluator_of([scene], 2), None)
    assert not found.confusion.counts.any()
    assert [row.truth for row in found.categories] == [0, 0]


@pytest.mark.parametrize("iou_types", [("bbox",), ("bbox", "segm")])
def test_nothing_there_and_nothing_found(iou_types: tuple[str, ...]) -> None:
    dot = [Thing(0, box(5, 5, 6, 6))]
    guess = [Thing(0, box(5, 5, 6, 6), score=0.8)]
    nothing = measure(evaluator_of([([], [])], 1, iou_types=iou_types), None)
    assert nothing.iou_type == iou_types[-1]
    assert math.isnan(nothing.categories[0].ap)
    assert (nothing.curves, nothing.calibration, nothing.images) == ([], None, [])

    missed = measure(evaluator_of([(dot, [])], 1, iou_types=iou_types), None)
    assert missed.categories[0].ap == 0
    assert missed.confusion.counts.tolist() == [[0, 1], [0, 0]]
    assert missed.calibration is None

    invented = measure(evaluator_of([([], guess)], 1, iou_types=iou_types), None)
    assert math.isnan(invented.categories[0].ap)
    assert invented.confusion.counts.tolist() == [[0, 0], [1, 0]]

    right = measure(evaluator_of([(dot, guess)], 1, iou_types=iou_types), None)
    assert right.categories[0].ap == pytest.approx(100)
    assert right.curves[0].at75[-1] == pytest.approx(1)
    assert [(row.truth, row.predicted) for row in right.sizes] == [(1, 1), (0, 0), (0, 0)]
    assert right.images[0].quality == 1


def test_of_many_categories_the_confused_pairs_are_shown() -> None:
    size = 133
    counts = np.zeros((size + 1, size + 1), dtype=np.int64)
    np.fill_diagonal(counts, 50)
    counts[100, 101], counts[7, 90], counts[3, size], counts[size, 4] = 30, 20, 9, 8
    table = Confusion([Category(n, f"kind {n}") for n in range(size)], counts)
    first, second = top_mistakes(table)
    assert (first.truth, first.found, first.count) == ("kind 100", "kind 101", 30)
    assert first.share == pytest.approx(30 / 80)
    assert second.count == 20
    matrix = compact_matrix(table)
    assert len(matrix.names) == 20
    assert not matrix.complete
    assert {"kind 100", "kind 101", "kind 7", "kind 90"} <= set(matrix.names)
    row, column = matrix.names.index("kind 100"), matrix.names.index("kind 101")
    assert matrix.counts[row][column] == 30
    assert matrix.shades[row][column] == 2
    small = compact_matrix(
        Confusion(table.categories[:2], counts[np.ix_([0, 1, 133], [0, 1, 133])])
    )
    assert small.complete
    alone = np.zeros((134, 134), dtype=np.int64)
    alone[5, 133] = 1
    assert compact_matrix(Confusion(table.categories, alone)).names == ["kind 5"]
    assert compact_matrix(Confusion(table.categories, 0 * alone)).names == []
    assert small.shades == [[5, 0, 0], [0, 5, 0], [0, 0, 5]]
