from __future__ import annotations

import numpy as np
import pytest
import torch
from golden_tools import unpack

from unisolo.ops.masks import pack_bits
from unisolo.ops.panoptic import merge_panoptic

pytestmark = pytest.mark.usefixtures("each_twin")


@pytest.mark.parametrize("file", ["panoptic_merge_a", "panoptic_merge_ties_lowthr"])
def test_merge_equals_the_reference(golden, file):
    arrays = golden(file)
    meta = arrays["meta"]
    order = np.argsort(-arrays["inst_scores"], kind="stable")
    category = arrays["inst_category"][order]
    stuff_ids = meta["stuff_order"]
    semantic = arrays["semantic_map"]
    stuff_index = np.full(semantic.shape, len(stuff_ids), dtype=np.int64)
    for index, category_id in enumerate(stuff_ids):
        stuff_index[semantic == category_id] = index

    merged = merge_panoptic(
        pack_bits(torch.from_numpy(unpack(arrays, "inst_masks")[order])),
        semantic.shape[1],
        torch.from_numpy(arrays["inst_scores"][order]).float(),
        torch.from_numpy(stuff_index),
        num_stuff=len(stuff_ids),
        score_threshold=meta["confidence_thr"],
        overlap_threshold=meta["overlap_thr"],
        stuff_area_threshold=meta["stuff_area_limit"],
    )

    np.testing.assert_array_equal(merged.panoptic_seg, arrays["panoptic_map"])
    segments = [
        (int(segment), int(category_id), int(area))
        for segment, category_id, area in [
            *zip(merged.instance_ids, category, merged.instance_areas, strict=True),
            *zip(merged.stuff_ids, stuff_ids, merged.stuff_areas, strict=True),
        ]
        if segment > 0
    ]
    assert segments == [tuple(row) for row in arrays["segments_info"].tolist()]
