"""The merge of graphs is that of the package, and so that of the reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from golden_tools import unpack
from hypothesis import given
from hypothesis import strategies as st

from unisolo.export.merge import merge_instances, merge_stuff
from unisolo.ops.masks import pack_bits
from unisolo.ops.panoptic import merge_panoptic


@st.composite
def scenes(draw):
    """A batch of rectangles over stuff, with thresholds that ties and empty masks can meet."""
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    batch, count = draw(st.integers(1, 3)), draw(st.integers(1, 9))
    height, width = draw(st.integers(1, 12)), draw(st.integers(1, 19))
    num_stuff = draw(st.integers(0, 4))
    masks = np.zeros((batch, count, height, width), bool)
    for image, k in np.ndindex(batch, count):
        y, x = rng.integers(0, height), rng.integers(0, width)
        masks[image, k, y : y + rng.integers(0, 8), x : x + rng.integers(0, 8)] = True
    scores = -np.sort(-rng.integers(0, 6, (batch, count)) / 5).astype(np.float32)
    stuff = rng.integers(0, num_stuff + 1, (batch, height, width))
    thresholds = (draw(st.sampled_from([0, 0.4, 0.6])), draw(st.sampled_from([0, 0.5, 1])))
    return masks, scores, stuff, num_stuff, *thresholds, draw(st.integers(0, 20))


@given(scenes())
def test_equals_the_merge_of_packed_masks(scene):
    masks, scores, stuff, num_stuff, score_threshold, overlap_threshold, area = scene
    masks, scores, stuff = (torch.from_numpy(array) for array in (masks, scores, stuff))
    things = merge_instances(
        masks, scores, score_threshold=score_threshold, overlap_threshold=overlap_threshold
    )
    merged = merge_stuff(things, stuff, num_stuff=num_stuff, area_threshold=area)
    for image in range(len(masks)):
        expected = merge_panoptic(
            pack_bits(masks[image]),
            masks.shape[-1],
            scores[image],
            stuff[image],
            num_stuff=num_stuff,
            score_threshold=score_threshold,
            overlap_threshold=overlap_threshold,
            stuff_area_threshold=area,
        )
        assert torch.equal(merged.panoptic_seg[image], expected.panoptic_seg)
        assert merged.instance_ids[image].tolist() == expected.instance_ids.tolist()
        assert things.areas[image].tolist() == expected.instance_areas.tolist()
        assert merged.stuff_ids[image].tolist() == expected.stuff_ids.tolist()
        assert merged.stuff_areas[image].tolist() == expected.stuff_areas.tolist()


@pytest.mark.parametrize("file", ["panoptic_merge_a", "panoptic_merge_ties_lowthr"])
def test_equals_the_reference(golden, file):
    arrays = golden(file)
    meta = arrays["meta"]
    order = np.argsort(-arrays["inst_scores"], kind="stable")
    stuff_ids = meta["stuff_order"]
    semantic = arrays["semantic_map"]
    stuff_index = np.full(semantic.shape, len(stuff_ids), dtype=np.int64)
    for index, category_id in enumerate(stuff_ids):
        stuff_index[semantic == category_id] = index
    things = merge_instances(
        torch.from_numpy(unpack(arrays, "inst_masks")[order])[None],
        torch.from_numpy(arrays["inst_scores"][order]).float()[None],
        score_threshold=meta["confidence_thr"],
        overlap_threshold=meta["overlap_thr"],
    )
    merged = merge_stuff(
        things,
        torch.from_numpy(stuff_index)[None],
        num_stuff=len(stuff_ids),
        area_threshold=meta["stuff_area_limit"],
    )
    np.testing.assert_array_equal(merged.panoptic_seg[0], arrays["panoptic_map"])
