from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unisolo.ops.backend import use_kernels
from unisolo.ops.matrix_nms import matrix_nms


def make_inputs(seed, shape, num_labels):
    """Boxes, copies and empty masks, and few different scores."""
    generator = torch.Generator().manual_seed(seed)

    def integers(stop, size):
        return torch.randint(stop, size, generator=generator)

    *batch, count, height, width = shape
    y, x = torch.arange(height).view(-1, 1), torch.arange(width)
    top, left = integers(height, (*batch, count, 1, 1)), integers(width, (*batch, count, 1, 1))
    tall, wide = integers(height, (*batch, count, 1, 1)), integers(width, (*batch, count, 1, 1))
    masks = (y >= top) & (y < top + tall) & (x >= left) & (x < left + wide)
    if count > 3:
        masks[..., 1, :, :] = masks[..., 0, :, :]
        masks[..., 2, :, :] = masks[..., 0, :, :]
    labels = integers(num_labels, (*batch, count)) + 3
    scores = integers(6, (*batch, count)) / 5
    return masks, labels, scores


@given(
    st.integers(0, 10**6),
    st.sampled_from([(), (1,), (3,)]),
    st.sampled_from([0, 1, 2, 9, 40]),
    st.sampled_from([(1, 1), (1, 7), (5, 13), (8, 64)]),
    st.integers(1, 4),
    st.sampled_from([("gaussian", 2.0), ("gaussian", 0.5), ("linear", 2.0)]),
)
def test_equals_the_definition_bit_for_bit(seed, batch, count, size, num_labels, rule):
    masks, labels, scores = make_inputs(seed, (*batch, count, *size), num_labels)
    kernel, sigma = rule
    with use_kernels("auto"):
        ours = matrix_nms(masks, labels, scores, kernel=kernel, sigma=sigma)
    with use_kernels("torch"):
        expected = matrix_nms(masks, labels, scores, kernel=kernel, sigma=sigma)
    assert ours.dtype == torch.float32
    assert torch.equal(ours, expected)


def test_any_layout_and_dtype():
    masks, labels, scores = make_inputs(3, (30, 9, 14), 2)
    with use_kernels("torch"):
        expected = matrix_nms(masks, labels, scores.half())
    strided = masks.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    assert not strided.is_contiguous()
    assert torch.equal(matrix_nms(strided, labels.int(), scores.half()), expected)
    assert torch.equal(matrix_nms(masks, labels.to(torch.uint8), scores.half()), expected)


def test_identical_masks_and_scores():
    masks = torch.ones(6, 4, 4, dtype=torch.bool)
    labels, scores = torch.zeros(6).long(), torch.full((6,), 0.5)
    with use_kernels("torch"):
        expected = matrix_nms(masks, labels, scores)
    assert expected[0] == 0.5
    assert torch.equal(matrix_nms(masks, labels, scores), expected)


@pytest.mark.parametrize(
    ("labels", "scores", "settings"),
    [
        (torch.zeros(3).long(), torch.zeros(4), {}),
        (torch.zeros(4), torch.zeros(4), {}),
        (torch.zeros(4).long(), torch.zeros(3), {}),
        (torch.zeros(4).long(), torch.zeros(4).long(), {}),
        (torch.zeros(4).long(), torch.zeros(4), {"kernel": "box"}),
        (torch.zeros(4).long(), torch.zeros(4), {"sigma": 0.0}),
    ],
)
def test_refuses_what_the_definition_refuses(labels, scores, settings):
    messages = []
    for kernels in ("torch", "auto"):
        with use_kernels(kernels), pytest.raises(ValueError, match="Matrix NMS") as caught:
            matrix_nms(torch.ones(4, 2, 2, dtype=torch.bool), labels, scores, **settings)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
