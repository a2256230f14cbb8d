"""The classic ways to prune, against loops that can be read at a glance."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from unisolo.benchmark.postprocess.classic_nms import (
    fast_nms,
    greedy_nms,
    greedy_nms_by_iou,
    mask_iou,
    soft_nms,
)

Case = tuple[Tensor, Tensor, Tensor]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    count, pixels = draw(st.integers(0, 12)), draw(st.integers(1, 40))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    masks = torch.rand(count, pixels, generator=generator) < draw(st.sampled_from([0.2, 0.6, 0.9]))
    labels = torch.randint(0, draw(st.integers(1, 3)), (count,), generator=generator)
    # Few values: ties are common.
    scores = torch.randint(1, 6, (count,), generator=generator) / 5
    return masks, labels, scores


def iou_of(first: Tensor, second: Tensor) -> float:
    union = int((first | second).sum())
    return int((first & second).sum()) / union if union else 0.0


def better_first(scores: Tensor) -> list[int]:
    return sorted(range(len(scores)), key=lambda index: (-float(scores[index]), index))


@settings(max_examples=60, deadline=None)
@given(cases())
def test_iou(case: Case) -> None:
    masks = case[0]
    found = mask_iou(masks)
    for i in range(len(masks)):
        for j in range(len(masks)):
            assert math.isclose(float(found[i, j]), iou_of(masks[i], masks[j]), abs_tol=1e-6)


@settings(max_examples=60, deadline=None)
@given(cases(), st.sampled_from([0.3, 0.45, 0.71]))
def test_greedy(case: Case, threshold: float) -> None:
    masks, labels, scores = case
    kept: list[int] = []
    for index in better_first(scores):
        rivals = (other for other in kept if labels[other] == labels[index])
        if all(iou_of(masks[other], masks[index]) <= threshold for other in rivals):
            kept.append(index)
    expected = [index in kept for index in range(len(scores))]
    assert greedy_nms(masks, labels, scores, threshold=threshold).tolist() == expected
    by_iou = greedy_nms_by_iou(mask_iou(masks), labels, scores, threshold=threshold)
    assert by_iou.tolist() == expected


@settings(max_examples=60, deadline=None)
@given(cases(), st.sampled_from([0.3, 0.45, 0.71]))
def test_fast(case: Case, threshold: float) -> None:
    masks, labels, scores = case
    order = better_first(scores)
    expected = [True] * len(scores)
    for place, index in enumerate(order):
        rivals = (other for other in order[:place] if labels[other] == labels[index])
        expected[index] = all(iou_of(masks[other], masks[index]) <= threshold for other in rivals)
    assert fast_nms(mask_iou(masks), labels, scores, threshold=threshold).tolist() == expected


@settings(max_examples=60, deadline=None)
@given(cases())
def test_soft(case: Case) -> None:
    masks, labels, scores = case
    left = {index: float(score) for index, score in enumerate(scores)}
    expected = [0.0] * len(scores)
    while left:
        best = max(left, key=lambda index: (left[index], -index))
        expected[best] = left.pop(best)
        for other in left:
            if labels[other] == labels[best]:
                left[other] *= math.exp(-(iou_of(masks[other], masks[best]) ** 2) / 0.5)
    found = soft_nms(mask_iou(masks), labels, scores)
    # Sorted: where decay makes two scores equal but for rounding, either may go first.
    torch.testing.assert_close(
        found.sort().values, torch.tensor(expected).sort().values, rtol=0, atol=1e-5
    )
