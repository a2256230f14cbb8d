"""The chunked dice loss against its definition, values and gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unisolo.losses.assign import block_objects, masks_from_blocks
from unisolo.losses.dice import dynamic_dice_sum
from unisolo.losses.functional import dice_loss


@given(
    st.integers(0, 9),
    st.integers(1, 3),
    st.sampled_from([1, 60, 10**9]),
    st.sampled_from([0.1, 30.0]),
    st.integers(0, 2**31),
)
def test_values_and_gradients_are_those_of_the_definition(
    count: int, depth: int, max_pixels: int, scale: float, seed: int
) -> None:
    random = torch.Generator().manual_seed(seed)
    blocks = block_objects(
        torch.randint(0, 5, (depth, 16, 20), generator=random, dtype=torch.int16)
    )
    objects = torch.randint(0, 6, (count,), generator=random)  # some of them painted nowhere
    values = (
        torch.randn(count, 3, generator=random, dtype=torch.float64) * scale,
        torch.randn(3, 4, 5, generator=random, dtype=torch.float64),
    )
    kernels, feature = (value.float().requires_grad_() for value in values)
    found = dynamic_dice_sum(kernels, feature, blocks, objects, max_pixels=max_pixels)
    (found * 0.7).backward()

    exact = [value.float().double().requires_grad_() for value in values]
    probs = (exact[0] @ exact[1].flatten(1)).sigmoid()
    masks = masks_from_blocks(blocks, objects).flatten(1).double()
    total = probs.square().sum(1) + masks.sum(1) + 2e-3
    wanted = (1 - 2 * (probs * masks).sum(1) / total).sum()
    (wanted * 0.7).backward()
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-6)
    for ours, theirs in zip((kernels, feature), exact, strict=True):
        assert ours.grad is not None and theirs.grad is not None
        torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-4, atol=1e-6)
    logits = kernels.detach() @ feature.detach().flatten(1)
    plain = dice_loss(logits, masks.bool()).sum()
    torch.testing.assert_close(found.detach(), plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32_in_any_memory_order(dtype: torch.dtype) -> None:
    feature = torch.randn(1, 8, 16, 12).to(dtype).contiguous(memory_format=torch.channels_last)[0]
    kernels = torch.randn(5, 8).to(dtype)
    blocks = torch.randint(0, 4, (2, 16, 12), dtype=torch.int16)
    objects = torch.tensor([0, 1, 2, 2, 0])
    leaves = [kernels.clone().requires_grad_(), feature.clone().requires_grad_()]
    full = [kernels.float().requires_grad_(), feature.float().contiguous().requires_grad_()]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = dynamic_dice_sum(leaves[0], leaves[1], blocks, objects, max_pixels=400)
        found.backward()
    wanted = dynamic_dice_sum(full[0], full[1], blocks, objects, max_pixels=400)
    wanted.backward()
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted)
    for half, reference in zip(leaves, full, strict=True):
        assert half.grad is not None and reference.grad is not None and half.grad.dtype == dtype
        torch.testing.assert_close(half.grad, reference.grad.to(dtype))


def test_only_a_chunk_of_masks_is_held() -> None:
    """Bytes that tensors of the size of masks take at the same time, in both passes."""
    pixels, count, chunk = 64 * 64, 120, 10
    feature = torch.randn(4, 64, 64, requires_grad=True)
    kernels = torch.randn(count, 4, requires_grad=True)
    blocks = torch.randint(0, 30, (2, 64, 64), dtype=torch.int16)
    objects = torch.arange(count) % 29
    with torch.profiler.profile(profile_memory=True) as profile:
        dynamic_dice_sum(kernels, feature, blocks, objects, max_pixels=chunk * pixels).backward()
    held, peak = 0, 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    all_masks = count * pixels * 4
    assert chunk * pixels * 4 <= peak < all_masks / 2
