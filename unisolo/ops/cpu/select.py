"""From raw outputs to instances; the CPU's twin of `unisolo.ops.select.select_instances`.

Only what can change the result is computed: the pairs above the threshold, bits instead of boolean
masks, intersections of pairs that meet, soft masks of places that are filled.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from unisolo.ops.area_filter import MinArea, cell_areas
from unisolo.ops.cpu.dynamic_masks import pack_candidates, write_soft_masks
from unisolo.ops.cpu.packed import intersections
from unisolo.ops.masks import CHUNK_PIXELS
from unisolo.ops.matrix_nms import NmsKernel, decay_factors
from unisolo.ops.ranking import rank
from unisolo.ops.select import Candidates, keep_best
from unisolo.ops.stages import NUM_TOP, stage_counts, top_pairs
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
    chunk_pixels: int | None = CHUNK_PIXELS,
) -> Instances:
    """Choose the instances of every image of a batch.

    Memory, besides the result [B, K, h, w] in float32: one bit per pixel of the candidates above
    the threshold, twice while they are sorted; two float tensors of `chunk_pixels`
    values; some n * n tables; a few times the L * C logits.

    Args:
        outputs: Raw outputs of the model, checked by the definition.
        grid: The model's grid.
        score_threshold: Strict.
        mask_threshold: Strict.
        max_candidates: Pairs kept before any mask is made.
        pre_nms: Masks that enter Matrix NMS.
        nms_kernel: "gaussian" or "linear".
        nms_sigma: Strength of the gaussian kernel.
        update_threshold: Inclusive.
        max_instances: K.
        min_area: Strict.
        chunk_pixels: Mask pixels in float at a time; None = those of all candidates of an image.

    Returns:
        Instances as of the definition, with the same order among ties.
    """
    logits, kernels, features = (field.detach() for field in outputs[:3])
    least_areas = cell_areas(grid, min_area, kernels.device)
    size = (len(logits), max_instances, *features.shape[2:])
    soft = features.new_zeros(size, dtype=torch.float32)
    selected = []
    for image in range(len(logits)):
        probs = _category_probs(logits[image], grid)
        ranked = _leading_pairs(probs, max(max_candidates, NUM_TOP))
        passed = int((ranked.scores[:max_candidates] > score_threshold).sum())  # they come first
        candidates = Candidates(*(field[:passed] for field in ranked))
        weights = kernels[image].index_select(0, candidates.cells)
        words, areas, maskness, mask_logits = pack_candidates(
            weights,
            features[image],
            mask_threshold=mask_threshold,
            chunk_pixels=chunk_pixels,
            most_rows=min(max_candidates, probs.numel()),
        )
        large = areas > least_areas[candidates.cells]
        scores, order = rank(torch.where(large, candidates.scores * maskness, 0), pre_nms)
        order = order[scores > 0]  # the others are behind them and change nothing
        # Instead of cells, places among the candidates: the masks are found by them.
        entered = Candidates(scores[: len(order)], candidates.labels[order], order)
        words = words[order.numpy()]  # the others are free while pairs are counted
        shared = intersections(words, areas[order], entered.labels)
        decayed = entered.scores * decay_factors(
            shared, entered.labels, entered.scores, kernel=nms_kernel, sigma=nms_sigma
        )
        best, valid = keep_best(
            entered, decayed, update_threshold=update_threshold, max_instances=max_instances
        )
        kept = best.cells[valid]
        write_soft_masks(
            soft[image], mask_logits, kept, weights, features[image], chunk_pixels=chunk_pixels
        )
        cells = F.pad(candidates.cells[kept], (0, max_instances - len(kept)))
        counts = stage_counts(
            probs[None],
            score_threshold=score_threshold,
            candidates=candidates.scores[None],
            large=large[None],
            entered=entered.scores[None],
            decayed=decayed[None],
            update_threshold=update_threshold,
            valid=valid[None],
        )[0]
        top = top_pairs(ranked.scores, ranked.labels)
        selected.append((best.scores, best.labels, cells, valid, counts, *top))
    scores, labels, cells, valid, *facts = (
        torch.stack(field) for field in zip(*selected, strict=True)
    )
    return Instances(scores, labels, cells, valid, soft, *facts)


def _category_probs(logits: Tensor, grid: GridSpec) -> Tensor:
    """Probabilities [L, C] after points NMS; `unisolo.ops.select.category_probs` without its pool.

    A pool also looks for the places of its maxima; neighbours are compared where they are.
    """
    levels = []
    for level, size in zip(
        torch.split(logits.float(), [size * size for size in grid.sizes]), grid.sizes, strict=True
    ):
        probs = level.t().reshape(logits.shape[1], size, size).sigmoid()
        keep = ~probs.isnan()  # also where nothing is compared, in the first cell
        keep[:, 1:] &= probs[:, 1:] >= probs[:, :-1]
        keep[:, :, 1:] &= probs[:, :, 1:] >= probs[:, :, :-1]
        keep[:, 1:, 1:] &= probs[:, 1:, 1:] >= probs[:, :-1, :-1]
        levels.append(probs.masked_fill_(~keep, 0).flatten(1).t())
    return torch.cat(levels)


def _leading_pairs(probs: Tensor, count: int) -> Candidates:
    """Take the `count` most probable pairs of [L, C]; sorts those only, ties as the definition."""
    flat = probs.flatten()
    if len(flat) > count:
        least = flat.topk(count).values[-1]
        above = (flat > least).nonzero().squeeze(1)
        level = (flat == least).nonzero().squeeze(1)
        index = torch.cat([above, level[: count - len(above)]])
    else:
        index = torch.arange(len(flat), device=flat.device)
    # Equal values are in rising order, where a stable sort leaves them, as one of the whole would.
    scores, order = rank(flat[index], count)
    index = index[order]
    cells = index.div(max(1, probs.shape[1]), rounding_mode="floor")
    return Candidates(scores, index - cells * probs.shape[1], cells)
