from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from unisolo.ops.boxes import masks_to_boxes, sqrt_area, xyxy_to_xywh

some_masks = hnp.arrays(
    bool,
    st.tuples(st.integers(0, 4), st.integers(1, 9), st.integers(1, 9)),
    elements=st.sampled_from([False, False, False, True]),
)


@given(some_masks)
def test_boxes_equal_the_extremes_of_the_pixels(masks):
    boxes = masks_to_boxes(torch.from_numpy(masks))

    assert boxes.dtype == torch.float32
    assert boxes.shape == (len(masks), 4)
    for mask, box in zip(masks, boxes.tolist(), strict=True):
        rows, columns = np.nonzero(mask)
        if len(rows) == 0:
            assert box == [0, 0, 0, 0]
        else:
            assert box == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_one_pixel_has_a_box_of_one_pixel():
    mask = torch.zeros(1, 5, 7, dtype=torch.bool)
    mask[0, 4, 6] = True
    boxes = masks_to_boxes(mask)
    assert boxes.tolist() == [[6, 4, 7, 5]]
    assert xyxy_to_xywh(boxes).tolist() == [[6, 4, 1, 1]]
    assert sqrt_area(boxes).tolist() == [1]


def test_sizes_of_several_boxes():
    boxes = torch.tensor([[1.0, 2, 5, 11], [3, 3, 3, 9], [5, 5, 4, 4]])
    assert xyxy_to_xywh(boxes).tolist() == [[1, 2, 4, 9], [3, 3, 0, 6], [5, 5, -1, -1]]
    assert sqrt_area(boxes).tolist() == [6, 0, 0]
    assert xyxy_to_xywh(boxes[:0]).shape == (0, 4)
    assert sqrt_area(boxes[:0]).shape == (0,)


def test_wrong_masks_are_named():
    with pytest.raises(ValueError, match=r"bool masks.*float32 \[1, 2, 3\]"):
        masks_to_boxes(torch.zeros(1, 2, 3))
    with pytest.raises(ValueError, match=r"\[N, H, W\].*\[2, 3\]"):
        masks_to_boxes(torch.zeros(2, 3, dtype=torch.bool))
