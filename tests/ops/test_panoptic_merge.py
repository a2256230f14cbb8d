from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unisolo.ops.masks import pack_bits, resize_to_original
from unisolo.ops.panoptic import _contenders, merge_panoptic, segment_stuff


def twin(masks, scores, stuff_index, num_stuff, score_threshold, overlap_threshold, limit):
    """The COCO heuristics in plain numpy: map and [(id, "instance" or "stuff", index, area)]."""
    panoptic = np.zeros(stuff_index.shape, int)
    used = np.zeros(stuff_index.shape, bool)
    segments = []
    for k, (mask, score) in enumerate(zip(masks, scores, strict=True)):
        if score < score_threshold or not mask.any():
            continue
        if (mask & used).sum() / mask.sum() > overlap_threshold:
            continue
        free = mask & ~used
        used |= mask
        if free.any():  # always, unless the overlap threshold is 1
            segments.append((len(segments) + 1, "instance", k, int(free.sum())))
            panoptic[free] = len(segments)
    for stuff in range(num_stuff):
        free = (panoptic == 0) & (stuff_index == stuff)
        if free.sum() >= limit and free.any():
            segments.append((len(segments) + 1, "stuff", stuff, int(free.sum())))
            panoptic[free] = len(segments)
    return panoptic, segments


def listed(merged):
    """Segments of a merge in the twin's form."""
    rows = [
        (int(number), kind, index, int(area))
        for kind, ids, areas in (
            ("instance", merged.instance_ids, merged.instance_areas),
            ("stuff", merged.stuff_ids, merged.stuff_areas),
        )
        for index, (number, area) in enumerate(zip(ids, areas, strict=True))
        if number > 0 or area > 0
    ]
    return sorted(rows)


@st.composite
def scenes(draw):
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    height, width = draw(st.integers(1, 12)), draw(st.integers(1, 20))
    count = draw(st.integers(0, 18))
    masks = np.zeros((count, height, width), bool)
    for mask in masks:  # boxes, copies, single pixels and empty ones
        kind = rng.integers(5)
        y, x = rng.integers(height), rng.integers(width)
        if kind < 2:
            mask[y : y + rng.integers(1, 8), x : x + rng.integers(1, 8)] = True
        elif kind == 2:
            mask[:] = masks[rng.integers(count)]
        elif kind == 3:
            mask[y, x] = True
    scores = np.sort(rng.integers(0, 9, count) / 8)[::-1].copy()
    num_stuff = draw(st.integers(0, 4))
    stuff_index = rng.integers(0, num_stuff + 1, (height, width))
    return masks, scores, stuff_index, num_stuff


@pytest.mark.usefixtures("each_twin")
@given(
    scenes(),
    st.sampled_from([0.0, 0.25, 0.5, 0.9]),
    st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    st.sampled_from([0, 1, 5, 30]),
)
def test_equals_the_heuristics_in_numpy(scene, score_threshold, overlap_threshold, limit):
    masks, scores, stuff_index, num_stuff = scene
    expected, segments = twin(*scene, score_threshold, overlap_threshold, limit)
    merged = merge_panoptic(
        pack_bits(torch.from_numpy(masks)),
        masks.shape[2],
        torch.from_numpy(scores).float(),
        torch.from_numpy(stuff_index),
        num_stuff=num_stuff,
        score_threshold=score_threshold,
        overlap_threshold=overlap_threshold,
        stuff_area_threshold=limit,
    )

    np.testing.assert_array_equal(merged.panoptic_seg, expected)
    assert listed(merged) == segments
    dtypes = [field.dtype for field in merged]
    assert dtypes == [torch.int32, torch.int32, torch.int64, torch.int32, torch.int64, torch.int64]
    # What was too small to enter and what entered add up to the free pixels of each stuff.
    free = merged.instance_areas.new_zeros(num_stuff)
    owned = torch.isin(merged.panoptic_seg, merged.instance_ids[merged.instance_ids > 0])
    for index in range(num_stuff):
        free[index] = (torch.from_numpy(stuff_index)[~owned] == index).sum()
    assert torch.equal(merged.stuff_areas + merged.small_stuff_areas, free)
    assert ((merged.stuff_areas == 0) | (merged.small_stuff_areas == 0)).all()


@given(scenes())
def test_every_pixel_has_one_owner_and_areas_add_up(scene):
    masks, scores, stuff_index, num_stuff = scene
    packed = pack_bits(torch.from_numpy(masks))
    merged = merge_panoptic(
        packed,
        masks.shape[2],
        torch.from_numpy(scores),
        torch.from_numpy(stuff_index),
        num_stuff=num_stuff,
        stuff_area_threshold=0,
    )
    areas = merged.instance_areas.sum() + merged.stuff_areas.sum()
    assert areas == (merged.panoptic_seg > 0).sum()
    ids = sorted({*merged.instance_ids.tolist(), *merged.stuff_ids.tolist()} - {0})
    assert ids == list(range(1, len(ids) + 1))
    assert sorted(set(merged.panoptic_seg.flatten().tolist()) - {0}) == ids


def _merge(masks, scores, stuff_index=None, num_stuff=0, **settings):
    return merge_panoptic(
        pack_bits(masks),
        masks.shape[2],
        torch.tensor(scores),
        stuff_index,
        num_stuff=num_stuff,
        **settings,
    )


def test_instances_without_stuff():
    masks = torch.zeros(2, 2, 9, dtype=torch.bool)
    masks[0, :, :4] = True
    masks[1, :, 2:9] = True
    merged = _merge(masks, [0.9, 0.8], num_stuff=3)
    assert merged.panoptic_seg.tolist() == [[1] * 4 + [2] * 5] * 2
    assert merged.instance_areas.tolist() == [8, 10]
    assert merged.stuff_ids.tolist() == merged.stuff_areas.tolist() == [0, 0, 0]


def test_no_instances_at_all_and_one_pixel():
    merged = _merge(
        torch.zeros(0, 1, 1, dtype=torch.bool),
        [],
        torch.zeros(1, 1, dtype=torch.int16),
        1,
        stuff_area_threshold=1,
    )
    assert merged.panoptic_seg.tolist() == [[1]]
    assert merged.instance_ids.shape == (0,)
    assert merged.stuff_areas.tolist() == [1]


def test_thresholds_keep_what_equals_them():
    masks = torch.zeros(3, 1, 20, dtype=torch.bool)
    masks[0, 0, :10] = True
    masks[1, 0, 7:17] = True  # 3 of 10 hidden
    masks[2, 0, 12:16] = True  # all of 4 hidden
    settings = {"score_threshold": 0.5, "num_stuff": 1, "overlap_threshold": 0.3}
    stuff = torch.zeros(1, 20, dtype=torch.int64)
    merged = _merge(masks, [0.75, 0.5, 0.5], stuff, **settings, stuff_area_threshold=3)
    assert merged.instance_ids.tolist() == [1, 2, 0]
    assert merged.stuff_ids.tolist() == [3]

    merged = _merge(masks, [0.75, 0.4999, 0.49], stuff, **settings, stuff_area_threshold=11)
    assert merged.instance_ids.tolist() == [1, 0, 0]
    assert merged.stuff_ids.tolist() == [0]


def test_overlap_counts_full_masks_of_accepted_instances_only():
    masks = torch.zeros(3, 1, 8, dtype=torch.bool)
    masks[0, 0, :6] = True
    masks[1, 0, 1:8] = True  # 5 of 7 hidden: skipped, and hides nobody
    masks[2, 0, 5:8] = True  # 1 of 3 hidden by the first
    merged = _merge(masks, [0.9, 0.8, 0.7])
    assert merged.instance_ids.tolist() == [1, 0, 2]
    assert merged.instance_areas.tolist() == [6, 0, 2]


def test_unknown_stuff_values_are_void():
    stuff = torch.tensor([[0, 1, 2, -1, 7]], dtype=torch.int16)
    merged = _merge(torch.zeros(1, 1, 5, dtype=torch.bool), [0.0], stuff, 2, stuff_area_threshold=0)
    assert merged.panoptic_seg.tolist() == [[1, 2, 0, 0, 0]]


class _Merge(torch.nn.Module):
    def forward(self, packed, scores, stuff_logits):
        frames = {"padded_size": (32, 32), "input_size": (32, 30), "orig_size": (17, 19)}
        stuff = segment_stuff(stuff_logits, **frames)
        return tuple(
            merge_panoptic(packed, 19, scores, stuff, num_stuff=4, stuff_area_threshold=20)
        )


def _merge_inputs(seed, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(6, 5, 5, generator=generator)
    frames = {"padded_size": (8, 8), "input_size": (8, 8), "orig_size": (17, 19)}
    masks = resize_to_original(coarse, **frames) > 0.5
    scores = torch.rand(6, generator=generator).sort(descending=True)[0]
    logits = torch.randn(5, 8, 8, generator=generator)
    return pack_bits(masks).to(device), scores.to(device), logits.to(device)


def test_exports_so_no_value_decides_the_next_line():
    program = torch.export.export(_Merge(), _merge_inputs(0), strict=False)
    for seed in range(1, 4):
        inputs = _merge_inputs(seed)
        for ours, theirs in zip(program.module()(*inputs), _Merge()(*inputs), strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_never_waits_for_the_device():
    inputs = _merge_inputs(1, "cuda")
    _Merge()(*inputs)  # libraries may wait while they start
    torch.cuda.set_sync_debug_mode("error")
    try:
        _Merge()(*inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")


# Stuff


@pytest.mark.parametrize("chunk_pixels", [1, 2 * 32 * 32, 10**9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_stuff_is_the_largest_resized_logit_whatever_the_chunk(chunk_pixels, dtype):
    logits = torch.randn(7, 8, 8).to(dtype)
    frames = {"padded_size": (32, 32), "input_size": (32, 30), "orig_size": (17, 19)}
    index = segment_stuff(logits, **frames, chunk_pixels=chunk_pixels)
    assert index.dtype == torch.int16
    assert torch.equal(index.long(), resize_to_original(logits.float(), **frames).argmax(0))


@st.composite
def stuff_pictures(draw):
    """Logits with regions, ties, near ties and hopeless channels; frames up and down, any size."""
    size = st.integers(1, 12)
    channels, height, width = draw(st.integers(1, 9)), draw(size), draw(size)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    logits = torch.randn(channels, height, width, generator=generator)
    kind = draw(st.sampled_from(["noise", "whole", "near", "regions", "flat"]))
    if kind == "whole":  # many exact ties
        logits = logits.round()
    elif kind == "near":  # apart by as little as a resize rounds
        steps = torch.randint(-2, 3, (channels, 1, 1), generator=generator)
        logits = (10 + 1e-6 * steps).expand(channels, height, width)
    elif kind == "regions":
        rows = torch.randint(0, channels, (height, 1), generator=generator)
        columns = torch.randint(0, channels, (1, width), generator=generator)
        owner = torch.maximum(rows, columns)
        logits += 4 * (torch.arange(channels)[:, None, None] == owner)
    elif kind == "flat":
        logits = torch.zeros_like(logits) - draw(st.integers(0, 1))
    padded_size = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    frames = {
        "padded_size": padded_size,
        "input_size": tuple(draw(st.integers(1, side)) for side in padded_size),
        "orig_size": (draw(st.integers(1, 50)), draw(st.integers(1, 50))),
    }
    return logits * 10.0 ** draw(st.integers(-3, 3)), frames


@given(stuff_pictures(), st.sampled_from([1, 2000, 10**9]))
def test_stuff_left_out_early_never_changes_a_pixel(picture, chunk_pixels):
    logits, frames = picture
    index = segment_stuff(logits, **frames, chunk_pixels=chunk_pixels)
    assert torch.equal(index.long(), resize_to_original(logits, **frames).argmax(0))


@pytest.mark.parametrize(
    ("rows", "padded", "orig"),
    [
        ([(1, 1, -9), (-9, 1, 1), (0.9, 0.9, 0.9)], 12, 3),
        # A frame smaller than the logits skips some of them.
        ([(1, 1, 1, 1, -9, -9), (-9, -9, 1, 1, 1, 1), (0.9,) * 6], 2, 1),
    ],
)
@pytest.mark.parametrize("turn", [False, True])
def test_a_pixel_between_two_winners_may_go_to_a_third(rows, padded, orig, turn):
    logits = torch.tensor(rows).unsqueeze(2)
    sizes = {"padded_size": (padded, 1), "input_size": (padded, 1), "orig_size": (orig, 1)}
    if turn:
        logits, sizes = logits.mT, {name: size[::-1] for name, size in sizes.items()}
    index = segment_stuff(logits, **sizes).flatten()
    assert index[orig // 2] == 2  # the third is never the largest logit
    assert torch.equal(index.long(), resize_to_original(logits, **sizes).argmax(0).flatten())


def test_only_channels_that_may_win_are_resized():
    logits = torch.full((54, 16, 16), -5.0)
    logits[3], logits[7, :, 8:], logits[9, 4, 4] = 1, 2, 0.999
    assert _contenders(logits, (64, 64)) == [3, 7]
    logits[9, 4, 4] = 1.001  # above the third channel's at one place
    assert _contenders(logits, (64, 64)) == [3, 7, 9]
    assert _contenders(torch.zeros(5, 1, 1), (1, 1)) == [0, 1, 2, 3, 4]


def test_stuff_logits_of_a_training_step():
    logits = torch.randn(3, 4, 4, requires_grad=True)
    frames = {"padded_size": (16, 16), "input_size": (16, 16), "orig_size": (9, 9)}
    assert torch.equal(segment_stuff(logits, **frames), segment_stuff(logits.detach(), **frames))


def test_equal_logits_go_to_the_smaller_index():
    logits = torch.zeros(5, 4, 4)
    logits[[2, 4]] = 1
    frames = {"padded_size": (16, 16), "input_size": (16, 16), "orig_size": (3, 3)}
    for chunk_pixels in (1, 10**9):
        assert (segment_stuff(logits, **frames, chunk_pixels=chunk_pixels) == 2).all()


@pytest.mark.parametrize("orig_size", [(1, 1), (4000, 30)])
def test_other_alone_at_odd_sizes(orig_size):
    frames = {"padded_size": (64, 32), "input_size": (64, 1), "orig_size": orig_size}
    index = segment_stuff(torch.randn(1, 16, 8), **frames)
    assert index.shape == orig_size
    assert (index == 0).all()


PACKED = torch.zeros(2, 3, 2, dtype=torch.uint8)
ERRORS = [
    ((PACKED, 17, torch.ones(2), None), 0, r"\[K, H, 3\].*\[2, 3, 2\]"),
    ((PACKED.bool(), 9, torch.ones(2), None), 0, "uint8.*bool"),
    ((PACKED, 9, torch.ones(3), None), 0, r"\[3\] scores for 2 masks"),
    ((PACKED, 9, torch.ones(2), torch.zeros(3, 16, dtype=torch.int64)), 1, r"\[3, 9\].*\[3, 16\]"),
    ((PACKED, 9, torch.ones(2), torch.zeros(3, 9)), 1, "integer map.*float32"),
    ((PACKED, 9, torch.ones(2), None), -1, "num_stuff"),
]


@pytest.mark.parametrize(("arguments", "num_stuff", "message"), ERRORS)
def test_wrong_arguments_name_what_came(arguments, num_stuff, message):
    with pytest.raises(ValueError, match=message):
        merge_panoptic(*arguments, num_stuff=num_stuff)


def test_stuff_without_channels_is_named():
    with pytest.raises(ValueError, match=r"\[0, 4, 4\]"):
        segment_stuff(
            torch.zeros(0, 4, 4), padded_size=(16, 16), input_size=(16, 16), orig_size=(3, 3)
        )
