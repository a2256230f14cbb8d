"""The ways to post-process a scene: the reference-style chain, and this package's operations."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from unisolo.benchmark.postprocess.reference_chain import (
    ReferenceCandidates,
    reference_full_masks,
    reference_instances,
    reference_select,
)
from unisolo.benchmark.postprocess.scenes import UNLIKELY, Scene
from unisolo.ops.masks import UpsampledMasks, unpack_bits, upsample_masks
from unisolo.ops.select import select_instances
from unisolo.structures import GridSpec, Instances, Outputs

__all__ = [
    "PLACES",
    "PRE_NMS",
    "Answer",
    "Problem",
    "Start",
    "package_call",
    "reference_call",
    "select",
    "upsample",
]

Start = Literal["candidates", "logits"]
"""Where the post-process begins: with candidates that are given (kernels, labels, scores), or with
the raw category logits of all cells."""

PLACES, PRE_NMS = 100, 500
"""Instances kept, and masks that enter Matrix NMS: the method's own numbers."""


class Answer(NamedTuple):
    """What a way found in one image.

    Attributes:
        scores: [M] or [K] float32, falling.
        labels: Likewise, int64.
        cells: Likewise, int64, of the scene's grid.
        valid: [K] bool, filled places; None where all are.
        masks: [M, H, W] bool, or [K, H, ceil(W / 8)] uint8 packed along the width.
    """

    scores: Tensor
    labels: Tensor
    cells: Tensor
    valid: Tensor | None
    masks: Tensor

    def filled(self, width: int) -> Answer:
        """Drop empty places and unpack the masks of the others; waits for the device."""
        if self.valid is None:
            return self
        at = self.valid.nonzero().squeeze(1)
        masks = unpack_bits(self.masks[at], width)
        return Answer(self.scores[at], self.labels[at], self.cells[at], None, masks)


@dataclass(frozen=True)
class Problem:
    """One scene as it is given to every way.

    Attributes:
        scene: The scene; kernels and mask features in the measured type.
        exact: The same numbers in float32, which the reference-style chain computes in.
        exact_candidates: Likewise.
        few: The candidates alone as raw outputs: a grid with hardly more cells than candidates.
        few_grid: That grid.
        few_cells: [L of few_grid] int64, the scene's cell of each of its cells.
    """

    scene: Scene
    exact: Outputs
    exact_candidates: ReferenceCandidates
    few: Outputs
    few_grid: GridSpec
    few_cells: Tensor

    @classmethod
    def of(cls, scene: Scene) -> Problem:
        """Convert a scene's numbers once, outside what is timed."""
        found = scene.outputs
        exact = found._replace(
            kernels=found.kernels.float(), mask_features=found.mask_features.float()
        )
        candidates = scene.candidates._replace(kernels=scene.candidates.kernels.float())
        return cls(scene, exact, candidates, *_few(scene))


def _few(scene: Scene) -> tuple[Outputs, GridSpec, Tensor]:
    """Gather the candidates' cells in the smallest square grids, level by level, in their order."""
    logits, kernels, features, _ = scene.outputs
    held = scene.candidates.cells.sort().values
    sizes, cells, filled = [], [], []
    for offset, size in zip(scene.grid.offsets, scene.grid.sizes, strict=True):
        own = held[(held >= offset) & (held < offset + size * size)]
        side = max(1, math.ceil(math.sqrt(len(own))))
        sizes.append(side)
        missing = own.new_zeros(side * side - len(own))
        # Behind the others, where points NMS of these sees only candidates and nothing sees them.
        cells.append(torch.cat([own, missing]))
        filled.append(torch.cat([torch.ones_like(own), missing]).bool())
    places, real = torch.cat(cells), torch.cat(filled)
    few = Outputs(
        torch.where(real[:, None], logits[:, places], UNLIKELY), kernels[:, places], features, {}
    )
    return few, GridSpec(tuple(sizes), scene.grid.strides, scene.grid.scale_ranges), places


def reference_call(problem: Problem, start: Start) -> Callable[[], Answer]:
    """Return the reference-style chain as a call."""
    scene, exact = problem.scene, problem.exact

    def call() -> Answer:
        if start == "candidates":
            found = reference_instances(
                problem.exact_candidates,
                exact.mask_features[0],
                pre_nms=PRE_NMS,
                max_instances=PLACES,
            )
        else:
            (found,) = reference_select(exact, scene.grid, pre_nms=PRE_NMS, max_instances=PLACES)
        masks = reference_full_masks(
            found.mask_probs,
            padded_size=scene.padded_size,
            input_size=scene.image_size,
            orig_size=scene.image_size,
        )
        return Answer(found.scores, found.labels, found.cells, None, masks)

    return call


def package_call(problem: Problem, start: Start) -> Callable[[], Answer]:
    """Return this package's post-process as a call: `select_instances` and `upsample_masks`."""

    def call() -> Answer:
        found = select(problem, start)
        masks = upsample(problem.scene, found.mask_probs[0]).packed
        cells = found.cells[0]
        if start == "candidates":
            cells = problem.few_cells[cells]
        return Answer(found.scores[0], found.labels[0], cells, found.valid[0], masks)

    return call


def select(problem: Problem, start: Start) -> Instances:
    """Choose the instances of a scene with the public operation.

    Given candidates come as raw outputs of hardly more cells, so finding them is a small part of
    the time.
    """
    scene = problem.scene
    given = start == "candidates"
    return select_instances(
        problem.few if given else scene.outputs,
        problem.few_grid if given else scene.grid,
        max_candidates=len(scene.candidates.scores),
        pre_nms=PRE_NMS,
        max_instances=PLACES,
    )


def upsample(scene: Scene, mask_probs: Tensor) -> UpsampledMasks:
    """Bring [K, h, w] soft masks to the size of the scene's image."""
    return upsample_masks(
        mask_probs,
        padded_size=scene.padded_size,
        input_size=scene.image_size,
        orig_size=scene.image_size,
    )
