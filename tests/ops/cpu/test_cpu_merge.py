from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unisolo.ops.backend import use_kernels
from unisolo.ops.masks import pack_bits
from unisolo.ops.panoptic import merge_panoptic


def merge_both(*arguments, **settings):
    with use_kernels("torch"):
        expected = merge_panoptic(*arguments, **settings)
    with use_kernels("auto"):
        ours = merge_panoptic(*arguments, **settings)
    for field, ours_, expected_ in zip(expected._fields, ours, expected, strict=True):
        assert ours_.dtype == expected_.dtype, field
        assert torch.equal(ours_, expected_), field
    return ours


def make_masks(generator, count, height, width):
    def integers(stop):
        return torch.randint(stop, (count, 1, 1), generator=generator)

    y, x = torch.arange(height).view(-1, 1), torch.arange(width)
    top, left = integers(height), integers(width)
    masks = (y >= top) & (y <= top + integers(9)) & (x >= left) & (x <= left + integers(9))
    noise = torch.rand(count, height, width, generator=generator) < 0.8
    kind = integers(4)
    return torch.where(kind == 0, masks & noise, masks & (kind < 3))


@given(
    st.integers(0, 10**6),
    st.sampled_from([0, 1, 2, 9, 40]),
    st.sampled_from([(1, 1), (1, 9), (7, 8), (13, 29)]),
    st.sampled_from([None, 0, 1, 5]),
    st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    st.sampled_from([0.0, 1 / 3, 0.5, 1.0]),
    st.sampled_from([0, 1, 12]),
)
def test_equals_the_definition(seed, count, size, num_stuff, score, overlap, least):
    generator = torch.Generator().manual_seed(seed)
    scores = (torch.randint(5, (count,), generator=generator) / 4).sort(descending=True).values
    stuff = None
    if num_stuff is not None:
        stuff = torch.randint(-1, num_stuff + 3, size, generator=generator)
    merge_both(
        pack_bits(make_masks(generator, count, *size)),
        size[1],
        scores,
        stuff,
        num_stuff=num_stuff or 0,
        score_threshold=score,
        overlap_threshold=overlap,
        stuff_area_threshold=least,
    )


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_any_layout_and_dtype(dtype):
    generator = torch.Generator().manual_seed(1)
    masks = pack_bits(make_masks(generator, 20, 15, 30))
    stuff = torch.randint(6, (30, 15), generator=generator).to(dtype).t()
    strided = masks.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    assert not strided.is_contiguous()
    scores = torch.linspace(1, 0, 20).half()
    merged = merge_both(strided, 30, scores, stuff, num_stuff=5, stuff_area_threshold=3)
    assert (merged.stuff_ids > 0).any()
    assert (merged.instance_ids > 0).any()


def test_a_share_equal_to_the_threshold_is_kept():
    masks = torch.zeros(2, 1, 10, dtype=torch.bool)
    masks[0, 0, :3] = masks[1, 0] = True  # 3 of 10 are hidden; 0.3 is rounded in float32
    arguments = (pack_bits(masks), 10, torch.tensor([0.9, 0.8]), None)
    kept = merge_both(*arguments, num_stuff=0, overlap_threshold=0.3)
    assert kept.instance_areas.tolist() == [3, 7]
    lost = merge_both(*arguments, num_stuff=0, overlap_threshold=0.29)
    assert lost.instance_areas.tolist() == [3, 0]
