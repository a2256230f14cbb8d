"""Triton: products of kernels and features, tile by tile: logits that never reach memory.

The masks of the candidates and those of the kept instances are made of the same products and cut
them the same way. Where the kernels of one program fit on the chip they stay there, and features
stream past them; elsewhere both are read in steps of a few channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from unisolo.ops.kernels.launch import jit, multiprocessors, round_up

__all__ = ["Tiling", "is_wide", "logit_tile", "resident_kernels", "tiling_of"]


@dataclass(frozen=True)
class Tiling:
    """How a matrix product of kernels and features is cut.

    Attributes:
        rows: Kernels per program.
        channels: Channels per step; all of them where `resident`.
        resident: Whether a program keeps its kernels on the chip and takes all channels at once.
        warps: Per program.
        together: Programs that run side by side on one multiprocessor.
        operand: Type of the factors.
    """

    rows: int
    channels: int
    resident: bool
    warps: int
    together: int
    operand: torch.dtype

    def parts(self, device: torch.device, programs: int, num_blocks: int) -> int:
        """Say among how many programs the blocks of pixels are dealt, so that the GPU is full."""
        return min(max(1, multiprocessors(device) * self.together // programs), num_blocks)

    @property
    def constants(self) -> dict[str, object]:
        """The tiling as the kernels want it."""
        single = self.operand == torch.float32
        return {
            "ROWS": self.rows,
            "CHANNELS": self.channels,
            "RESIDENT": self.resident,
            "OPERAND": {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}.get(
                self.operand, tl.float32
            ),
            "PRECISION": "tf32x3" if single else "ieee",
        }


def tiling_of(
    kernels: Tensor, features: Tensor, strides: tuple[int, int, int], num_rows: int, most_rows: int
) -> Tiling:
    """Choose the tiles by what fits into the shared memory of one multiprocessor.

    Args:
        kernels: [..., E] floating.
        features: [B, E, h, w] floating.
        strides: Of the features, per image, channel and pixel.
        num_rows: Kernels per image.
        most_rows: Upper bound of the kernels per program.

    Returns:
        Tiles; float32 factors unless both tensors have the same half precision.
    """
    num_channels = kernels.shape[-1]
    padded = max(16, triton.next_power_of_2(num_channels))
    half = kernels.dtype == features.dtype and kernels.dtype in (torch.float16, torch.bfloat16)
    if not half:
        return Tiling(64, 16, False, 4, 3, torch.float32)
    # Values that lie side by side can be fetched ahead only 16 bytes at a time.
    aligned = all(stride == 1 or stride % 16 == 0 for stride in strides[1:])
    if padded > 256 or not aligned or not _holds_kernels(features.device):
        return Tiling(128, 32, False, 8, 2, kernels.dtype)
    if num_rows <= 64:
        return Tiling(64, padded, True, 4, 1, kernels.dtype)
    # 256 rows read the features half as often as 128, unless half of the last 256 were empty.
    rows = min(most_rows, 256 if round_up(num_rows, 128) % 256 == 0 else 128)
    return Tiling(rows, padded, True, 8, 1, kernels.dtype)


def is_wide(features: Tensor) -> bool:
    """Whether places in one image's features need more than 32 bits."""
    reach = sum(
        (size - 1) * stride
        for size, stride in zip(features.shape[1:], features.stride()[1:], strict=True)
    )
    return reach >= 2**31 - 1


@cache
def _holds_kernels(device: torch.device) -> bool:
    """Whether 256 kernels of 256 channels fit on the chip, beside three tiles of features.

    They take 226 KiB of shared memory; of the GPUs that Triton serves, those for data centres from
    Hopper on have 227 KiB.
    """
    return device.type != "cuda" or torch.cuda.get_device_capability(device)[0] in (9, 10)


@jit
def resident_kernels(  # type: ignore[no-untyped-def]
    rows_ptr, real, num_channels, channel_stride, CHANNELS: tl.constexpr
):
    """Load [ROWS, CHANNELS] kernels; rows that are not real are zeros.

    Nothing may be computed on them: the product would then take them from registers.
    """
    channels = tl.arange(0, CHANNELS)
    return tl.load(
        rows_ptr[:, None] + channels[None, :] * channel_stride,
        mask=real[:, None] & (channels < num_channels)[None, :],
        other=0.0,
    )


@jit
def logit_tile(  # type: ignore[no-untyped-def]
    held,
    rows_ptr,
    real,
    features_ptr,
    pixels,
    in_map,
    num_channels,
    kernel_channel,
    feature_channel,
    feature_pixel,
    CHANNELS: tl.constexpr,
    RESIDENT: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Multiply kernels and the features of some pixels: [ROWS, pixels] float32 logits.

    `held` are the kernels where they stay on the chip; else they are read again, step by step.
    """
    channels = tl.arange(0, CHANNELS)
    if WIDE:
        channels = channels.to(tl.int64)
        pixels = pixels.to(tl.int64)
    columns_ptr = features_ptr + pixels * feature_pixel
    if RESIDENT:
        values = tl.load(
            columns_ptr[None, :] + channels[:, None] * feature_channel,
            mask=(channels < num_channels)[:, None] & in_map[None, :],
            other=0.0,
        )
        product = tl.dot(held, values, input_precision=PRECISION)
    else:
        product = tl.zeros([rows_ptr.shape[0], pixels.shape[0]], tl.float32)
        for start in range(0, num_channels, CHANNELS):
            here = start + channels
            exists = here < num_channels
            kernels = tl.load(
                rows_ptr[:, None] + here[None, :] * kernel_channel,
                mask=real[:, None] & exists[None, :],
                other=0.0,
            ).to(OPERAND)
            values = tl.load(
                columns_ptr[None, :] + here[:, None] * feature_channel,
                mask=exists[:, None] & in_map[None, :],
                other=0.0,
            ).to(OPERAND)
            product = tl.dot(kernels, values, product, input_precision=PRECISION)
    return product
