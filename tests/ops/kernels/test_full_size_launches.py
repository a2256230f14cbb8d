"""The launches of the kernels at full resolution, as a GPU would get them."""

from __future__ import annotations

import pytest
from compiling import compile_calls

pytestmark = pytest.mark.slow


def launches(program: str) -> list[str]:
    """Names of the kernels that a program launches, in order."""
    return [kernel.name for kernel in compile_calls(program)]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_upsampling_takes_two_kernels(dtype: str) -> None:
    program = f"""
from unisolo.ops.kernels.upsample import upsample_masks
maps = torch.empty(100, 200, 336, dtype=torch.{dtype})
padded = dict(padded_size=(800, 1344), input_size=(800, 1333))
upsample_masks(maps, **padded, orig_size=(800, 1333))
upsample_masks(maps, **padded, orig_size=(480, 640), threshold=1)
upsample_masks(maps[::2, :, ::3], **padded, orig_size=(1, 1))
upsample_masks(maps[:0], **padded, orig_size=(800, 1333))
"""
    tail = "join_measures"
    assert launches(program) == ["_four_times", tail, "_any_size", tail, "_any_size", tail]


def test_stuff_takes_one_kernel() -> None:
    program = """
from unisolo.ops.kernels.stuff import segment_stuff
padded = dict(padded_size=(800, 1344), input_size=(800, 1333))
for dtype in (torch.float32, torch.bfloat16):
    segment_stuff(torch.empty(54, 200, 336, dtype=dtype), **padded, orig_size=(800, 1333))
    segment_stuff(torch.empty(1, 1, 1, dtype=dtype), **padded, orig_size=(1, 1))
"""
    assert launches(program) == ["_best_channel"] * 4


@pytest.mark.parametrize("size", [(800, 1333), (375, 500), (1, 1)])
def test_merging_takes_five_kernels_whatever_the_number_of_instances(size: tuple[int, int]) -> None:
    program = f"""
from unisolo.ops.kernels.merge import merge_panoptic
height, width = {size}
for count in (0, 1, 100, 2000):
    packed = torch.empty(count, height, (width + 7) // 8, dtype=torch.uint8)
    for dtype in (torch.int16, torch.int64):
        stuff = torch.zeros(height, width, dtype=dtype)
        merge_panoptic(packed, width, torch.zeros(count), stuff, num_stuff=53)
    merge_panoptic(packed, width, torch.zeros(count), None, num_stuff=53)
"""
    paint, stuff = ["_paint"], ["_enter_stuff", "_number_stuff"]
    walk = ["_measure", "_accept"]
    without = [*paint, *stuff] * 2 + paint
    assert launches(program) == without + ([*walk, *paint, *stuff] * 2 + [*walk, *paint]) * 3
