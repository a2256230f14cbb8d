"""Pieces that the neck and the heads share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unisolo.models.deform import Deform, DeformConv2d
from unisolo.ops.group_norm import Grid, group_norm_grids, keep_grids
from unisolo.ops.group_norm import group_norm as apply_group_norm

__all__ = [
    "ConvNormAct",
    "HeadNorm",
    "append_coordinates",
    "doubled",
    "group_norm",
    "head_levels",
    "init_normal",
]

HeadNorm = Literal["group", "batch"]
"""Norm in the heads: SOLOv2's, or one that `unisolo.optimize` folds into the convolutions."""


class _GroupNorm(nn.GroupNorm):
    def forward(self, input: Tensor) -> Tensor:
        return apply_group_norm(input, self.num_groups, self.weight, self.bias, self.eps)


def group_norm(channels: int) -> nn.GroupNorm:
    """Return SOLOv2's norm: 32 groups.

    Where 32 does not divide the channels, the largest divisor below it is the number of groups.
    """
    groups = max(group for group in range(1, min(32, channels) + 1) if channels % group == 0)
    return _GroupNorm(groups, channels)


class ConvNormAct(nn.Module):
    """Convolution without bias, norm, ReLU; size-preserving.

    Args:
        in_channels: Channels in.
        out_channels: Channels out.
        kernel_size: Odd side of the kernel.
        deform: Whether the convolution is deformable, and which version.
        norm: Group norm (see `group_norm`) or batch norm.

    Raises:
        ValueError: If there is no such norm.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        deform: Deform = "none",
        norm: HeadNorm = "group",
    ) -> None:
        super().__init__()
        self.conv: nn.Module
        if deform == "none":
            self.conv = nn.Conv2d(
                in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False
            )
        else:
            self.conv = DeformConv2d(in_channels, out_channels, kernel_size, version=deform)
        if norm not in ("group", "batch"):
            raise ValueError(f"norm must be 'group' or 'batch', got {norm!r}")
        self.norm: nn.Module = (
            group_norm(out_channels) if norm == "group" else nn.BatchNorm2d(out_channels)
        )

    def forward(self, features: Tensor) -> Tensor:
        """Map [B, in_channels, h, w] to [B, out_channels, h, w], non-negative."""
        mixed = self.conv(features)
        norm = self.norm
        if isinstance(norm, nn.GroupNorm):
            groups, eps = norm.num_groups, norm.eps
            return apply_group_norm(mixed, groups, norm.weight, norm.bias, eps, relu=True)
        return torch.relu(norm(mixed))

    def forward_grids(self, canvas: Tensor, grids: Sequence[Grid]) -> Tensor:
        """Treat each of several grids on a canvas as a map of its own; in evaluation mode.

        Args:
            canvas: [B, in_channels, H, W], 0 outside the grids, which are at least as far apart as
                the kernel reaches from its centre.
            grids: Their places.

        Returns:
            [B, out_channels, H, W], again 0 outside the grids.
        """
        mixed = self.conv(canvas)
        norm = self.norm
        if isinstance(norm, nn.GroupNorm):
            groups, eps = norm.num_groups, norm.eps
            return group_norm_grids(mixed, grids, groups, norm.weight, norm.bias, eps, relu=True)
        return keep_grids(torch.relu(norm(mixed)), grids)


def append_coordinates(features: Tensor) -> Tensor:
    """Append each pixel's position as two channels (CoordConv; SOLOv2, "Mask Kernel").

    Args:
        features: [B, C, h, w].

    Returns:
        [B, C + 2, h, w]: the features, then x, then y, each from -1 at the centre of the first
        column (row) to 1 at the centre of the last.
    """
    batch, _, height, width = features.shape
    x = _positions(width, features)
    y = _positions(height, features)
    x = x.view(1, 1, 1, width).expand(batch, 1, height, width)
    y = y.view(1, 1, height, 1).expand(batch, 1, height, width)
    return torch.cat([features, x, y], dim=1)


def _positions(count: int, like: Tensor) -> Tensor:
    """[count] from -1 to 1 in even steps, as `torch.linspace`, whose length an export would fix."""
    index = torch.arange(count, device=like.device, dtype=torch.float32)
    last = index[-1:]
    step = 2 / last.clamp_min(1)
    # From the nearer end, so that the values are symmetric.
    return torch.where(2 * index <= last, index * step - 1, 1 - (last - index) * step).to(
        like.dtype
    )


def head_levels(pyramid: Sequence[Tensor]) -> list[Tensor]:
    """Bring P2..P6 to the head's strides 8, 8, 16, 32, 32 (SOLOv1, arXiv 1912.04488).

    Args:
        pyramid: P2 to P6, [B, C, h, w] each.

    Returns:
        Five maps [B, C, h, w]: P2 at P3's size, P3, P4, P5, and P6 at P5's size.
    """
    p2, p3, p4, p5, p6 = pyramid
    half = F.interpolate(p2, size=p3.shape[-2:], mode="bilinear", align_corners=False)
    last = F.interpolate(p6, size=p5.shape[-2:], mode="bilinear", align_corners=False)
    return [half, p3, p4, p5, last]


def doubled(features: Tensor) -> Tensor:
    """Resize [B, C, h, w] to [B, C, 2 h, 2 w], bilinear."""
    height, width = features.shape[-2:]  # a float factor would not export
    return F.interpolate(
        features, size=(2 * height, 2 * width), mode="bilinear", align_corners=False
    )


def init_normal(module: nn.Module) -> None:
    """Draw convolution weights with standard deviation 0.01 and zero their biases (SOLOv2).

    Deformable convolutions start without offsets.
    """
    children = list(module.modules())
    for child in children:
        if isinstance(child, (nn.Conv2d, DeformConv2d)):
            nn.init.normal_(child.weight, std=0.01)
        if isinstance(child, nn.Conv2d) and child.bias is not None:
            nn.init.zeros_(child.bias)
    for child in children:
        if isinstance(child, DeformConv2d):
            child.reset_offsets()
