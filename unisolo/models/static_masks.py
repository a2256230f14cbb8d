"""SOLOv1's mask branch in SOLOv2's terms: kernels that are weights, and features of each level.

SOLOv1 (arXiv 1912.04488) ends its mask branch with a 1 x 1 convolution of S * S channels on each
level: channel k is the mask of cell k. Row k of that convolution's weights is cell k's kernel, the
same for every image. So a channel is made like a dynamic mask, and only for cells that are trained
or are candidates: the values are those of all S * S channels, most of which nobody would look at.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unisolo.models.deform import Deform
from unisolo.models.layers import (
    ConvNormAct,
    HeadNorm,
    append_coordinates,
    doubled,
    head_levels,
    init_normal,
)

__all__ = ["SeparateMaskHead", "StaticKernels"]

MASK_PRIOR = 0.01
"""Probability of each pixel at the start, as SOLOv1's code has it."""


class StaticKernels(nn.Module):
    """The 1 x 1 convolutions that end SOLOv1's mask branch, of all levels in one.

    Args:
        num_cells: L, cells of all levels: S * S channels each.
        channels: E, of the mask features.

    Attributes:
        weight: [L, E].
        bias: [L].
    """

    def __init__(self, num_cells: int, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_cells, channels))
        self.bias = nn.Parameter(torch.empty(num_cells))
        nn.init.normal_(self.weight, std=0.01)
        nn.init.constant_(self.bias, -math.log((1 - MASK_PRIOR) / MASK_PRIOR))

    def forward(self, batch_size: int) -> Tensor:
        """Return the kernels of a batch.

        Args:
            batch_size: B.

        Returns:
            [B, L, E + 1], a view of the same numbers for every image; the last is the bias, for
            features that end with a channel of ones.
        """
        return torch.cat([self.weight, self.bias[:, None]], dim=1).expand(batch_size, -1, -1)


class SeparateMaskHead(nn.Module):
    """Mask features of each level by itself: SOLOv1's, and "separate" in SOLOv2's ablation.

    The five levels pass the same convolutions at the head's strides 8, 8, 16, 32 and 32, and are
    then enlarged x 2, so that large objects are drawn on coarse maps: what unified features mend.

    Args:
        in_channels: Channels of the pyramid.
        mid_channels: Width of the convolutions but the last.
        out_channels: E, channels of the last: of the mask features.
        num_convs: 3 x 3 convolutions; SOLOv1 has 7.
        deform: Whether they are deformable, and which version.
        norm: Norm after each convolution.
        coordinates: Whether the input gets positions.
        trunk: Whether to make the map that other heads share.

    Attributes:
        out_channels: E.

    Raises:
        ValueError: If there is no convolution.
    """

    def __init__(
        self,
        in_channels: int,
        mid_channels: int = 256,
        out_channels: int = 256,
        *,
        num_convs: int = 7,
        deform: Deform = "none",
        norm: HeadNorm = "group",
        coordinates: bool = True,
        trunk: bool = False,
    ) -> None:
        super().__init__()
        if num_convs < 1:
            raise ValueError(f"num_convs must be at least 1, got {num_convs}")
        self.out_channels = out_channels
        self._coordinates = coordinates
        self._trunk = trunk
        first = in_channels + 2 if coordinates else in_channels
        widths = [first, *[mid_channels] * (num_convs - 1), out_channels]
        self.convs = nn.Sequential(
            *(
                ConvNormAct(before, after, deform=deform, norm=norm)
                for before, after in pairwise(widths)
            )
        )
        init_normal(self)

    def forward(self, pyramid: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """Predict mask features.

        Args:
            pyramid: P2 to P6, [B, in_channels, h, w], each half the size of the one before.

        Returns:
            features: Five maps [B, E, h, w], non-negative, at strides 4, 4, 8, 16 and 16.
            trunk: [B, E, h, w], their sum at stride 4, or None where none is wanted.
        """
        levels = head_levels(pyramid)
        if self._coordinates:
            levels = [append_coordinates(level) for level in levels]
        features = tuple(doubled(self.convs(level)) for level in levels)
        if not self._trunk:
            return features, None
        size = features[0].shape[-2:]
        trunk = features[0] + features[1]
        for coarse in features[2:]:
            trunk = trunk + F.interpolate(coarse, size=size, mode="bilinear", align_corners=False)
        return features, trunk
