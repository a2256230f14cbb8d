"""Feature pyramid network: P2 to P6 from whatever strides the backbone has."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from unisolo.models.layers import group_norm

__all__ = ["FPN"]

LEVEL_STRIDES = (4, 8, 16, 32)


class FPN(nn.Module):
    """Feature pyramid network (arXiv 1612.03144) as SOLOv2 uses it.

    1 x 1 lateral convolutions, nearest upsampling and addition from coarse to fine, 3 x 3 output
    convolutions, no activation; P6 is every second pixel of P5.

    A backbone with features at strides 4, 8, 16 and 32 is used as it is. For any other set each
    pyramid level takes the feature of the nearest stride (the finer one in a tie), brought to the
    level's size after its lateral convolution: bilinear upwards, average pooling downwards. Levels
    that share a stride spread over the features of that stride, earlier features to finer levels
    (a plain ViT has several maps of one stride).

    Args:
        in_channels: Channels of each feature.
        in_strides: Stride of each feature, a power of two between 4 and 32.
        channels: Channels of every pyramid level.
        norm: Norm after each convolution, whose bias is then left out; "none" is the reference.

    Attributes:
        channels: Channels of every pyramid level.
        sources: Index of the feature that each of P2..P5 is made from.

    Raises:
        ValueError: If the inputs' channels and strides do not match in number, there is none, a
            stride is not supported, or the norm is unknown.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        in_strides: Sequence[int],
        *,
        channels: int = 256,
        norm: Literal["none", "group", "batch"] = "none",
    ) -> None:
        super().__init__()
        if len(in_channels) != len(in_strides) or not in_channels:
            raise ValueError(
                "FPN needs one stride per feature and at least one feature; got channels "
                f"{tuple(in_channels)} and strides {tuple(in_strides)}"
            )
        odd = [stride for stride in in_strides if stride not in LEVEL_STRIDES]
        if odd:
            raise ValueError(
                f"FPN cannot use features at strides {odd}: they must be among {LEVEL_STRIDES}, so "
                "that pyramid levels are whole multiples"
            )
        self.channels = channels
        self.sources = choose_sources(in_strides)
        self._in_strides = tuple(in_strides)
        self.laterals = nn.ModuleList(
            _conv(in_channels[source], channels, 1, norm) for source in self.sources
        )
        self.outputs = nn.ModuleList(_conv(channels, channels, 3, norm) for _ in LEVEL_STRIDES)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Build the pyramid.

        Args:
            features: One [B, in_channels[i], H / in_strides[i], W / in_strides[i]] per input.

        Returns:
            P2 to P6, [B, channels, h, w] each at strides 4, 8, 16, 32 and 64 (sizes rounded up).
        """
        levels = [
            _resample(lateral(features[source]), self._in_strides[source], stride)
            for lateral, source, stride in zip(
                self.laterals, self.sources, LEVEL_STRIDES, strict=True
            )
        ]
        for index in range(len(levels) - 1, 0, -1):
            finer = levels[index - 1]
            levels[index - 1] = finer + F.interpolate(levels[index], size=finer.shape[-2:])
        pyramid: list[Tensor] = [
            output(level) for output, level in zip(self.outputs, levels, strict=True)
        ]
        # Every second pixel. OpenVINO takes the slice [::2] of a free size for one of equal size.
        pyramid.append(F.max_pool2d(pyramid[-1], kernel_size=1, stride=2))
        return pyramid


def choose_sources(in_strides: Sequence[int]) -> tuple[int, ...]:
    """Return, for P2 to P5, which of the features each is made from (see `FPN`)."""
    nearest = [
        min(set(in_strides), key=lambda stride: (abs(math.log2(stride / level)), stride))
        for level in LEVEL_STRIDES
    ]
    sources = []
    for place, stride in enumerate(nearest):
        group = [index for index, other in enumerate(in_strides) if other == stride]
        sharing = nearest.count(stride)
        # The deepest feature where one level alone uses the stride; else spread over all of them.
        share = (place - nearest.index(stride)) / (sharing - 1) if sharing > 1 else 1.0
        sources.append(group[round(share * (len(group) - 1))])
    return tuple(sources)


def _resample(features: Tensor, stride: int, wanted: int) -> Tensor:
    if stride > wanted:
        factor = stride // wanted
        height, width = features.shape[-2:]  # a float factor would not export
        size = (factor * height, factor * width)
        return F.interpolate(features, size=size, mode="bilinear", align_corners=False)
    if stride < wanted:
        factor = wanted // stride
        return F.avg_pool2d(features, factor, ceil_mode=True)
    return features


def _conv(in_channels: int, out_channels: int, kernel_size: int, norm: str) -> nn.Module:
    conv = nn.Conv2d(
        in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=norm == "none"
    )
    if norm == "none":
        return conv
    if norm == "group":
        return nn.Sequential(conv, group_norm(out_channels))
    if norm == "batch":
        return nn.Sequential(conv, nn.BatchNorm2d(out_channels))
    raise ValueError(f"FPN norm must be 'none', 'group' or 'batch', got {norm!r}")
