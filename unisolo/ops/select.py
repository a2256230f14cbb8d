"""From raw outputs to a fixed number of instances: SOLOv2's inference, without a host sync.

The stages are functions of their own: `points_nms`, `top_candidates`, `candidate_masks`,
`nms_inputs`, `keep_best`; `select_instances` joins them. Each takes one image or, with a leading
dimension B, a batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from unisolo.ops.area_filter import MinArea, cell_areas, level_areas
from unisolo.ops.backend import backend_for
from unisolo.ops.dynamic_masks import CandidateMasks, candidate_masks, kept_masks
from unisolo.ops.level_features import check_level_features, features_of_cells
from unisolo.ops.masks import CHUNK_PIXELS, mask_intersections
from unisolo.ops.matrix_nms import NmsKernel, decay_factors
from unisolo.ops.ranking import pick, rank
from unisolo.ops.stages import NUM_TOP, stage_counts, top_pairs
from unisolo.structures import GridSpec, Instances, Outputs

__all__ = [
    "CandidateMasks",
    "Candidates",
    "candidate_masks",
    "category_probs",
    "keep_best",
    "nms_inputs",
    "points_nms",
    "select_instances",
    "top_candidates",
]


class Candidates(NamedTuple):
    """(cell, category) pairs of an image by falling score; score 0 marks an empty place.

    Attributes:
        scores: [n] or [B, n] float32.
        labels: Likewise, int64.
        cells: Likewise, int64, into the cells of all levels.
    """

    scores: Tensor
    labels: Tensor
    cells: Tensor


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
    """Choose the instances of every image of a batch; the same call serves all tasks.

    Equal to the reference inference whenever at most `max_candidates` pairs pass
    `score_threshold`. Every step has a fixed shape and no value decides the next line, so the
    function exports. Exact ties go to the earlier index (see `unisolo.ops.ranking.rank`).

    Memory, with n = min(max_candidates, L * C), besides the result [B, K, h, w] in float32: for
    one image at a time the packed masks of n candidates, n * h * w / 8 bytes, and those that enter
    Matrix NMS once more; a few float tensors of `chunk_pixels` values (about 16 bytes a value);
    some n * n tables; a few times the L * C logits. Nothing grows with the number of pairs above
    the threshold, and neither float nor bool masks of all candidates ever exist at once.

    Args:
        outputs: Raw outputs of the model, any floating dtype; computed on in float32.
        grid: The model's grid.
        score_threshold: A pair is a candidate where its probability is above this (strict).
        mask_threshold: A pixel is inside where its probability is above this (strict).
        max_candidates: Pairs kept, by probability, before any mask is made.
        pre_nms: Masks that enter Matrix NMS, by probability times maskness.
        nms_kernel: "gaussian" or "linear".
        nms_sigma: Strength of the gaussian kernel.
        update_threshold: An instance stays if its decayed score is at least this (inclusive).
        max_instances: K, the fixed number of places per image.
        min_area: A mask stays if its area on the stride-4 map is above this (strict): "stride" =
            the stride of its level (8 to 32), as in the reference; 0 = any mask with a pixel.
        chunk_pixels: Mask pixels in float at a time; changes memory and speed. None = all images
            and candidates at once, without a loop: what an exported graph does.

    Returns:
        Instances by falling score, empty places (score 0, label 0, cell 0, zero mask) last.

    Raises:
        ValueError: If the outputs do not fit the grid, or a setting is out of range.
    """
    _check_outputs(outputs, grid)
    _check_settings(score_threshold, mask_threshold, max_candidates, pre_nms, max_instances)
    level_areas(grid, min_area)  # a wrong setting is named before any work
    twin = _twin(outputs)
    if twin is not None:
        return twin(
            outputs,
            grid,
            score_threshold=score_threshold,
            mask_threshold=mask_threshold,
            max_candidates=max_candidates,
            pre_nms=pre_nms,
            nms_kernel=nms_kernel,
            nms_sigma=nms_sigma,
            update_threshold=update_threshold,
            max_instances=max_instances,
            min_area=min_area,
            chunk_pixels=chunk_pixels,
        )
    logits, kernels = outputs.category_logits.detach(), outputs.kernels.detach()
    least_areas = cell_areas(grid, min_area, kernels.device)
    groups = (
        [slice(None)] if chunk_pixels is None else [slice(n, n + 1) for n in range(len(logits))]
    )
    selected = []
    for images in groups:
        probs = category_probs(logits[images], grid)
        # Sorted before the threshold, so that the best pairs are known even if none passes it.
        ranked = top_candidates(
            probs, score_threshold=0.0, max_candidates=max(max_candidates, NUM_TOP)
        )
        candidates = _passing(ranked, score_threshold, max_candidates)
        made = candidate_masks(
            pick(kernels[images], candidates.cells),
            features_of_cells(outputs, grid, images, candidates.cells),
            mask_threshold=mask_threshold,
            chunk_pixels=chunk_pixels,
        )
        min_areas = least_areas[candidates.cells]
        large = made.areas > min_areas
        entered, masks = nms_inputs(candidates, made, min_areas=min_areas, pre_nms=pre_nms)
        del made  # the masks in order are a copy: not both of them while pairs are counted
        shared = mask_intersections(masks.flatten(-2), chunk_pixels=chunk_pixels)
        del masks
        decayed = entered.scores * decay_factors(
            shared, entered.labels, entered.scores, kernel=nms_kernel, sigma=nms_sigma
        )
        best, valid = keep_best(
            entered, decayed, update_threshold=update_threshold, max_instances=max_instances
        )
        counts = stage_counts(
            probs,
            score_threshold=score_threshold,
            candidates=candidates.scores,
            large=large,
            entered=entered.scores,
            decayed=decayed,
            update_threshold=update_threshold,
            valid=valid,
        )
        selected.append((*best, valid, counts, *top_pairs(ranked.scores, ranked.labels)))
    scores, labels, cells, valid, *facts = (_joined(field) for field in zip(*selected, strict=True))
    features = features_of_cells(outputs, grid, slice(None), cells)
    soft = kept_masks(pick(kernels, cells), features, valid, chunk_pixels=chunk_pixels)
    return Instances(scores, labels, cells, valid, soft, *facts)


def _twin(outputs: Outputs) -> Callable[..., Instances] | None:
    """The twin of `select_instances` that serves these outputs, if there is one."""
    if outputs.level_features:
        return None  # twins know masks of one map only
    backend = backend_for(outputs.kernels.device)
    if backend == "cpu":
        from unisolo.ops.cpu.select import select_instances as cpu_twin

        return cpu_twin
    if backend == "triton" and outputs.category_logits.shape[2] > 0:  # it needs a pair to rank
        from unisolo.ops.kernels.select import select_instances as triton_twin

        return triton_twin
    return None


def points_nms(probs: Tensor) -> Tensor:
    """Set to 0 every cell that is below its upper, left or upper-left neighbour.

    One-sided, as in the reference: right and lower neighbours are not looked at; ties keep both.

    Args:
        probs: [B, C, S, S] floating.

    Returns:
        [B, C, S, S], same dtype.
    """
    # Channels go as the batch, so that 0 categories are as normal as 0 images.
    channels = probs.flatten(0, 1).unsqueeze(1)
    highest = F.max_pool2d(channels, kernel_size=2, stride=1, padding=1)[..., :-1, :-1]
    return torch.where(channels == highest, channels, 0).reshape(probs.shape)


def category_probs(category_logits: Tensor, grid: GridSpec) -> Tensor:
    """Turn category logits into probabilities after points NMS on each level.

    Args:
        category_logits: [B, L, C] floating.
        grid: The model's grid; L is its number of cells.

    Returns:
        [B, L, C] float32.
    """
    batch_size, _, num_categories = category_logits.shape
    levels = []
    for logits, size in zip(
        torch.split(category_logits.float(), [size * size for size in grid.sizes], dim=1),
        grid.sizes,
        strict=True,
    ):
        maps = logits.transpose(1, 2).reshape(batch_size, num_categories, size, size)
        levels.append(points_nms(maps.sigmoid()).flatten(2).transpose(1, 2))
    return torch.cat(levels, dim=1)


def top_candidates(probs: Tensor, *, score_threshold: float, max_candidates: int) -> Candidates:
    """Take the most probable (cell, category) pairs; one cell can give several.

    Args:
        probs: [L, C] or [B, L, C] float32, after points NMS.
        score_threshold: Pairs at or below this become empty places.
        max_candidates: Upper bound of n.

    Returns:
        n = min(max_candidates, L * C) candidates; ties in order of cell, then category.
    """
    num_categories = max(1, probs.shape[-1])
    flat = torch.where(probs > score_threshold, probs, 0).flatten(-2)
    scores, index = rank(flat, max_candidates)
    cells = index.div(num_categories, rounding_mode="floor")
    return Candidates(scores, index - cells * num_categories, cells)


def _passing(ranked: Candidates, score_threshold: float, max_candidates: int) -> Candidates:
    """The first `max_candidates` pairs; those at or below the threshold are empty places."""
    scores, labels, cells = (field[..., :max_candidates] for field in ranked)
    return Candidates(torch.where(scores > score_threshold, scores, 0), labels, cells)


def nms_inputs(
    candidates: Candidates, made: CandidateMasks, *, min_areas: Tensor, pre_nms: int
) -> tuple[Candidates, Tensor]:
    """Filter by area, weight scores by maskness, sort and cut: what Matrix NMS sees.

    A filtered candidate stays as an empty place with score 0. It sorts behind every other one, so
    it cannot lower a score.

    Args:
        candidates: n candidates.
        made: Their masks.
        min_areas: [n] or [B, n] integer; a mask stays if its area is above this (strict), counted
            on the stride-4 map (see `unisolo.ops.area_filter`).
        pre_nms: Upper bound of the number kept.

    Returns:
        min(n, pre_nms) candidates by falling score, and their masks, packed as they came.
    """
    scores = torch.where(made.areas > min_areas, candidates.scores * made.maskness, 0)
    scores, order = rank(scores, pre_nms)
    kept = Candidates(
        scores, candidates.labels.gather(-1, order), candidates.cells.gather(-1, order)
    )
    return kept, pick(made.masks, order)


def keep_best(
    candidates: Candidates, decayed: Tensor, *, update_threshold: float, max_instances: int
) -> tuple[Candidates, Tensor]:
    """Sort by decayed score and fill exactly `max_instances` places.

    Args:
        candidates: n candidates as they entered Matrix NMS.
        decayed: [n] or [B, n] float32, their scores after it.
        update_threshold: Inclusive.
        max_instances: K; may exceed n.

    Returns:
        K candidates with decayed scores, and valid [K] or [B, K] bool; empty places are 0 and
        last.
    """
    keep = (decayed >= update_threshold) & (candidates.scores > 0)
    # -1, not 0: a linear decay can reach 0, which an update threshold of 0 keeps.
    scores, order = rank(torch.where(keep, decayed, -1), max_instances)
    missing = (0, max_instances - scores.shape[-1])
    scores = F.pad(scores, missing, value=-1)
    valid = scores >= 0
    labels = torch.where(valid, F.pad(candidates.labels.gather(-1, order), missing), 0)
    cells = torch.where(valid, F.pad(candidates.cells.gather(-1, order), missing), 0)
    return Candidates(scores.clamp_min(0), labels, cells), valid


def _joined(parts: tuple[Tensor, ...]) -> Tensor:
    """One tensor of all images; a single part as it is, which leaves no trace in an export."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _check_outputs(outputs: Outputs, grid: GridSpec) -> None:
    logits, kernels, features = outputs.category_logits, outputs.kernels, outputs.mask_features
    if logits.ndim != 3 or kernels.ndim != 3 or features.ndim != 4:
        raise ValueError(
            "select_instances needs category_logits [B, L, C], kernels [B, L, E] and mask_features "
            f"[B, E, h, w], got {list(logits.shape)}, {list(kernels.shape)}, {list(features.shape)}"
        )
    if logits.shape[:2] != kernels.shape[:2] or logits.shape[1] != grid.num_cells:
        raise ValueError(
            f"grid {grid.sizes} has {grid.num_cells} cells, but category_logits is "
            f"{list(logits.shape)} and kernels is {list(kernels.shape)}"
        )
    if kernels.shape[2] != features.shape[1] or not features.shape[0] == kernels.shape[0] > 0:
        raise ValueError(
            f"kernels {list(kernels.shape)} and mask_features {list(features.shape)} must agree in "
            "images (at least 1) and channels"
        )
    check_level_features(outputs, grid)


def _check_settings(
    score_threshold: float,
    mask_threshold: float,
    max_candidates: int,
    pre_nms: int,
    max_instances: int,
) -> None:
    for name, value in (("score_threshold", score_threshold), ("mask_threshold", mask_threshold)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must be in 0..1, got {value}")
    for name, count in (
        ("max_candidates", max_candidates),
        ("pre_nms", pre_nms),
        ("max_instances", max_instances),
    ):
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")
