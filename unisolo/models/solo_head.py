"""SOLOv2's head: what is in each grid cell, and the kernel that draws it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unisolo.models.deform import Deform, HeadDeform, exporting
from unisolo.models.layers import (
    ConvNormAct,
    HeadNorm,
    append_coordinates,
    head_levels,
    init_normal,
)
from unisolo.models.static_masks import StaticKernels
from unisolo.ops.backend import backend_for
from unisolo.ops.group_norm import Grid, grid_slices

__all__ = ["MaskBranch", "SoloHead", "place_grids"]

MaskBranch = Literal["dynamic", "static"]
"""Where the kernels come from: predicted in each cell (SOLOv2), or weights (SOLOv1)."""

NUM_LEVELS = 5
CATEGORY_PRIOR = 0.01
"""Probability of each category at the start, for the focal loss (arXiv 1708.02002, section 3.3)."""

CANVAS_BATCH = 4
"""Most images whose grids go through the towers on one canvas. The canvas of the default grids has
23 % more cells than they: little beside what four fewer convolutions a layer save while one image
cannot fill a GPU (on an H100 one layer's convolutions took 51 instead of 86 us), a loss when many
do."""


class SoloHead(nn.Module):
    """Category and kernel branches, shared by five levels (SOLOv2, 2003.10152, "Mask Kernel").

    Each level is resized to its S x S grid, square whatever the image's shape. Pixel positions are
    appended before that and go to the kernel branch only: a kernel must know where it is to tell
    two alike objects apart, a category must not.

    On a GPU and without gradients the grids of a few images pass the towers together, side by side
    on one canvas (see `place_grids`); the results are the same up to the rounding of convolutions.

    Args:
        in_channels: Channels of the pyramid.
        num_things: C, number of thing categories; there is no background channel.
        channels: Width of both towers. Group norm has 32 groups where 32 divides the width, else as
            many as its largest divisor below 32.
        num_convs: Convolutions in each tower.
        kernel_channels: E, channels of the mask features and so of each dynamic 1 x 1 kernel.
        grid_sizes: S of each of the five levels.
        deform: Whether the last or all convolutions of each tower are deformable, and which
            version; the two output convolutions never are.
        norm: Norm after each convolution of the towers.
        mask_branch: "static" = no kernel branch; each cell's kernel and its bias are weights (see
            `unisolo.models.static_masks`).
        coordinates: Whether the kernel branch gets positions.

    Attributes:
        grid_sizes: S of each level.
        kernel_channels: E.
        static_kernels: The weights of a static mask branch, else None.

    Raises:
        ValueError: If the number of levels is not five, there is no category or no such branch.
    """

    def __init__(
        self,
        in_channels: int,
        num_things: int,
        *,
        channels: int = 512,
        num_convs: int = 4,
        kernel_channels: int = 256,
        grid_sizes: Sequence[int] = (40, 36, 24, 16, 12),
        deform: HeadDeform = "none",
        norm: HeadNorm = "group",
        mask_branch: MaskBranch = "dynamic",
        coordinates: bool = True,
    ) -> None:
        super().__init__()
        if len(grid_sizes) != NUM_LEVELS:
            raise ValueError(
                f"the head has {NUM_LEVELS} levels (P2 to P6) and needs as many grid sizes; got "
                f"{tuple(grid_sizes)}"
            )
        if num_things < 1:
            raise ValueError(f"the head needs at least one thing category, got {num_things}")
        if mask_branch not in ("dynamic", "static"):
            raise ValueError(f"mask_branch must be 'dynamic' or 'static', got {mask_branch!r}")
        self.grid_sizes = tuple(grid_sizes)
        self.kernel_channels = kernel_channels
        self._grids, self._canvas_size = place_grids(grid_sizes)
        self._deformable = deform != "none"
        self.category_convs = _tower(in_channels, channels, num_convs, deform, norm)
        self._in_channels = in_channels
        self._coordinates = coordinates and mask_branch == "dynamic"
        self.static_kernels: StaticKernels | None = None
        if mask_branch == "dynamic":
            positions = 2 if coordinates else 0
            self.kernel_convs = _tower(in_channels + positions, channels, num_convs, deform, norm)
        self.category_out = nn.Conv2d(channels, num_things, 3, padding=1)
        if mask_branch == "dynamic":
            self.kernel_out = nn.Conv2d(channels, kernel_channels, 3, padding=1)
        else:
            self.static_kernels = StaticKernels(sum(s * s for s in grid_sizes), kernel_channels)
        init_normal(self)
        prior = -math.log((1 - CATEGORY_PRIOR) / CATEGORY_PRIOR)
        nn.init.constant_(self.category_out.bias, prior)  # type: ignore[arg-type]

    def forward(self, pyramid: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Predict every cell of every level.

        Args:
            pyramid: P2 to P6, [B, in_channels, h, w] each.

        Returns:
            category_logits: [B, L, C], cells of level 0 first, row-major inside a level.
            kernels: [B, L, E]; of a static mask branch [B, L, E + 1], the bias last.
        """
        levels = [
            F.interpolate(
                append_coordinates(features) if self._coordinates else features,
                size=(size, size),
                mode="bilinear",
                align_corners=False,
            )
            for features, size in zip(head_levels(pyramid), self.grid_sizes, strict=True)
        ]
        if self._canvas_pays(levels[0]):
            return self._on_canvas(levels)
        return self._one_by_one(levels)

    def _one_by_one(self, levels: list[Tensor]) -> tuple[Tensor, Tensor]:
        category = _cells(
            [
                self.category_out(self.category_convs(grid[:, : self._in_channels]))
                for grid in levels
            ]
        )
        if self.static_kernels is not None:
            return category, self.static_kernels(category.shape[0])
        return category, _cells([self.kernel_out(self.kernel_convs(grid)) for grid in levels])

    def _canvas_pays(self, grid: Tensor) -> bool:
        if self.training or torch.is_grad_enabled() or self._deformable or exporting():
            return False  # taps that move would reach into the neighbouring grid
        if grid.shape[0] > CANVAS_BATCH:
            return False
        return grid.is_cuda or backend_for(grid.device) == "triton"

    def _on_canvas(self, levels: list[Tensor]) -> tuple[Tensor, Tensor]:
        canvas = _paste(levels, self._grids, self._canvas_size)
        places = grid_slices(self._grids)
        category, kernels = canvas[:, : self._in_channels], canvas
        for block in self.category_convs:
            category = block.forward_grids(category, self._grids)  # type: ignore[operator]
        category = self.category_out(category)
        logits = _cells([category[p] for p in places])
        if self.static_kernels is not None:
            return logits, self.static_kernels(logits.shape[0])
        for block in self.kernel_convs:
            kernels = block.forward_grids(kernels, self._grids)  # type: ignore[operator]
        kernels = self.kernel_out(kernels)
        return logits, _cells([kernels[p] for p in places])


def place_grids(sizes: Sequence[int]) -> tuple[tuple[Grid, ...], tuple[int, int]]:
    """Lay square grids out on one canvas, at least one cell apart.

    The gaps are the zero padding of a 3 x 3 convolution. The canvas is as high as the largest grid;
    a grid goes below those of an earlier column where it fits, else it opens a column: 40, 36, 24,
    16 and 12 lie on 40 x 119.

    Args:
        sizes: Side of each grid, in cells.

    Returns:
        The grids' places, in the order given, and (height, width) of the canvas.
    """
    height = max(sizes)
    columns: list[list[int]] = []  # left edge, width, first free row
    right, places = 0, []
    for size in sizes:
        for column in columns:
            if size <= column[1] and column[2] + size <= height:
                break
        else:
            column = [right, size, 0]
            columns.append(column)
            right += size + 1
        places.append((column[2], column[0], size))
        column[2] += size + 1
    return tuple(places), (height, right - 1)


def _paste(levels: list[Tensor], grids: Sequence[Grid], size: tuple[int, int]) -> Tensor:
    """A canvas [B, C, H, W] with the levels in their places and zeros between."""
    first = levels[0]
    last = first.is_contiguous(memory_format=torch.channels_last) and not first.is_contiguous()
    canvas = torch.empty(
        (*first.shape[:2], *size),
        dtype=first.dtype,
        device=first.device,
        memory_format=torch.channels_last if last else torch.contiguous_format,
    ).zero_()
    for level, place in zip(levels, grid_slices(grids), strict=True):
        canvas[place] = level
    return canvas


def _cells(maps: list[Tensor]) -> Tensor:
    """Join maps [B, C, S, S] to [B, L, C], row by row."""
    return torch.cat([map_.flatten(2).transpose(1, 2) for map_ in maps], dim=1)


def _tower(
    in_channels: int, channels: int, num_convs: int, deform: HeadDeform, norm: HeadNorm
) -> nn.Sequential:
    which, _, version = deform.partition("-")
    kinds = [version if which == "all" else "none"] * num_convs
    if which == "last":
        kinds[-1] = version
    widths = pairwise([in_channels] + [channels] * num_convs)
    return nn.Sequential(
        *(
            ConvNormAct(before, after, deform=cast(Deform, kind), norm=norm)
            for (before, after), kind in zip(widths, kinds, strict=True)
        )
    )
