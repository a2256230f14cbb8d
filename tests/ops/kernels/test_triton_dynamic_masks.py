"""Packed masks and their measures against plain arithmetic, with exact small numbers."""

from __future__ import annotations

import math

import pytest
import torch

from unisolo.ops.select import Candidates
from unisolo.structures import GridSpec

pytest.importorskip("triton")
GRID = GridSpec((4, 3, 1), (3, 8, 32), ((1, 8), (4, 16), (8, 64)))


def numbers(device, *size, dtype, seed):
    """Quarters: their products and sums are exact in every precision."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randint(-4, 5, size, generator=generator) / 4).to(device, dtype)


def make(device, *, batch=1, count=5, channels=5, size=(3, 7), dtype=torch.float32, seed=0):
    kernels = numbers(device, batch, GRID.num_cells, channels, dtype=dtype, seed=seed)
    features = numbers(device, batch, channels, *size, dtype=dtype, seed=seed + 1)
    generator = torch.Generator().manual_seed(seed + 2)
    scores = torch.rand(batch, count, generator=generator).to(device)
    cells = torch.randint(GRID.num_cells, (batch, count), generator=generator).to(device)
    scores[:, count // 2] = 0  # an empty place
    return kernels, features, Candidates(scores, torch.zeros_like(cells), cells)


def check(kernels, features, candidates, poisoned, *, threshold=0.5):
    from unisolo.ops.kernels.dynamic_masks import dynamic_masks
    from unisolo.ops.kernels.packed import BLOCK_WORDS, unpack_masks

    with poisoned():
        packed, scores = dynamic_masks(
            kernels,
            features,
            candidates,
            GRID,
            mask_threshold=threshold,
            least_areas=GRID.strides,
        )
    size = features.shape[2:]
    rows = torch.stack([k[c] for k, c in zip(kernels, candidates.cells, strict=True)]).double()
    soft = (rows @ features.double().flatten(2)).sigmoid()
    real = candidates.scores > 0
    masks = (soft > threshold) & real[..., None]
    areas = masks.sum(-1)

    assert packed.bits.shape[-1] % 16 == 0
    assert torch.equal(unpack_masks(packed, size, interleaved=True).flatten(2), masks)
    bits_set = ((packed.bits.unsqueeze(-1) >> torch.arange(32, device=masks.device)) & 1).sum(
        (-2, -1)
    )
    assert torch.equal(bits_set, areas)  # no bit past the last pixel
    assert torch.equal(packed.areas.long(), areas)
    occupied = (packed.bits.reshape(*areas.shape, -1, BLOCK_WORDS) != 0).any(-1)
    for bounds, block in ((packed.first, 0), (packed.last, -1)):
        for found, where in zip(bounds.flatten(), occupied.flatten(0, 1), strict=True):
            if where.any():
                assert int(found) == int(where.nonzero()[block])
    assert (packed.first > packed.last)[areas == 0].all()

    maskness = torch.where(masks, soft, 0).sum(-1) / areas.clamp_min(1)
    torch.testing.assert_close(packed.maskness.double(), maskness, rtol=0, atol=5e-4)
    strides = torch.tensor(
        [stride for size, stride in zip(GRID.sizes, GRID.strides, strict=True)
         for _ in range(size * size)], device=areas.device
    )  # fmt: skip
    large = areas > strides[candidates.cells]
    expected = torch.where(large & real, candidates.scores * maskness, 0)
    torch.testing.assert_close(scores.double(), expected, rtol=0, atol=5e-4)
    assert torch.equal(scores > 0, large & real)
    return packed


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("count", "channels", "size"), [(1, 1, (1, 1)), (5, 5, (3, 7)), (70, 19, (9, 43))]
)
def test_exact_masks(device, poisoned, dtype, count, channels, size):
    batch = 2 if count == 5 else 1
    made = make(device, batch=batch, count=count, channels=channels, size=size, dtype=dtype)
    check(*made, poisoned)


@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.7, 1.0])
def test_other_thresholds(device, poisoned, threshold):
    check(*make(device, dtype=torch.float16), poisoned, threshold=threshold)


def test_any_strides(device, poisoned):
    kernels, features, candidates = make(device, batch=2, channels=6, size=(5, 9))
    last = features.to(memory_format=torch.channels_last)
    packed = check(kernels.transpose(1, 2).contiguous().transpose(1, 2), last, candidates, poisoned)
    again = check(kernels, features[..., 1:6], candidates, poisoned)
    assert not torch.equal(packed.areas, again.areas)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("count", "channels"), [(1, 16), (64, 64), (129, 100), (300, 16), (20, 300)]
)
def test_tilings(device, poisoned, dtype, count, channels):
    """All kinds of tiles: kernels on the chip or read in steps, one block of rows or several."""
    made = make(device, count=count, channels=channels, size=(17, 31), dtype=dtype, seed=count)
    check(*made, poisoned)
    check(*make(device, batch=3, count=count, channels=channels, dtype=dtype), poisoned)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_soft_masks_of_valid_places_only(device, poisoned, dtype):
    from unisolo.ops.kernels.soft_masks import soft_masks

    kernels, features, candidates = make(device, batch=2, count=5, size=(4, 21), dtype=dtype)
    valid = candidates.scores > 0.3
    with poisoned():
        soft = soft_masks(kernels, features, candidates.cells, valid)
    rows = torch.stack([k[c] for k, c in zip(kernels, candidates.cells, strict=True)]).double()
    expected = (rows @ features.double().flatten(2)).sigmoid().reshape(soft.shape)
    expected = torch.where(valid[..., None, None], expected, 0)
    assert soft.dtype == dtype
    torch.testing.assert_close(soft.double(), expected, rtol=0, atol=2e-6 if dtype == torch.float32
                               else 3e-4)  # fmt: skip


@pytest.mark.slow
def test_many_parts_are_added_up(device, poisoned, monkeypatch):
    """As many programs share the pixels as on a large GPU."""
    from unisolo.ops.kernels import products

    monkeypatch.setattr(products, "multiprocessors", lambda device: 136)
    check(*make(device, channels=2, size=(64, 131)), poisoned)


def test_mixed_precisions_are_computed_in_float32(device, poisoned):
    from unisolo.ops.kernels.soft_masks import soft_masks

    kernels, features, candidates = make(device)
    check(kernels, features.half(), candidates, poisoned)
    soft = soft_masks(kernels, features.half(), candidates.cells, candidates.scores > 0)
    assert soft.dtype == torch.float32


def test_logit_of_a_threshold():
    from unisolo.ops.kernels.dynamic_masks import _logit

    assert _logit(0.5) == 0
    assert math.isclose(1 / (1 + math.exp(-_logit(0.3))), 0.3)
    assert (_logit(0.0), _logit(1.0)) == (-math.inf, math.inf)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("channels", [64, 96, 256, 512])
@pytest.mark.parametrize("last", [False, True])
def test_on_a_gpu(poisoned, dtype, channels, last):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    for count, size in ((1, (1, 1)), (100, (25, 43)), (500, (50, 84)), (2000, (20, 30))):
        kernels, features, candidates = make(
            "cuda", batch=2, count=count, channels=channels, size=size, dtype=dtype
        )
        if last:
            features = features.to(memory_format=torch.channels_last)
        first = check(kernels, features, candidates, poisoned)
        again = check(kernels, features, candidates, poisoned)
        for one, two in zip(first, again, strict=True):
            assert torch.equal(one, two)
