"""SOLOv2's head: what is in each grid cell, and the kernel that draws it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unisolo.models.deform import Deform, HeadDeform
from unisolo.models.layers import ConvNormAct, append_coordinates, init_normal

__all__ = ["SoloHead"]

NUM_LEVELS = 5
CATEGORY_PRIOR = 0.01
"""Probability of each category at the start, for the focal loss (arXiv 1708.02002, section 3.3)."""


class SoloHead(nn.Module):
    """Category and kernel branches, shared by five levels (SOLOv2, 2003.10152, "Mask Kernel").

    Each level is resized to its S x S grid, square whatever the image's shape. Pixel positions are
    appended before that and go to the kernel branch only: a kernel must know where it is to tell
    two alike objects apart, a category must not.

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

    Attributes:
        grid_sizes: S of each level.
        kernel_channels: E.

    Raises:
        ValueError: If the number of levels is not five or there is no category.
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
    ) -> None:
        super().__init__()
        if len(grid_sizes) != NUM_LEVELS:
            raise ValueError(
                f"the head has {NUM_LEVELS} levels (P2 to P6) and needs as many grid sizes; got "
                f"{tuple(grid_sizes)}"
            )
        if num_things < 1:
            raise ValueError(f"the head needs at least one thing category, got {num_things}")
        self.grid_sizes = tuple(grid_sizes)
        self.kernel_channels = kernel_channels
        self.category_convs = _tower(in_channels, channels, num_convs, deform)
        self.kernel_convs = _tower(in_channels + 2, channels, num_convs, deform)
        self.category_out = nn.Conv2d(channels, num_things, 3, padding=1)
        self.kernel_out = nn.Conv2d(channels, kernel_channels, 3, padding=1)
        init_normal(self)
        prior = -math.log((1 - CATEGORY_PRIOR) / CATEGORY_PRIOR)
        nn.init.constant_(self.category_out.bias, prior)  # type: ignore[arg-type]

    def forward(self, pyramid: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Predict every cell of every level.

        Args:
            pyramid: P2 to P6, [B, in_channels, h, w] each.

        Returns:
            category_logits: [B, L, C], cells of level 0 first, row-major inside a level.
            kernels: [B, L, E].
        """
        logits, kernels = [], []
        for features, size in zip(_split(pyramid), self.grid_sizes, strict=True):
            grid = F.interpolate(
                append_coordinates(features),
                size=(size, size),
                mode="bilinear",
                align_corners=False,
            )
            category = self.category_out(self.category_convs(grid[:, :-2]))
            kernel = self.kernel_out(self.kernel_convs(grid))
            logits.append(category.flatten(2).transpose(1, 2))
            kernels.append(kernel.flatten(2).transpose(1, 2))
        return torch.cat(logits, dim=1), torch.cat(kernels, dim=1)


def _split(pyramid: Sequence[Tensor]) -> list[Tensor]:
    """Bring P2..P6 to the head's strides 8, 8, 16, 32, 32."""
    p2, p3, p4, p5, p6 = pyramid
    half = F.interpolate(p2, size=p3.shape[-2:], mode="bilinear", align_corners=False)
    last = F.interpolate(p6, size=p5.shape[-2:], mode="bilinear", align_corners=False)
    return [half, p3, p4, p5, last]


def _tower(in_channels: int, channels: int, num_convs: int, deform: HeadDeform) -> nn.Sequential:
    which, _, version = deform.partition("-")
    kinds = [version if which == "all" else "none"] * num_convs
    if which == "last":
        kinds[-1] = version
    widths = pairwise([in_channels] + [channels] * num_convs)
    return nn.Sequential(
        *(
            ConvNormAct(before, after, deform=cast(Deform, kind))
            for (before, after), kind in zip(widths, kinds, strict=True)
        )
    )
