"""SOLOv2's mask-feature branch: one map per image that every dynamic kernel reads."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from unisolo.models.deform import Deform
from unisolo.models.layers import (
    ConvNormAct,
    HeadNorm,
    append_coordinates,
    doubled,
    init_normal,
)

__all__ = ["MaskHead"]

NUM_LEVELS = 4


class MaskHead(nn.Module):
    """Unified mask features at stride 4 (SOLOv2, arXiv 2003.10152, "Mask Feature").

    Level i (P2 is level 0) passes i blocks of convolution and bilinear x 2 upsampling (P2: one
    convolution); the four results are summed and projected. Pixel positions are appended to P5.

    Args:
        in_channels: Channels of the pyramid.
        mid_channels: Width of the branch; of the trunk.
        out_channels: E, channels of the mask features; each dynamic kernel has as many.
        deform: Whether all convolutions (the last 1 x 1 too) are deformable, and which version.
        norm: Norm after each convolution.
        coordinates: Whether P5 gets positions.

    Attributes:
        out_channels: E.
    """

    def __init__(
        self,
        in_channels: int,
        mid_channels: int = 128,
        out_channels: int = 256,
        *,
        deform: Deform = "none",
        norm: HeadNorm = "group",
        coordinates: bool = True,
    ) -> None:
        super().__init__()
        self.out_channels = out_channels
        self._coordinates = coordinates
        self.levels = nn.ModuleList()
        for level in range(NUM_LEVELS):
            first = in_channels + 2 if self._has_positions(level) else in_channels
            widths = [first] + [mid_channels] * max(level, 1)
            self.levels.append(
                nn.ModuleList(
                    ConvNormAct(before, after, deform=deform, norm=norm)
                    for before, after in pairwise(widths)
                )
            )
        self.out = ConvNormAct(mid_channels, out_channels, kernel_size=1, deform=deform, norm=norm)
        init_normal(self)

    def forward(self, pyramid: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Predict mask features.

        Args:
            pyramid: P2, P3, P4, P5 (more are ignored), [B, in_channels, h, w], each exactly half
                the size of the one before.

        Returns:
            mask_features: [B, E, h, w] at P2's size, non-negative.
            trunk: [B, mid_channels, h, w], the sum before the last convolution, for heads that
                share it.
        """
        trunk: Tensor | None = None
        for level, convs in enumerate(self.levels):
            features = pyramid[level]
            if self._has_positions(level):
                features = append_coordinates(features)
            for conv in convs:  # type: ignore[attr-defined]
                features = conv(features)
                if level > 0:
                    features = doubled(features)
            trunk = features if trunk is None else trunk + features
        return self.out(trunk), trunk  # type: ignore[return-value]

    def _has_positions(self, level: int) -> bool:
        return self._coordinates and level == NUM_LEVELS - 1
