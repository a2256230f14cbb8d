"""The selection's kernels compile for GPUs that are not here, and keep all values in registers."""

from __future__ import annotations

import pytest
from compiling import SHARED_LIMIT, compile_calls

pytest.importorskip("triton")

PROGRAM = """
import torch
from unisolo.ops.kernels import products
from unisolo.ops.kernels.dynamic_masks import dynamic_masks
from unisolo.ops.kernels.select import select_instances
from unisolo.ops.kernels.soft_masks import soft_masks
from unisolo.ops.select import Candidates
from unisolo.structures import GridSpec, Outputs

GRID = GridSpec()
products.multiprocessors = lambda device: 132  # as many parts to add up as on an H100


def make(kind, channels, size, last=False, batch=1, categories=3):
    kind = getattr(torch, kind)
    features = torch.zeros(batch, channels, *size, dtype=kind)
    if last:
        features = features.to(memory_format=torch.channels_last)
    kernels = torch.zeros(batch, GRID.num_cells, channels, dtype=kind)
    return Outputs(torch.zeros(batch, GRID.num_cells, categories), kernels, features, {})


def masks(outputs, count, threshold=0.5):
    batch = len(outputs.kernels)
    cells = torch.zeros(batch, count, dtype=torch.int64)
    candidates = Candidates(torch.ones(batch, count), cells, cells)
    dynamic_masks(
        outputs.kernels, outputs.mask_features, candidates, GRID, mask_threshold=threshold,
        least_areas=GRID.strides,
    )
    soft_masks(outputs.kernels, outputs.mask_features, cells[:, :100], cells[:, :100] == 0)

"""


def check(calls: str, capability: int, shared: int | None = None) -> set[str]:
    compiled = compile_calls(PROGRAM + calls, capability)
    for kernel in compiled:
        assert kernel.spilled == 0, (kernel.name, kernel.registers)
        assert kernel.shared <= (shared or SHARED_LIMIT[capability]), kernel.name
        # What an atomic makes is read by a later kernel: no fences inside.
        assert "acq_rel" not in kernel.ptx, kernel.name
    return {kernel.name for kernel in compiled}


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
def test_every_step(capability):
    """One of everything (number 1 is compiled apart) and the usual numbers; a cut before NMS."""
    holds = "products._holds_kernels = lambda device: False\n" if capability < 90 else ""
    names = check(
        holds
        + "select_instances(make('bfloat16', 256, (16, 32)), GRID, pre_nms=200)\n"
        + "GRID = GridSpec((1,), (8,), ((1, 8),))\n"
        + "outputs = make('float32', 1, (1, 1), categories=1)\n"
        + "select_instances(outputs, GRID, max_candidates=1, max_instances=1, mask_threshold=0)\n",
        capability,
    )
    assert names >= {"_suppress", "_list", "_shorten", "_rank", "_masks", "_measure", "_soft"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_kernels_stay_on_a_hopper_chip(kind):
    calls = [
        f"masks(make('{kind}', {channels}, (16, 32), last={last}), {count})\n"
        for channels, count in ((256, 500), (256, 300), (256, 50), (128, 500), (64, 100))
        for last in (False, True)
    ]
    calls.append(f"masks(make('{kind}', 256, (16, 32), batch=2), 500, threshold=0.3)\n")
    check("".join(calls), 90)


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float32"])
def test_kernels_read_in_steps(kind, capability):
    """In float32, on other GPUs (as small as those outside data centres), of any size."""
    calls = "products._holds_kernels = lambda device: False\n"
    for size in ((16, 32), (5, 7)):
        for last in (False, True):
            calls += f"masks(make('{kind}', 256, {size}, last={last}), 100)\n"
    check(calls, capability, shared=99 * 1024)
