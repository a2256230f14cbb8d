"""Matrix NMS on counted intersections, and the best of what it leaves, without sorting anything.

"i before j" is a comparison of scores, so nothing has to be in order: the first kernel takes for
every mask the highest IoU with masks before it, the second the decay, the third counts for every
candidate how many come before it, which is its place in the result. Each program has a few
candidates and goes through all others, so every kernel reads the matrix at most once, along its
rows (it is symmetric), and only where the labels are equal.

Three launches, because each needs all of what the one before it has made.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from unisolo.ops.kernels.intersections import packed_intersections
from unisolo.ops.kernels.launch import jit, on_device_of
from unisolo.ops.kernels.packed import pack_masks
from unisolo.ops.matrix_nms import NmsKernel, check_instances

__all__ = ["Kept", "decay_scores", "keep_best", "keep_top", "matrix_nms"]

OWN = 2
"""Candidates per program: enough programs for all of a GPU's processors at 300 candidates."""

OTHERS = 512
"""Candidates that each is compared with at a time: the usual 500 in one turn, since a turn waits
for memory twice (the labels, then the intersections where they are equal)."""

SMALLEST = tl.constexpr(torch.finfo(torch.float32).tiny)


class Kept(NamedTuple):
    """The best K candidates of each image by decayed score; empty places come last.

    Attributes:
        scores: [B, K] float32, decayed; 0 in empty places.
        labels: [B, K] int64; 0 in empty places.
        cells: [B, K] int64; 0 in empty places.
        candidates: [B, K] int64, which of the N candidates it is; -1 in empty places.
        valid: [B, K] bool, whether the place is filled.
    """

    scores: Tensor
    labels: Tensor
    cells: Tensor
    candidates: Tensor
    valid: Tensor


def matrix_nms(
    masks: Tensor,
    labels: Tensor,
    scores: Tensor,
    *,
    kernel: NmsKernel = "gaussian",
    sigma: float = 2.0,
    chunk_pixels: int | None = None,
) -> Tensor:
    """See `unisolo.ops.matrix_nms.matrix_nms`, of which this is the twin.

    `chunk_pixels` has nothing to limit: pixels become bits, never floats.
    """
    check_instances((*masks.shape[:-2], masks.shape[-3]), labels, scores, kernel, sigma)
    if scores.numel() == 0:
        return scores.float()
    batch = (1,) * (4 - masks.ndim)
    masks, labels, scores = (
        field.reshape(*batch, *field.shape) for field in (masks, labels, scores)
    )
    intersections = packed_intersections(pack_masks(masks.flatten(2)), labels, scores)
    decayed = decay_scores(intersections, labels, scores, kernel=kernel, sigma=sigma)
    return decayed[0] if batch else decayed


def decay_scores(
    intersections: Tensor,
    labels: Tensor,
    scores: Tensor,
    *,
    kernel: NmsKernel = "gaussian",
    sigma: float = 2.0,
) -> Tensor:
    """Lower scores as `unisolo.ops.matrix_nms.decay_factors` says.

    Args:
        intersections: [B, N, N] int32, symmetric, areas on the diagonal; only read where the labels
            are equal and neither score is 0.
        labels: [B, N] integer.
        scores: [B, N] floating, at least 0, any order; candidates with score 0 lower no other's.
        kernel: "gaussian" or "linear".
        sigma: Strength of the gaussian kernel, above 0.

    Returns:
        [B, N] float32, scores times their factors.

    Raises:
        ValueError: On a wrong rank, dtype, length, kernel or sigma.
    """
    check_instances(intersections.shape, labels, scores, kernel, sigma)
    batch_size, count = scores.shape
    decayed = torch.empty(batch_size, count, dtype=torch.float32, device=scores.device)
    if decayed.numel() == 0:
        return decayed
    highest = torch.empty_like(decayed)
    grid = (triton.cdiv(count, OWN), batch_size)
    inputs = (intersections.contiguous(), labels.contiguous(), _comparable(scores))
    options: dict[str, Any] = {
        "OWN": OWN,
        "OTHERS": OTHERS,
        "num_warps": 4,
        # A square minus a square, rounded as torch rounds it: 0 where both are equal.
        "enable_fp_fusion": False,
    }
    with on_device_of(scores):
        _highest_iou[grid](*inputs, highest, count, **options)
        _decay[grid](
            *inputs, highest, decayed, count, float(sigma), GAUSSIAN=kernel == "gaussian", **options
        )
    return decayed


def keep_best(
    scores: Tensor,
    labels: Tensor,
    cells: Tensor,
    decayed: Tensor,
    *,
    update_threshold: float,
    max_instances: int,
) -> Kept:
    """Fill exactly `max_instances` places by falling decayed score.

    Of equal decayed scores the candidate with the higher score before the decay comes first, then
    the one with the smaller index: the order in which `unisolo.ops.select.keep_best` finds them,
    whose candidates are sorted.

    Args:
        scores: [B, N] floating, before the decay, any order; 0 marks an empty place.
        labels: [B, N] integer.
        cells: [B, N] integer.
        decayed: [B, N] float32.
        update_threshold: Inclusive.
        max_instances: K; may exceed N.

    Returns:
        The K best of each image.
    """
    batch_size, count = scores.shape
    size = (batch_size, max_instances)
    device = scores.device
    best = torch.empty(size, dtype=torch.float32, device=device)
    best_labels, best_cells, chosen = torch.empty(3, *size, dtype=torch.int64, device=device)
    valid = torch.empty(size, dtype=torch.uint8, device=device)
    inputs = (_comparable(scores), labels.contiguous(), cells.contiguous(), decayed.contiguous())
    with on_device_of(scores):
        _keep_best[(max(1, triton.cdiv(count, OWN)), batch_size)](
            *inputs,
            best,
            best_labels,
            best_cells,
            chosen,
            valid,
            count,
            max_instances,
            float(update_threshold),
            OWN=OWN,
            OTHERS=OTHERS,
            num_warps=4,
        )
    return Kept(best, best_labels, best_cells, chosen, valid.view(torch.bool))


def keep_top(scores: Tensor, count: int) -> Tensor:
    """Set all but the highest scores to 0: the cut before Matrix NMS (`pre_nms`).

    Args:
        scores: [B, N] floating, at least 0. Of equal scores the earlier index is the higher one.
        count: How many are left.

    Returns:
        [B, N] float32; `scores` itself, in float32, where `count` is at least N.
    """
    batch_size, given = scores.shape
    if count >= given:
        return scores.float()
    scores = _comparable(scores)
    left = torch.empty(batch_size, given, dtype=torch.float32, device=scores.device)
    if left.numel() == 0:
        return left
    with on_device_of(scores):
        _keep_top[(triton.cdiv(given, OWN), batch_size)](
            scores, left, given, count, OWN=OWN, OTHERS=OTHERS, num_warps=4
        )
    return left


def _comparable(scores: Tensor) -> Tensor:
    """Scores in a type that kernels compare without loss: float32, or float64 as it came."""
    return (scores if scores.dtype == torch.float64 else scores.float()).contiguous()


@jit
def _iou_before(  # type: ignore[no-untyped-def]
    intersections_ptr, labels_ptr, scores_ptr, i, j, label_j, score_j, area_j, count
):
    """[OWN, OTHERS] IoU of candidates j with those others i that come before them, else 0."""
    inside = i < count
    score_i = tl.load(scores_ptr + i, mask=inside, other=0)[None, :]
    label_i = tl.load(labels_ptr + i, mask=inside, other=0)[None, :]
    before = (score_i > score_j) | ((score_i == score_j) & (i[None, :] < j[:, None]))
    before = before & (label_i == label_j) & (score_i > 0) & (score_j > 0)
    area_i = tl.load(intersections_ptr + i * (count + 1), mask=inside, other=0)[None, :]
    shared = tl.load(intersections_ptr + j[:, None] * count + i[None, :], mask=before, other=0)
    union = tl.maximum(area_i + area_j - shared, 1)
    return tl.div_rn(shared.to(tl.float32), union.to(tl.float32)), before


@jit
def _highest_iou(  # type: ignore[no-untyped-def]
    intersections_ptr,
    labels_ptr,
    scores_ptr,
    highest_ptr,
    count,
    OWN: tl.constexpr,
    OTHERS: tl.constexpr,
):
    """The highest IoU of each candidate with one before it: what it has lost itself."""
    image = tl.program_id(1).to(tl.int64)
    intersections_ptr += image * count * count
    labels_ptr += image * count
    scores_ptr += image * count
    j = tl.program_id(0) * OWN + tl.arange(0, OWN)
    inside = j < count
    label_j = tl.load(labels_ptr + j, mask=inside, other=0)[:, None]
    score_j = tl.load(scores_ptr + j, mask=inside, other=0)[:, None]
    area_j = tl.load(intersections_ptr + j * (count + 1), mask=inside, other=0)[:, None]
    highest = tl.zeros([OWN], tl.float32)
    for start in range(0, count, OTHERS):
        i = start + tl.arange(0, OTHERS)
        iou, _ = _iou_before(
            intersections_ptr, labels_ptr, scores_ptr, i, j, label_j, score_j, area_j, count
        )
        highest = tl.maximum(highest, tl.max(iou, 1))
    tl.store(highest_ptr + image * count + j, highest, mask=inside)


@jit
def _decay(  # type: ignore[no-untyped-def]
    intersections_ptr,
    labels_ptr,
    scores_ptr,
    highest_ptr,
    decayed_ptr,
    count,
    sigma,
    GAUSSIAN: tl.constexpr,
    OWN: tl.constexpr,
    OTHERS: tl.constexpr,
):
    """Each score times its lowest quotient of decay and compensation; 1 where none comes before."""
    image = tl.program_id(1).to(tl.int64)
    intersections_ptr += image * count * count
    labels_ptr += image * count
    scores_ptr += image * count
    highest_ptr += image * count
    j = tl.program_id(0) * OWN + tl.arange(0, OWN)
    inside = j < count
    label_j = tl.load(labels_ptr + j, mask=inside, other=0)[:, None]
    score = tl.load(scores_ptr + j, mask=inside, other=0)
    score_j = score[:, None]
    area_j = tl.load(intersections_ptr + j * (count + 1), mask=inside, other=0)[:, None]
    # The exponent of the quotient is highest where the quotient is lowest: one exponential each.
    exponent = tl.zeros([OWN], tl.float32)
    quotient = tl.full([OWN], 1.0, tl.float32)
    for start in range(0, count, OTHERS):
        i = start + tl.arange(0, OTHERS)
        iou, before = _iou_before(
            intersections_ptr, labels_ptr, scores_ptr, i, j, label_j, score_j, area_j, count
        )
        lost = tl.load(highest_ptr + i, mask=i < count, other=0.0)[None, :]
        if GAUSSIAN:
            exponents = tl.where(before, iou * iou - lost * lost, 0.0)
            exponent = tl.maximum(exponent, tl.max(exponents, 1))
        else:
            # 0 / 0 (a third copy of one mask) becomes 0, what the first copy says about it anyway.
            quotients = tl.div_rn(1.0 - iou, tl.maximum(1.0 - lost, SMALLEST))
            quotient = tl.minimum(quotient, tl.min(tl.where(before, quotients, 1.0), 1))
    factor = tl.exp(-sigma * exponent) if GAUSSIAN else quotient
    tl.store(decayed_ptr + image * count + j, score.to(tl.float32) * factor, mask=inside)


@jit
def _left(scores, decayed, threshold):  # type: ignore[no-untyped-def]
    """Decayed scores of candidates that stay; -1 for the others, as a decayed score can be 0."""
    return tl.where((decayed >= threshold) & (scores > 0), decayed, -1.0)


@jit
def _keep_best(  # type: ignore[no-untyped-def]
    scores_ptr,
    labels_ptr,
    cells_ptr,
    decayed_ptr,
    best_ptr,
    best_labels_ptr,
    best_cells_ptr,
    chosen_ptr,
    valid_ptr,
    count,
    places,
    threshold,
    OWN: tl.constexpr,
    OTHERS: tl.constexpr,
):
    """Write each candidate to the place that the number of better ones says."""
    image = tl.program_id(1).to(tl.int64)
    base = image * count
    first_place = image * places
    j = tl.program_id(0) * OWN + tl.arange(0, OWN)
    inside = j < count
    score_j = tl.load(scores_ptr + base + j, mask=inside, other=0)
    left_j = _left(score_j, tl.load(decayed_ptr + base + j, mask=inside, other=0.0), threshold)
    # Before they are needed: not one more wait for memory at the end.
    label = tl.load(labels_ptr + base + j, mask=inside, other=0).to(tl.int64)
    cell = tl.load(cells_ptr + base + j, mask=inside, other=0).to(tl.int64)
    rank = tl.zeros([OWN], tl.int32)
    for start in range(0, count, OTHERS):
        i = start + tl.arange(0, OTHERS)
        score_i = tl.load(scores_ptr + base + i, mask=i < count, other=0)
        decayed_i = tl.load(decayed_ptr + base + i, mask=i < count, other=0.0)
        left_i = _left(score_i, decayed_i, threshold)[None, :]
        score_i = score_i[None, :]
        tied = (score_i == score_j[:, None]) & (i[None, :] < j[:, None])
        tied = (left_i == left_j[:, None]) & ((score_i > score_j[:, None]) | tied)
        better = ((left_i > left_j[:, None]) | tied) & (i < count)[None, :]
        rank += tl.sum(better.to(tl.int32), 1)
    written = inside & (rank < places)
    stays = written & (left_j >= 0)
    place = first_place + rank
    tl.store(best_ptr + place, tl.where(stays, left_j, 0.0), mask=written)
    tl.store(best_labels_ptr + place, tl.where(stays, label, 0), mask=written)
    tl.store(best_cells_ptr + place, tl.where(stays, cell, 0), mask=written)
    tl.store(chosen_ptr + place, tl.where(stays, j, -1).to(tl.int64), mask=written)
    tl.store(valid_ptr + place, stays.to(tl.uint8), mask=written)
    if tl.program_id(0) == 0:
        for start in range(count, places, OTHERS):  # places for which there are no candidates
            empty = start + tl.arange(0, OTHERS)
            zeros = tl.zeros([OTHERS], tl.int64)
            tl.store(best_ptr + first_place + empty, zeros.to(tl.float32), mask=empty < places)
            tl.store(best_labels_ptr + first_place + empty, zeros, mask=empty < places)
            tl.store(best_cells_ptr + first_place + empty, zeros, mask=empty < places)
            tl.store(chosen_ptr + first_place + empty, zeros - 1, mask=empty < places)
            tl.store(valid_ptr + first_place + empty, zeros.to(tl.uint8), mask=empty < places)


@jit
def _keep_top(  # type: ignore[no-untyped-def]
    scores_ptr, left_ptr, count, limit, OWN: tl.constexpr, OTHERS: tl.constexpr
):
    """Keep a score where fewer than `limit` are higher, or equal and earlier."""
    base = tl.program_id(1).to(tl.int64) * count
    j = tl.program_id(0) * OWN + tl.arange(0, OWN)
    score_j = tl.load(scores_ptr + base + j, mask=j < count, other=0)
    rank = tl.zeros([OWN], tl.int32)
    for start in range(0, count, OTHERS):
        i = start + tl.arange(0, OTHERS)
        score_i = tl.load(scores_ptr + base + i, mask=i < count, other=0)[None, :]
        tied = (score_i == score_j[:, None]) & (i[None, :] < j[:, None])
        higher = ((score_i > score_j[:, None]) | tied) & (i < count)[None, :]
        rank += tl.sum(higher.to(tl.int32), 1)
    left = tl.where(rank < limit, score_j, 0).to(tl.float32)
    tl.store(left_ptr + base + j, left, mask=j < count)
