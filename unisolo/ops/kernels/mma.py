"""Intersections of packed masks on the tensor cores: one-bit matrix products, in CUDA C.

A matrix of masks times its transpose, with AND for the product and a count of bits for the sum, is
the matrix of intersections. NVIDIA's tensor cores do this for 16 x 8 pairs and 256 pixels in one
instruction (PTX ISA, `mma.m16n8k256 .b1 .and.popc`, compute capability 8.0), which Triton cannot
express. The source below is compiled by NVRTC, a library that comes with torch, through a function
of torch that is not public; where that is not to be had, `unisolo.ops.kernels.intersections` counts
pair by pair instead.

A warp makes a square of 32 x 32 pairs; four warps a tile of 64 x 64. Only tiles on and above the
diagonal are made. Words are loaded only between a mask's first and last occupied block: the rest is
known to be 0. The pixels are shared out among `splits` blocks, each of which adds its counts to the
result: sums of integers, so the order of the additions does not show.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unisolo.ops.kernels.launch import multiprocessors, on_device_of
from unisolo.ops.kernels.packed import BLOCK_WORDS, PackedMasks

__all__ = [
    "CHUNK",
    "FORMULAS",
    "NAME",
    "STEPS",
    "THREADS",
    "TILE",
    "cuda_source",
    "mma_intersections",
    "mma_kernel",
    "without_toolkit",
]

NAME = "mask_intersections"
TILE = 64
SIDE = 32
THREADS = 128
CHUNK = 16
"""Words per mask and turn: one 16-byte load by each of the four lanes that share a row."""
BLOCKS_PER_PROCESSOR = 3
"""Blocks that a multiprocessor has registers for; the pixels are shared out to have as many."""

CAPABILITIES = (8, 9)
"""Major compute capabilities whose tensor cores have the instruction. For 10.0 it compiles too, but
to a chain of ordinary ones."""

STEPS = (("x", "y"), ("z", "w"))
"""The instructions of a turn: which words of a lane's load are the low and the high 128 bits.

The instruction wants words q and q + 4 of eight from lane q of a row; a lane has loaded words 4q to
4q + 3. Both masks are read the same way, so pixels meet themselves whatever their order."""

FORMULAS = {
    # Where a warp's square begins inside the tile.
    "warp_row": f"(warp >> 1) * {SIDE}",
    "warp_col": f"(warp & 1) * {SIDE}",
    # The PTX ISA's fragments of m16n8k256: lane = 4 * group + quarter.
    "group": "lane >> 2",
    "quarter": "lane & 3",
    # Load number `part` of 4 of a lane, as a row (or column) of the square.
    "load": "part * 8 + group",
    # Result t of 4 of the 16 x 8 product (i, j), as a row and a column of the square.
    "result_row": "i * 16 + (t >> 1) * 8 + group",
    "result_col": "j * 8 + quarter * 2 + (t & 1)",
    # The turns from the first to behind the last occupied block of a mask.
    **{f"{name}_low": f"first[{name}] * {BLOCK_WORDS} / {CHUNK}" for name in ("row", "col")},
    **{
        f"{name}_high": f"(last[{name}] * {BLOCK_WORDS} + {BLOCK_WORDS - 1}) / {CHUNK} + 1"
        for name in ("row", "col")
    },
    # The turns of one split of the turns from `low` up to `high`.
    "begin": "low + (high - low) * split / splits",
    "end": "low + (high - low) * (split + 1) / splits",
}
"""Index arithmetic of the kernel: C, and, with / as //, Python (the tests run it)."""

# torch before 2.10 puts extern "C" before sources that do not begin with it.
_SOURCE = r"""extern "C" __global__ void __launch_bounds__(%(threads)d) %(name)s(
    const uint4* __restrict__ bits, const int* __restrict__ first, const int* __restrict__ last,
    const long long* __restrict__ labels, const float* __restrict__ scores,
    int* __restrict__ out, int count, int quads, int splits)
{
  if (blockIdx.y < blockIdx.x) return;
  const unsigned all = 0xffffffffu;
  const int none = 0x7fffffff;
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int group = %(group)s, quarter = %(quarter)s;
  const int image = blockIdx.z / splits, split = blockIdx.z %% splits;
  const int row0 = blockIdx.x * %(tile)d + %(warp_row)s;
  const int col0 = blockIdx.y * %(tile)d + %(warp_col)s;
  bits += (size_t)image * count * quads;
  out += (size_t)image * count * count;
  first += image * count;
  last += image * count;
  labels += image * count;
  scores += image * count;

  // Each lane looks up one row and one column: its label, and the turns in which it has pixels.
  // Whoever takes no part has none.
  int row_low = none, row_high = 0, col_low = none, col_high = 0;
  long long row_label = 0, col_label = 0;
  const int row = row0 + lane, col = col0 + lane;
  if (row < count && scores[row] > 0.0f && first[row] <= last[row]) {
    row_low = %(row_low)s;
    row_high = %(row_high)s;
    row_label = labels[row];
  }
  if (col < count && scores[col] > 0.0f && first[col] <= last[col]) {
    col_low = %(col_low)s;
    col_high = %(col_high)s;
    col_label = labels[col];
  }
  const int low = max(__reduce_min_sync(all, row_low), __reduce_min_sync(all, col_low));
  const int high = min(__reduce_max_sync(all, row_high), __reduce_max_sync(all, col_high));
  if (low >= high) return;  // the same for the whole warp, and warps never wait for each other
  const int begin = %(begin)s, end = %(end)s;

  // The rows and columns that this lane loads: where they lie, their first turn and how many.
  unsigned row_bits[4], col_bits[4];
  int row_first[4], col_first[4];
  unsigned row_turns[4], col_turns[4];
  #pragma unroll
  for (int part = 0; part < 4; ++part) {
    row_bits[part] = (row0 + %(load)s) * quads + quarter;
    col_bits[part] = (col0 + %(load)s) * quads + quarter;
    row_first[part] = __shfl_sync(all, row_low, %(load)s);
    col_first[part] = __shfl_sync(all, col_low, %(load)s);
    row_turns[part] = max(__shfl_sync(all, row_high, %(load)s) - row_first[part], 0);
    col_turns[part] = max(__shfl_sync(all, col_high, %(load)s) - col_first[part], 0);
  }
  const uint4 nothing = {0, 0, 0, 0};
  int sums[2][4][4] = {};
  #pragma unroll 2
  for (int turn = begin; turn < end; ++turn) {
    uint4 a[4], b[4];
    #pragma unroll
    for (int part = 0; part < 4; ++part) {
      const bool in_row = (unsigned)(turn - row_first[part]) < row_turns[part];
      const bool in_col = (unsigned)(turn - col_first[part]) < col_turns[part];
      a[part] = in_row ? bits[row_bits[part] + turn * %(lanes)d] : nothing;
      b[part] = in_col ? bits[col_bits[part] + turn * %(lanes)d] : nothing;
    }
    #pragma unroll
    for (int i = 0; i < 2; ++i) {
      #pragma unroll
      for (int j = 0; j < 4; ++j) {
%(products)s
      }
    }
  }

  // Through shared memory, so that a warp adds to 32 neighbours at once, in both triangles.
  __shared__ int squares[%(warps)d][%(side)d][%(side)d + 1];  // one more: no two lanes in one bank
  int(*square)[%(side)d + 1] = squares[warp];
  #pragma unroll
  for (int i = 0; i < 2; ++i) {
    #pragma unroll
    for (int j = 0; j < 4; ++j) {
      #pragma unroll
      for (int t = 0; t < 4; ++t)
        square[%(result_row)s][%(result_col)s] = sums[i][j][t];
    }
  }
  __syncwarp(all);
  #pragma unroll 4
  for (int line = 0; line < %(side)d; ++line) {
    const bool in_row = __shfl_sync(all, row_label, line) == col_label;
    if (in_row && square[line][lane] != 0)
      atomicAdd(out + (size_t)(row0 + line) * count + col, square[line][lane]);
    const bool in_col = __shfl_sync(all, col_label, line) == row_label;
    if (blockIdx.x != blockIdx.y)  // a tile on the diagonal is its own mirror image
      if (in_col && square[lane][line] != 0)
        atomicAdd(out + (size_t)(col0 + line) * count + row, square[lane][line]);
  }
}
"""

_PRODUCT = """\
        asm volatile(
          "mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc "
          "{{%0, %1, %2, %3}}, {{%4, %5, %6, %7}}, {{%8, %9}}, {{%0, %1, %2, %3}};"
          : "+r"(sums[i][j][0]), "+r"(sums[i][j][1]), "+r"(sums[i][j][2]), "+r"(sums[i][j][3])
          : "r"(a[2 * i].{low}), "r"(a[2 * i + 1].{low}),
            "r"(a[2 * i].{high}), "r"(a[2 * i + 1].{high}), "r"(b[j].{low}), "r"(b[j].{high}));"""


def cuda_source() -> str:
    """Return the kernel's CUDA C, made from `FORMULAS` and the constants of this module."""
    return _SOURCE % {
        **{name: f"({formula})" for name, formula in FORMULAS.items()},
        "name": NAME,
        "threads": THREADS,
        "warps": THREADS // 32,
        "tile": TILE,
        "side": SIDE,
        "lanes": CHUNK // 4,
        "products": "\n".join(_PRODUCT.format(low=low, high=high) for low, high in STEPS),
    }


def mma_kernel(device: torch.device) -> Callable[..., None] | None:
    """Compile the kernel for a device, once; a failure is warned of once.

    Like every kernel it has to be run once before a CUDA graph is captured: what is captured
    cannot load code.

    Args:
        device: Any; only CUDA devices have it.

    Returns:
        torch's launcher of the kernel, or None where it cannot be compiled.
    """
    if device.type != "cuda":
        return None
    return _compiled(torch.cuda.current_device() if device.index is None else device.index)


@cache
def _compiled(index: int) -> Callable[..., None] | None:
    if torch.cuda.get_device_capability(index)[0] not in CAPABILITIES:
        return None  # nothing is missing: this GPU has no such instruction
    compile_kernel: Any = getattr(torch.cuda, "_compile_kernel", None)
    if compile_kernel is None:
        reason = f"torch {torch.__version__} cannot compile CUDA C at run time (2.9 can)"
    else:
        try:
            with torch.cuda.device(index), without_toolkit():
                launcher: Callable[..., None] = compile_kernel(cuda_source(), NAME)
            return launcher
        except Exception as error:  # a private function: what it raises is not promised
            reason = f"{type(error).__name__}: {error}"
    warnings.warn(
        "mask intersections are counted pair by pair, which takes longer where masks are large and "
        f"many: the kernel for tensor cores is not available on cuda:{index}: {reason}",
        stacklevel=2,
    )
    return None


@contextmanager
def without_toolkit() -> Iterator[None]:
    """Let torch compile CUDA C on machines that have torch but no CUDA toolkit.

    torch looks for the folder of the toolkit's headers before it calls NVRTC, and gives up where
    there is none. The kernel includes no header, so any folder will do.
    """
    from torch.utils import cpp_extension

    found = cpp_extension.CUDA_HOME
    cpp_extension.CUDA_HOME = found or str(Path(torch.__file__).parent)
    try:
        yield
    finally:
        cpp_extension.CUDA_HOME = found


def num_splits(num_masks: int, num_words: int, batch_size: int, num_processors: int) -> int:
    """Return among how many blocks the pixels of a tile are shared out, to fill the GPU."""
    tiles = -(-num_masks // TILE)
    blocks = tiles * (tiles + 1) // 2 * batch_size
    wanted = BLOCKS_PER_PROCESSOR * num_processors // max(1, blocks)
    return max(1, min(wanted, num_words // CHUNK))


def mma_intersections(
    launch: Callable[..., None], packed: PackedMasks, labels: Tensor, scores: Tensor
) -> Tensor:
    """Count shared pixels with the kernel of `mma_kernel`.

    Args:
        launch: From `mma_kernel`, for the tensors' device.
        packed: Masks of N candidates on a CUDA device.
        labels: [B, N] int64, contiguous.
        scores: [B, N] float32, contiguous.

    Returns:
        [B, N, N] int32, as `unisolo.ops.kernels.intersections.packed_intersections`.
    """
    batch_size, num_masks, num_words = packed.bits.shape
    out = torch.zeros(
        batch_size, num_masks, num_masks, dtype=torch.int32, device=packed.bits.device
    )
    if out.numel() == 0 or num_words == 0:
        return out
    splits = num_splits(num_masks, num_words, batch_size, multiprocessors(out.device))
    tiles = -(-num_masks // TILE)
    inputs = [packed.bits, packed.first, packed.last, labels, scores]
    tensors = [*(tensor.contiguous() for tensor in inputs), out]
    with on_device_of(out):
        launch(
            grid=(tiles, tiles, batch_size * splits),
            block=(THREADS, 1, 1),
            args=[*tensors, num_masks, num_words // 4, splits],
        )
    return out
