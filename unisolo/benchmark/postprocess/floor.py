"""What the post-process must cost at least, from two ceilings of the device measured beside it.

Each stage is as long as the slower of what it must compute and what it must move:

- selection: the category logits are read once;
- dynamic masks: 2 N E P operations, and the mask features are read once;
- intersections: N masks of P bits are read once;
- soft masks: 2 K E P operations, and the mask features are read again; or, where that is less, the
  first products are all kept, N P numbers written and K P read;
- upsample: K masks of H W bits are written.

N candidates, K places, E channels, P pixels at stride 4. Decay and ranking work on N x N numbers
that stay in a cache, and count as nothing; so does starting kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from unisolo.benchmark.gpu_timing import time_on_gpu
from unisolo.benchmark.timing import time_in_turns

__all__ = ["Ceilings", "Work", "floors", "measure_ceilings"]

GPU_SIDE, CPU_SIDE = 8192, 1024
"""Side of the square matrices multiplied."""
GPU_BYTES, CPU_BYTES = 2**29, 2**27
"""Bytes copied: beyond every cache."""


@dataclass(frozen=True)
class Ceilings:
    """What the device does at most, measured.

    Attributes:
        bytes_per_second: Read and written together, of a large copy.
        operations_per_second: Of a product of square matrices of this type, two per multiply-add.
        dtype: Type of the matrices.
    """

    bytes_per_second: float
    operations_per_second: float
    dtype: str


@dataclass(frozen=True)
class Work:
    """How much a post-process has to do.

    Attributes:
        candidates: N.
        places: K.
        channels: E.
        pixels: P, of the mask features.
        full_pixels: H * W of the results.
        value_bytes: Of one number of kernels and mask features.
        logits: Category logits, 0 where candidates are given.
    """

    candidates: int
    places: int
    channels: int
    pixels: int
    full_pixels: int
    value_bytes: int
    logits: int = 0


def measure_ceilings(device: torch.device, dtype: torch.dtype, repeat: int) -> Ceilings:
    """Measure the ceilings; on a CPU per second of processor time.

    Args:
        device: A CUDA device (the current one) or the CPU.
        dtype: Of the matrices.
        repeat: Timed runs of each probe.

    Returns:
        The ceilings, from medians.
    """
    on_gpu = device.type == "cuda"
    side, size = (GPU_SIDE, GPU_BYTES) if on_gpu else (CPU_SIDE, CPU_BYTES)
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    # Not zeros: with them a GPU needs less power and keeps a higher clock than in real work.
    left = torch.randn(side, side, device=device).to(dtype)
    right = torch.randn(side, side, device=device).to(dtype)
    product = torch.empty_like(left)
    calls: dict[str, Callable[[], object]] = {
        "copy": lambda: target.copy_(source),
        "product": lambda: torch.mm(left, right, out=product),
    }
    timings = time_on_gpu(calls, repeat, graph=True) if on_gpu else time_in_turns(calls, repeat)
    # Per second of a processor: on a machine that others use too, all else is noise.
    seconds = {
        name: (timing.median if on_gpu else timing.cpu) / 1e3 for name, timing in timings.items()
    }
    return Ceilings(
        bytes_per_second=2 * size / seconds["copy"],
        operations_per_second=2 * side**3 / seconds["product"],
        dtype=str(dtype).removeprefix("torch."),
    )


def floors(work: Work, ceilings: Ceilings) -> dict[str, float]:
    """Return the least time of each stage.

    Args:
        work: What is to do.
        ceilings: What the device can do.

    Returns:
        Milliseconds by stage, of processor time on a CPU; their sum is the floor of the whole.
    """

    def at_least(operations: float, moved: float) -> float:
        return 1e3 * max(
            operations / ceilings.operations_per_second, moved / ceilings.bytes_per_second
        )

    per_mask = 2 * work.channels * work.pixels
    features = work.channels * work.pixels * work.value_bytes
    return {
        "selection": at_least(0, 4 * work.logits),
        "dynamic masks": at_least(work.candidates * per_mask, features),
        "intersections": at_least(0, work.candidates * work.pixels / 8),
        "decay and rank": 0.0,
        "soft masks": min(
            at_least(work.places * per_mask, features),
            at_least(0, 4 * (work.candidates + work.places) * work.pixels),
        ),
        "upsample": at_least(0, work.places * work.full_pixels / 8),
    }
