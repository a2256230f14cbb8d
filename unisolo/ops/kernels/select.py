"""Triton: from raw outputs to instances; the twin of `unisolo.ops.select.select_instances`.

About fifteen launches for a whole batch, none of which waits for the host; the call can be captured
in a CUDA graph. The kernels are in the files of their steps.
"""

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from unisolo.ops.area_filter import MinArea, level_areas
from unisolo.ops.kernels.candidates import ranked_pairs
from unisolo.ops.kernels.dynamic_masks import dynamic_masks
from unisolo.ops.kernels.intersections import packed_intersections
from unisolo.ops.kernels.launch import jit, on_device_of
from unisolo.ops.kernels.nms import Kept, decay_scores, keep_best, keep_top
from unisolo.ops.kernels.soft_masks import soft_masks
from unisolo.ops.matrix_nms import NmsKernel
from unisolo.ops.select import Candidates
from unisolo.ops.stages import STAGES
from unisolo.structures import GridSpec, Instances, Outputs

__all__ = ["select_instances"]


def select_instances(
    outputs: Outputs,
    grid: GridSpec,
    *,
    score_threshold: float = 0.1,
    mask_threshold: float = 0.5,
    max_candidates: int = 500,
    pre_nms: int = 500,
    nms_kernel: NmsKernel = "gaussian",
    nms_sigma: float = 2.0,
    update_threshold: float = 0.05,
    max_instances: int = 100,
    min_area: MinArea = "stride",
    chunk_pixels: int | None = None,
) -> Instances:
    """See `unisolo.ops.select.select_instances`, which checks the arguments and calls this.

    Memory, with n = min(max_candidates, L * C), besides the result: n * h * w / 8 bytes of packed
    masks, 4 * n * n bytes of intersections and 16 bytes per pair, for every image of the batch.
    `chunk_pixels` has nothing to limit: masks become bits where they are computed, never floats.

    Args:
        outputs: Raw outputs of the model, any floating dtype, on a GPU; C at least 1.
        grid: The model's grid.
        score_threshold: A pair is a candidate where its probability is above this.
        mask_threshold: A pixel is inside where its probability is above this.
        max_candidates: Pairs kept before any mask is made.
        pre_nms: Masks that enter Matrix NMS.
        nms_kernel: "gaussian" or "linear".
        nms_sigma: Strength of the gaussian kernel.
        update_threshold: An instance stays if its decayed score is at least this.
        max_instances: K, the fixed number of places per image.
        min_area: A mask stays if its area is above this.
        chunk_pixels: Without effect.

    Returns:
        Instances; `mask_probs` are float16 where kernels and features share a half precision.
    """
    logits, kernels, features = (field.detach() for field in outputs[:3])
    if kernels.stride(2) != 1:  # a candidate's kernel is read by itself
        kernels = kernels.contiguous()
    ranked = ranked_pairs(
        logits, grid, score_threshold=score_threshold, max_candidates=max_candidates
    )
    candidates = ranked.candidates
    packed, scores = dynamic_masks(
        kernels,
        features,
        candidates,
        grid,
        mask_threshold=mask_threshold,
        least_areas=level_areas(grid, min_area),
    )
    entered = keep_top(scores, pre_nms)
    intersections = packed_intersections(packed, candidates.labels, entered)
    decayed = decay_scores(
        intersections, candidates.labels, entered, kernel=nms_kernel, sigma=nms_sigma
    )
    kept = keep_best(
        entered,
        candidates.labels,
        candidates.cells,
        decayed,
        update_threshold=update_threshold,
        max_instances=max_instances,
    )
    soft = soft_masks(kernels, features, kept.cells, kept.valid)
    counts = _stage_counts(
        ranked.num_passing, candidates, scores, entered, decayed, kept, update_threshold
    )
    return Instances(
        kept.scores,
        kept.labels,
        kept.cells,
        kept.valid,
        soft,
        counts,
        ranked.top_probs,
        ranked.top_labels,
    )


def _stage_counts(
    num_passing: Tensor,
    candidates: Candidates,
    scores: Tensor,
    entered: Tensor,
    decayed: Tensor,
    kept: Kept,
    update_threshold: float,
) -> Tensor:
    """See `unisolo.ops.stages.stage_counts`; here [B, n] scores mark what was large enough."""
    batch_size, count = scores.shape
    places = kept.scores.shape[1]
    counts = torch.empty(batch_size, len(STAGES), dtype=torch.int64, device=scores.device)
    with on_device_of(scores):
        _count[(batch_size,)](
            num_passing,
            candidates.scores,
            scores,
            entered,
            decayed,
            counts,
            num_passing.stride(0),
            count,
            places,
            float(update_threshold),
            BLOCK=1024,
            num_warps=4,
        )
    return counts


@jit
def _count(  # type: ignore[no-untyped-def]
    passing_ptr,
    probs_ptr,
    scores_ptr,
    entered_ptr,
    decayed_ptr,
    counts_ptr,
    passing_stride,
    count,
    places,
    threshold,
    BLOCK: tl.constexpr,
):
    """Count what each step left of one image's candidates."""
    image = tl.program_id(0).to(tl.int64)
    chosen = tl.zeros([BLOCK], tl.int32)
    large = tl.zeros([BLOCK], tl.int32)
    entering = tl.zeros([BLOCK], tl.int32)
    staying = tl.zeros([BLOCK], tl.int32)
    for start in range(0, count, BLOCK):
        at = start + tl.arange(0, BLOCK)
        exists = at < count
        at = image * count + at
        entered = tl.load(entered_ptr + at, mask=exists, other=0.0)
        decayed = tl.load(decayed_ptr + at, mask=exists, other=0.0)
        chosen += (tl.load(probs_ptr + at, mask=exists, other=0.0) > 0).to(tl.int32)
        large += (tl.load(scores_ptr + at, mask=exists, other=0.0) > 0).to(tl.int32)
        entering += (entered > 0).to(tl.int32)
        staying += ((entered > 0) & (decayed >= threshold)).to(tl.int32)
    counts_ptr += image * 6  # as many as STAGES
    passing = tl.load(passing_ptr + image * passing_stride)
    stayed = tl.sum(staying, 0)
    tl.store(counts_ptr, passing.to(tl.int64))
    tl.store(counts_ptr + 1, tl.sum(chosen, 0).to(tl.int64))
    tl.store(counts_ptr + 2, tl.sum(large, 0).to(tl.int64))
    tl.store(counts_ptr + 3, tl.sum(entering, 0).to(tl.int64))
    tl.store(counts_ptr + 4, stayed.to(tl.int64))
    tl.store(counts_ptr + 5, tl.minimum(stayed, places).to(tl.int64))
