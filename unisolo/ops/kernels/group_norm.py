"""Group norm and ReLU in Triton: one kernel where a group is small, else three.

A group of a large map (4 channels of 200 x 336 pixels) is too much for one program and 32 groups
are too few to fill a GPU. So programs first take mean and squared deviations of chunks of channels,
a small kernel joins them (Chan's formula, in a fixed order: no atomics) into a mean and a scale for
each channel, and the third kernel applies these. The map is read twice and written once.

Sums are taken of differences from the mean of a first tile, so that a mean far from 0 costs no
digits. NaN goes through as in torch, also through the ReLU.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from unisolo.ops.group_norm import Grid
from unisolo.ops.kernels.launch import jit, on_device_of

__all__ = ["group_norm", "group_norm_grids"]

ONE_PROGRAM = 2**15
"""Values of a group up to which one program normalises it: on an H100 starting two more kernels
would take longer than reading so few values twice."""

PROGRAMS = 1024
"""Programs that a map is split over, about: several for each of a GPU's 100 to 150 processors. A
constant, since the sums depend on it in their last bits."""

TILE = 2048
"""Values in a tile of the kernels for large maps."""

GRID_TILE = 8192
"""Values in a tile of the kernel for small groups."""

MAP_TILE = 4096
"""The same where a group is a whole map: several values per load would spill registers of more."""

CHANNELS_LAST_BLOCK = 64
"""Channels per program where they lie side by side: 128 bytes in half precision."""


def group_norm(
    features: Tensor,
    num_groups: int,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    *,
    relu: bool = False,
) -> Tensor:
    """See `unisolo.ops.group_norm.group_norm`; the result has the dtype of `features`."""
    features = _dense(features)
    _, channels, height, width = features.shape
    if channels // num_groups * height * width <= ONE_PROGRAM:
        result = torch.empty_like(features)
        with on_device_of(features):
            _launch_small(features, result, None, num_groups, weight, bias, eps, relu)
        return result
    with on_device_of(features):
        return _large(features, num_groups, weight, bias, eps, relu)


def group_norm_grids(
    canvas: Tensor,
    grids: Sequence[Grid],
    num_groups: int,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    *,
    relu: bool = False,
) -> Tensor:
    """See `unisolo.ops.group_norm.group_norm_grids`."""
    canvas = _dense(canvas)
    result = torch.zeros_like(canvas)
    with on_device_of(canvas):
        _launch_small(canvas, result, tuple(grids), num_groups, weight, bias, eps, relu)
    return result


def _dense(features: Tensor) -> Tensor:
    """Bring any other order of memory than NCHW and NHWC without gaps to NCHW."""
    if features.is_contiguous(memory_format=torch.channels_last):
        return features
    return features.contiguous()


@cache
def _table(grids: tuple[Grid, ...], device: torch.device) -> Tensor:
    """[L, 3] int32. Kept for ever: CUDA graphs read it at each replay."""
    return torch.tensor(grids, dtype=torch.int32, device=device)


def _launch_small(
    features: Tensor,
    result: Tensor,
    grids: tuple[Grid, ...] | None,
    num_groups: int,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    relu: bool,
) -> None:
    """One program per image, group and grid; without grids the whole map is one."""
    batch, channels, height, width = features.shape
    count = 1 if grids is None else len(grids)
    if not batch * count * height * width:
        return
    group = channels // num_groups
    block = triton.next_power_of_2(group)
    tile = MAP_TILE if grids is None else GRID_TILE
    _group_kernel[(count, num_groups, batch)](
        features,
        result,
        features if grids is None else _table(grids, features.device),
        weight,
        bias,
        eps,
        group,
        height,
        width,
        *_strides(features),
        WHOLE=grids is None,
        RELU=relu,
        BLOCK_C=block,
        BLOCK_P=max(16, tile // block),
        num_warps=8,
    )


def _large(
    features: Tensor, num_groups: int, weight: Tensor, bias: Tensor, eps: float, relu: bool
) -> Tensor:
    batch, channels, height, width = features.shape
    result = torch.empty_like(features)
    if not batch:
        return result
    pixels = height * width
    stride_b, stride_c, _, stride_p = _strides(features)
    block_c = 1 if stride_p == 1 else min(CHANNELS_LAST_BLOCK, triton.next_power_of_2(channels))
    block_p = TILE // block_c
    blocks = triton.cdiv(channels, block_c)
    per_chunk = triton.cdiv(pixels, max(1, PROGRAMS // (blocks * batch)))
    per_chunk = triton.cdiv(per_chunk, block_p) * block_p  # so no tile reaches into the next chunk
    chunks = triton.cdiv(pixels, per_chunk)
    moments = features.new_empty((batch, channels, chunks, 2), dtype=torch.float32)
    factors = features.new_empty((batch, channels, 2), dtype=torch.float32)
    launch = (chunks, blocks, batch)
    sizes = (channels, pixels, per_chunk, stride_b, stride_c, stride_p)
    _moments_kernel[launch](features, moments, *sizes, BLOCK_C=block_c, BLOCK_P=block_p)
    group = channels // num_groups
    _factors_kernel[(num_groups, batch)](
        moments,
        factors,
        weight,
        eps,
        group,
        chunks,
        pixels,
        per_chunk,
        BLOCK_C=triton.next_power_of_2(group),
        BLOCK=triton.next_power_of_2(group * chunks),
    )
    _apply_kernel[launch](
        features, result, factors, bias, *sizes, RELU=relu, BLOCK_C=block_c, BLOCK_P=block_p
    )
    return result


def _strides(features: Tensor) -> tuple[int, int, int, int]:
    """Distances in memory of images, channels, rows and columns.

    Torch's own are arbitrary where a dimension has one value.
    """
    _, channels, height, width = features.shape
    image = channels * height * width
    if features.is_contiguous():
        return image, height * width, width, 1
    return image, 1, width * channels, channels


@jit
def _places(pixels, columns, stride_y, stride_x, WHOLE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Offsets of pixels that are numbered row by row."""
    if WHOLE:  # rows follow each other: without a division the compiler sees neighbours
        places = pixels * stride_x
    else:
        places = pixels // columns * stride_y + pixels % columns * stride_x
    return places


@jit
def _group_kernel(  # type: ignore[no-untyped-def]
    features,
    result,
    table,
    weight,
    bias,
    eps,
    group,
    height,
    width,
    stride_b,
    stride_c,
    stride_y,
    stride_x,
    WHOLE: tl.constexpr,
    RELU: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Normalise one group of channels of one grid of one image."""
    first = tl.program_id(1) * group
    base = tl.program_id(2).to(tl.int64) * stride_b
    if WHOLE:
        rows = height
        columns = width
    else:
        entry = table + tl.program_id(0) * 3
        rows = tl.load(entry + 2)
        columns = rows
        base += tl.load(entry) * stride_y + tl.load(entry + 1) * stride_x
    pixels = rows * columns
    c = tl.arange(0, BLOCK_C)
    p = tl.arange(0, BLOCK_P)
    of_group = c < group
    channel_offsets = (first + c) * stride_c
    scale = tl.load(weight + first + c, mask=of_group, other=0.0).to(tl.float32)
    shift = tl.load(bias + first + c, mask=of_group, other=0.0).to(tl.float32)

    inside = (p < pixels)[:, None] & of_group[None, :]
    places = _places(p, columns, stride_y, stride_x, WHOLE)
    offsets = places[:, None] + channel_offsets[None, :]
    tile = tl.load(features + base + offsets, mask=inside, other=0.0).to(tl.float32)
    pilot = tl.sum(tile) / (tl.minimum(pixels, BLOCK_P) * group)

    total = tl.zeros([BLOCK_P, BLOCK_C], dtype=tl.float32)
    squares = tl.zeros([BLOCK_P, BLOCK_C], dtype=tl.float32)
    for start in range(0, pixels, BLOCK_P):
        q = start + p
        inside = (q < pixels)[:, None] & of_group[None, :]
        places = _places(q, columns, stride_y, stride_x, WHOLE)
        offsets = places[:, None] + channel_offsets[None, :]
        tile = tl.load(features + base + offsets, mask=inside, other=0.0).to(tl.float32)
        apart = tl.where(inside, tile - pilot, 0.0)
        total += apart
        squares += apart * apart
    # Triton makes constants of arguments that are 1, and those have no `.to`.
    count = tl.zeros([1], dtype=tl.float32) + pixels * group
    beyond = tl.sum(total) / count
    variance = tl.sum(squares) / count - beyond * beyond
    scale = scale / tl.sqrt(variance + eps)
    mean = (pilot + beyond)[:, None]

    for start in range(0, pixels, BLOCK_P):
        q = start + p
        inside = (q < pixels)[:, None] & of_group[None, :]
        places = _places(q, columns, stride_y, stride_x, WHOLE)
        offsets = places[:, None] + channel_offsets[None, :]
        tile = tl.load(features + base + offsets, mask=inside, other=0.0).to(tl.float32)
        value = (tile - mean) * scale[None, :] + shift[None, :]
        if RELU:
            value = tl.where(value < 0, 0.0, value)
        tl.store(result + base + offsets, value.to(result.dtype.element_ty), mask=inside)


@jit
def _moments_kernel(  # type: ignore[no-untyped-def]
    features,
    moments,
    channels,
    pixels,
    per_chunk,
    stride_b,
    stride_c,
    stride_p,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Mean and sum of squared deviations of a chunk of pixels, for each channel."""
    chunk = tl.program_id(0)
    image = tl.program_id(2)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    p = tl.arange(0, BLOCK_P)
    base = features + image.to(tl.int64) * stride_b
    first = chunk * per_chunk
    last = tl.minimum(first + per_chunk, pixels)
    of_map = (c < channels)[None, :]

    inside = (first + p < pixels)[:, None] & of_map
    offsets = ((first + p) * stride_p)[:, None] + (c * stride_c)[None, :]
    tile = tl.load(base + offsets, mask=inside, other=0.0).to(tl.float32)
    pilot = tl.sum(tile, axis=0) / tl.minimum(last - first, BLOCK_P).to(tl.float32)

    total = tl.zeros([BLOCK_P, BLOCK_C], dtype=tl.float32)
    squares = tl.zeros([BLOCK_P, BLOCK_C], dtype=tl.float32)
    for start in range(first, last, BLOCK_P):
        q = start + p
        inside = (q < pixels)[:, None] & of_map
        offsets = (q * stride_p)[:, None] + (c * stride_c)[None, :]
        tile = tl.load(base + offsets, mask=inside, other=0.0).to(tl.float32)
        apart = tl.where(inside, tile - pilot[None, :], 0.0)
        total += apart
        squares += apart * apart
    count = (last - first).to(tl.float32)
    beyond = tl.sum(total, axis=0) / count
    deviations = tl.sum(squares, axis=0) - count * beyond * beyond
    place = moments + ((image.to(tl.int64) * channels + c) * tl.num_programs(0) + chunk) * 2
    tl.store(place, pilot + beyond, mask=c < channels)
    tl.store(place + 1, deviations, mask=c < channels)


@jit
def _factors_kernel(  # type: ignore[no-untyped-def]
    moments,
    factors,
    weight,
    eps,
    group,
    chunks,
    pixels,
    per_chunk,
    BLOCK_C: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Join a group's moments into mean and scale of each of its channels."""
    first = tl.program_id(0) * group
    row = tl.program_id(1).to(tl.int64) * tl.num_programs(0) * group + first
    part = tl.arange(0, BLOCK)
    inside = part < group * chunks
    place = moments + (row * chunks + part) * 2
    means = tl.load(place, mask=inside, other=0.0)
    deviations = tl.load(place + 1, mask=inside, other=0.0)
    begin = part % chunks * per_chunk
    counts = tl.where(inside, tl.minimum(pixels - begin, per_chunk), 0).to(tl.float32)
    count = tl.sum(counts)
    mean = tl.sum(counts * means) / count
    between = means - mean
    variance = tl.sum(deviations + counts * between * between) / count

    c = tl.arange(0, BLOCK_C)
    of_group = c < group
    scale = tl.load(weight + first + c, mask=of_group, other=0.0).to(tl.float32)
    place = factors + (row + c) * 2
    tl.store(place, tl.zeros([BLOCK_C], dtype=tl.float32) + mean, mask=of_group)
    tl.store(place + 1, scale / tl.sqrt(variance + eps), mask=of_group)


@jit
def _apply_kernel(  # type: ignore[no-untyped-def]
    features,
    result,
    factors,
    bias,
    channels,
    pixels,
    per_chunk,
    stride_b,
    stride_c,
    stride_p,
    RELU: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Normalise a chunk of pixels, for each channel."""
    image = tl.program_id(2)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    p = tl.arange(0, BLOCK_P)
    base = image.to(tl.int64) * stride_b
    first = tl.program_id(0) * per_chunk
    last = tl.minimum(first + per_chunk, pixels)
    of_map = c < channels
    place = factors + (image.to(tl.int64) * channels + c) * 2
    mean = tl.load(place, mask=of_map, other=0.0)
    scale = tl.load(place + 1, mask=of_map, other=0.0)
    shift = tl.load(bias + c, mask=of_map, other=0.0).to(tl.float32)
    for start in range(first, last, BLOCK_P):
        q = start + p
        inside = (q < pixels)[:, None] & of_map[None, :]
        offsets = (q * stride_p)[:, None] + (c * stride_c)[None, :]
        tile = tl.load(features + base + offsets, mask=inside, other=0.0).to(tl.float32)
        value = (tile - mean[None, :]) * scale[None, :] + shift[None, :]
        if RELU:
            value = tl.where(value < 0, 0.0, value)
        tl.store(result + base + offsets, value.to(result.dtype.element_ty), mask=inside)
