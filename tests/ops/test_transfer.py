from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unisolo.ops.transfer import _joined, _parted, to_host

DTYPES = (
    torch.bool,
    torch.uint8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.float32,
)


@st.composite
def tensors(draw):
    shape = draw(st.lists(st.integers(0, 5), max_size=3))
    whole = torch.randint(0, 2, [*shape, 2]).to(draw(st.sampled_from(DTYPES)))
    return whole[..., 0] if draw(st.booleans()) else whole  # one of them is not contiguous


@given(st.lists(tensors(), min_size=1, max_size=6))
def test_what_is_joined_comes_apart_as_it_was(given_tensors):
    joined = _joined(given_tensors)
    assert joined.numel() == sum(each.numel() * each.element_size() for each in given_tensors)
    for ours, theirs in zip(_parted(joined, given_tensors), given_tensors, strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)


def test_what_is_on_the_cpu_is_not_copied():
    tensor = torch.ones(3)
    assert to_host([tensor])[0] is tensor
    assert to_host([]) == []


def test_tensors_of_two_devices_are_refused():
    with pytest.raises(ValueError, match=r"one device, got \['cpu', 'meta'\]"):
        to_host([torch.ones(1), torch.ones(1, device="meta")])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_from_a_gpu_it_is_one_copy_to_page_locked_memory():
    own = [torch.arange(5), torch.rand(3, 4), torch.rand(7) > 0.5, torch.zeros(0, 4)]
    there = [each.cuda() for each in own]
    torch.cuda.set_sync_debug_mode("error")
    try:
        back = to_host(there)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for ours, theirs in zip(back, own, strict=True):
        assert ours.is_pinned() or ours.numel() == 0
        assert torch.equal(ours, theirs)
