"""TensorFlow's "same" padding as constants, which exports with any image size."""

from __future__ import annotations

import torch.nn.functional as F
from timm.layers import Conv2dSame
from torch import Tensor, nn

__all__ = ["fix_padding"]


class _PaddedConv(nn.Module):
    """A convolution that pads all its inputs by the same amounts."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]
            conv.stride,  # type: ignore[arg-type]
            dilation=conv.dilation,  # type: ignore[arg-type]
            groups=conv.groups,
            bias=conv.bias is not None,
            device=conv.weight.device,
            dtype=conv.weight.dtype,
        )
        self.conv.load_state_dict(conv.state_dict())
        self.pads: list[int] = []  # F.pad's order: the last dimension first
        for kernel, stride, dilation in zip(
            conv.kernel_size[::-1], conv.stride[::-1], conv.dilation[::-1], strict=True
        ):
            total = max((kernel - 1) * dilation + 1 - stride, 0)
            self.pads += [total // 2, total - total // 2]

    def forward(self, features: Tensor) -> Tensor:
        padded: Tensor = self.conv(F.pad(features, self.pads))
        return padded


def fix_padding(module: nn.Module) -> None:
    """Replace, in place, convolutions whose padding is computed from the size of their input.

    "Same" padding depends on the size only through its remainder by the stride. The model's inputs
    are multiples of 32, so the inputs of its strided convolutions are multiples of their strides
    and the padding is a constant. Left as it is, the arithmetic on sizes keeps `torch.export` busy
    for many minutes.

    Args:
        module: A copy that may be changed.
    """
    for name, child in list(module.named_children()):
        if isinstance(child, Conv2dSame):
            setattr(module, name, _PaddedConv(child))
        else:
            fix_padding(child)
