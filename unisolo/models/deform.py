"""Deformable convolutions, in a form for running and an equal one for export."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

__all__ = ["Deform", "DeformConv2d", "HeadDeform", "exporting", "sample_and_multiply"]

Deform = Literal["none", "v1", "v2"]
"""Which deformable convolution takes the place of a plain one."""

HeadDeform = Literal["none", "last-v1", "last-v2", "all-v1", "all-v2"]
"""Which convolutions of the head's towers are deformable, and which version."""


class DeformConv2d(nn.Module):
    """A convolution whose taps move: each reads the input at a learnt offset, bilinearly.

    Version 1 (arXiv 1703.06211) has offsets, version 2 (arXiv 1811.11168) also weighs each tap by a
    learnt mask. Offsets and mask come from a plain convolution of the same input, `conv_offset`:
    (dy, dx) of tap 0, of tap 1, ... row-major over the kernel, then (version 2) one logit per tap.
    It starts at zero: no offsets, and a mask of 0.5. There is no bias.

    Args:
        in_channels: Channels in.
        out_channels: Channels out.
        kernel_size: Odd side of the kernel.
        stride: Stride.
        dilation: Distance between taps.
        groups: Groups of channels, as in `nn.Conv2d`; offsets are shared by all.
        version: "v1" or "v2".

    Raises:
        ValueError: If the version is unknown.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        version: Deform = "v2",
    ) -> None:
        super().__init__()
        if version not in ("v1", "v2"):
            raise ValueError(f"deformable convolutions are 'v1' or 'v2', got {version!r}")
        self.stride = stride
        self.padding = dilation * (kernel_size // 2)
        self.dilation = dilation
        self.version = version
        self.weight = nn.Parameter(
            torch.empty(out_channels, in_channels // groups, kernel_size, kernel_size)
        )
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))  # as `nn.Conv2d` does
        self.conv_offset = nn.Conv2d(
            in_channels,
            (2 if version == "v1" else 3) * kernel_size**2,
            kernel_size,
            stride=stride,
            padding=self.padding,
            dilation=dilation,
        )
        self.reset_offsets()

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, version: Deform) -> DeformConv2d:
        """Return a deformable convolution with a plain one's sizes and its very weight.

        Args:
            conv: A size-preserving (but for its stride) convolution without bias, square in all.
            version: "v1" or "v2".
        """
        made = cls(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size[0],
            stride=conv.stride[0],
            dilation=conv.dilation[0],
            groups=conv.groups,
            version=version,
        )
        made.weight = nn.Parameter(conv.weight.detach())
        return made

    def reset_offsets(self) -> None:
        """Zero the offset convolution."""
        nn.init.zeros_(self.conv_offset.weight)
        nn.init.zeros_(self.conv_offset.bias)  # type: ignore[arg-type]

    def forward(self, features: Tensor) -> Tensor:
        """Map [B, in_channels, h, w] to [B, out_channels, h / stride, w / stride], rounded up."""
        moves = self.conv_offset(features)
        # Under autocast these are of half precision, which torchvision's operator does not mix.
        features, moved = features.to(self.weight.dtype), moves.to(self.weight.dtype)
        taps = self.weight.shape[-1] ** 2
        offsets = moved[:, : 2 * taps]
        mask = moved[:, 2 * taps :].sigmoid() if self.version == "v2" else None
        # ONNX and OpenVINO have no such operator.
        compute = sample_and_multiply if exporting() else deform_conv2d
        result: Tensor = compute(
            features,
            offsets,
            weight=self.weight,
            mask=mask,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
        )
        return result.to(moves.dtype)


def sample_and_multiply(
    features: Tensor,
    offsets: Tensor,
    weight: Tensor,
    mask: Tensor | None = None,
    *,
    stride: int,
    padding: int,
    dilation: int,
) -> Tensor:
    """Compute a deformable convolution by bilinear sampling and one product of matrices.

    Args:
        features: [B, C, h, w].
        offsets: [B, 2 * k * k, H, W], (dy, dx) per tap, in pixels.
        weight: [O, C / groups, k, k].
        mask: [B, k * k, H, W] weight of each tap, or None.
        stride: Stride.
        padding: Zero padding on each side.
        dilation: Distance between taps.

    Returns:
        [B, O, H, W].
    """
    batch, channels, height, width = features.shape
    out_height, out_width = offsets.shape[-2:]
    out_channels, group_channels, side, _ = weight.shape
    taps, groups = side * side, channels // group_channels

    moves = offsets.reshape(batch, taps, 2, out_height, out_width)
    tap = torch.arange(taps, device=features.device)
    rows = torch.arange(out_height, device=features.device) * stride - padding
    columns = torch.arange(out_width, device=features.device) * stride - padding
    y = moves[:, :, 0] + (tap // side * dilation)[:, None, None] + rows[:, None]
    x = moves[:, :, 1] + (tap % side * dilation)[:, None, None] + columns
    # With align_corners=False -1 and 1 are the outer edges of the first and last pixel: this also
    # holds for maps of one pixel, where align_corners=True would divide by zero.
    grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1)
    sampled = F.grid_sample(
        features,
        grid.reshape(batch, taps * out_height, out_width, 2),
        mode="bilinear",
        padding_mode="zeros",
        align_corners=False,
    ).reshape(batch, channels, taps, out_height, out_width)
    if mask is not None:
        sampled = sampled * mask[:, None]
    product = weight.reshape(groups, out_channels // groups, group_channels * taps) @ (
        sampled.reshape(batch, groups, group_channels * taps, out_height * out_width)
    )
    return product.reshape(batch, out_channels, out_height, out_width)


def exporting() -> bool:
    """Whether the model is being traced for a file rather than run."""
    # Before torch 2.7 there is only the wider question; compiled code then takes this way too.
    asked = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)
    return bool(asked() or torch.onnx.is_in_onnx_export() or torch._C._get_tracing_state())
