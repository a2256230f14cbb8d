"""What all Triton kernels share: device functions, the size of the GPU, the form of features."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = [
    "as_pixels",
    "exact_tanh",
    "jit",
    "multiprocessors",
    "on_device_of",
    "popcount",
    "round_up",
    "sigmoid",
    "tanh",
]

jit: Callable[[Callable[..., Any]], Any] = triton.jit
"""`triton.jit` with a type, which it has not itself."""

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Triton's emulator runs the kernels on the CPU, one program at a time; it knows no assembly."""

if INTERPRETED:

    @jit
    def popcount(words):  # type: ignore[no-untyped-def]
        """Count the set bits of each int32."""
        bits = words.to(tl.uint32, bitcast=True)  # unsigned: shifts bring in zeros
        bits = (bits & 0x55555555) + ((bits >> 1) & 0x55555555)
        bits = (bits & 0x33333333) + ((bits >> 2) & 0x33333333)
        bits = (bits & 0x0F0F0F0F) + ((bits >> 4) & 0x0F0F0F0F)
        bits = (bits & 0x00FF00FF) + ((bits >> 8) & 0x00FF00FF)
        return ((bits & 0xFFFF) + (bits >> 16)).to(tl.int32)

    @jit
    def tanh(values):  # type: ignore[no-untyped-def]
        """Hyperbolic tangent of float32 within 5e-4."""
        return 1.0 - 2.0 / (tl.exp(2.0 * values) + 1.0)

    @jit
    def sigmoid(values):  # type: ignore[no-untyped-def]
        """Sigmoid of float32 within 2e-7; exactly 0 at minus infinity."""
        return 1.0 / (1.0 + tl.exp(-values))

else:

    @jit
    def popcount(words):  # type: ignore[no-untyped-def]
        """Count the set bits of each int32."""
        return tl.inline_asm_elementwise(
            "popc.b32 $0, $1;", "=r,r", [words], dtype=tl.int32, is_pure=True, pack=1
        )

    @jit
    def tanh(values):  # type: ignore[no-untyped-def]
        """Hyperbolic tangent of float32 within 5e-4: one instruction, and exactly 0 at 0."""
        return tl.inline_asm_elementwise(
            "tanh.approx.f32 $0, $1;", "=f,f", [values], dtype=tl.float32, is_pure=True, pack=1
        )

    @jit
    def sigmoid(values):  # type: ignore[no-untyped-def]
        """Sigmoid of float32 within 2e-7; exactly 0 at minus infinity.

        What is below 1e-38 becomes 0. To keep it costs three times as many instructions.
        """
        return tl.inline_asm_elementwise(
            """
            mul.f32 $0, $1, 0fBFB8AA3B;  // -1 / ln 2
            ex2.approx.ftz.f32 $0, $0;
            add.f32 $0, $0, 0f3F800000;  // 1
            rcp.approx.ftz.f32 $0, $0;
            """,
            "=f,f",
            [values],
            dtype=tl.float32,
            is_pure=True,
            pack=1,
        )


@jit
def exact_tanh(values):  # type: ignore[no-untyped-def]
    """Hyperbolic tangent of float32 within 2e-7."""
    return 1.0 - 2.0 / (tl.exp(2.0 * values) + 1.0)


@cache
def multiprocessors(device: torch.device) -> int:
    """Say how many programs run side by side: what a persistent grid is sized for.

    Args:
        device: Of the tensors; a CPU only under Triton's interpreter.

    Returns:
        Streaming multiprocessors of a GPU; 3 for the interpreter, so that programs share the work
        there too.
    """
    if device.type != "cuda":
        return 3
    return torch.cuda.get_device_properties(device).multi_processor_count


def on_device_of(tensor: Tensor) -> AbstractContextManager[object]:
    """Make a tensor's GPU the current one: Triton launches there, wherever the tensors are.

    Args:
        tensor: Any argument of the kernels.

    Returns:
        A context manager.
    """
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def round_up(value: int, multiple: int) -> int:
    """Return the smallest multiple that is at least `value`."""
    return -(-value // multiple) * multiple


def as_pixels(features: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
    """Give maps one stride per pixel, so that a kernel can number their pixels row by row.

    Contiguous and channels_last maps pass as they are; only maps whose rows do not follow each
    other (a cut along the width) are copied.

    Args:
        features: [B, E, h, w], any strides.

    Returns:
        The maps, and their strides in values: per image, channel and pixel.
    """
    _, _, height, width = features.shape
    if height > 1 and features.stride(2) != width * features.stride(3):
        features = features.contiguous()
    # A map of one column has an arbitrary stride along the width.
    pixel = features.stride(3) if width > 1 else features.stride(2)
    return features, (features.stride(0), features.stride(1), pixel)
