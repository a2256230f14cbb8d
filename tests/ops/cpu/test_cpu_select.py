from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unisolo.ops.backend import use_kernels
from unisolo.ops.cpu import dynamic_masks
from unisolo.ops.cpu.packed import count_bits
from unisolo.ops.select import select_instances
from unisolo.structures import GridSpec, Outputs

GRID = GridSpec((6, 4, 1), (8, 16, 32), ((1, 8), (4, 16), (8, 64)))


def make_outputs(seed=0, batch=1, categories=3, size=(9, 11), whole=False) -> Outputs:
    """Few different logits and kernels, so that ties and equal masks are common.

    `whole` makes integers of all values: products are then exact in any order.
    """
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randint(-5, 5, (batch, GRID.num_cells, categories), generator=generator).float()
    pool = torch.randn(batch, 9, 4, generator=generator) * 4
    kernels = pool[:, torch.randint(9, (GRID.num_cells,), generator=generator)]
    features = torch.randn(batch, 4, *size, generator=generator)
    if whole:
        return Outputs(logits, kernels.round(), (features * 2).round(), {})
    return Outputs(logits + torch.randn(logits.shape, generator=generator), kernels, features, {})


def assert_equal_to_the_definition(outputs, grid=GRID, tolerance=1e-5, **settings):
    with use_kernels("torch"):
        expected = select_instances(outputs, grid, **settings)
    with use_kernels("auto"):
        ours = select_instances(outputs, grid, **settings)
    for field, ours_, expected_ in zip(expected._fields, ours, expected, strict=True):
        assert ours_.dtype == expected_.dtype, field
        assert ours_.shape == expected_.shape, field
        if field in ("scores", "mask_probs", "top_probs"):
            assert (ours_ - expected_).abs().amax() <= tolerance, field
        else:
            assert torch.equal(ours_, expected_), field
    threshold = settings.get("mask_threshold", 0.5)
    assert torch.equal(ours.mask_probs > threshold, expected.mask_probs > threshold)
    return ours


@given(
    st.integers(0, 10**6),
    st.sampled_from([1, 2, 3]),
    st.sampled_from([0, 1, 3, 20]),
    st.sampled_from([(1, 1), (1, 65), (9, 11), (16, 24)]),
    st.booleans(),
    st.fixed_dictionaries(
        {},
        optional={
            "score_threshold": st.sampled_from([0.0, 0.5, 0.9, 1.0]),
            "mask_threshold": st.sampled_from([0.0, 0.3, 0.9, 1.0]),
            "max_candidates": st.sampled_from([1, 3, 30, 2000]),
            "pre_nms": st.sampled_from([1, 4, 40]),
            "nms_kernel": st.just("linear"),
            "update_threshold": st.sampled_from([0.0, 0.3]),
            "max_instances": st.sampled_from([1, 7, 300]),
            "min_area": st.sampled_from([0, 1, 12, 2**31 - 1]),
            "chunk_pixels": st.sampled_from([1, 99, 3000, None]),
        },
    ),
)
def test_equals_the_definition(seed, batch, categories, size, whole, settings):
    outputs = make_outputs(seed, batch, categories, size, whole)
    assert_equal_to_the_definition(outputs, **settings)


def test_the_paper_s_sizes():
    grid = GridSpec()
    generator = torch.Generator().manual_seed(0)
    outputs = Outputs(
        torch.randn(1, grid.num_cells, 80, generator=generator) - 5,
        torch.randn(1, grid.num_cells, 32, generator=generator),
        torch.randn(1, 32, 50, 67, generator=generator),
        {},
    )
    ours = assert_equal_to_the_definition(outputs, grid)
    assert ours.valid.sum() == 100
    # Nothing above the threshold: the best pairs are still named.
    silent = assert_equal_to_the_definition(outputs, grid, score_threshold=1.0)
    assert not silent.valid.any()
    assert (silent.top_probs > 0).all()


def test_equal_probabilities_go_to_the_earlier_pair():
    outputs = make_outputs(whole=True, categories=5)
    outputs = outputs._replace(category_logits=torch.full_like(outputs.category_logits, 2.0))
    ours = assert_equal_to_the_definition(outputs, max_candidates=17, update_threshold=0.0)
    assert ours.top_labels.tolist() == [[0, 1, 2, 3, 4]]
    assert_equal_to_the_definition(outputs, max_candidates=3, max_instances=2)


def test_any_layout_and_dtype():
    plain = make_outputs(5, batch=2, size=(12, 10))
    strided = Outputs(
        plain.category_logits.permute(2, 0, 1).contiguous().permute(1, 2, 0),
        plain.kernels.permute(2, 0, 1).contiguous().permute(1, 2, 0).requires_grad_(),
        plain.mask_features.contiguous(memory_format=torch.channels_last).requires_grad_(),
        {},
    )
    assert not strided.mask_features.is_contiguous()
    assert_equal_to_the_definition(strided)
    halves = Outputs(*(field.bfloat16() for field in plain[:3]), {})
    ours = assert_equal_to_the_definition(halves)
    assert ours.mask_probs.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again = select_instances(halves, GRID)
    for ours_, again_ in zip(ours, again, strict=True):
        assert torch.equal(ours_, again_)


def test_a_default_dtype_changes_nothing():
    outputs = make_outputs(4)
    expected = select_instances(outputs, GRID)
    torch.set_default_dtype(torch.float64)
    try:
        ours = assert_equal_to_the_definition(outputs)
    finally:
        torch.set_default_dtype(torch.float32)
    for ours_, expected_ in zip(ours, expected, strict=True):
        assert torch.equal(ours_, expected_)


def test_values_that_are_no_numbers():
    outputs = make_outputs(2, whole=True)
    outputs.mask_features[0, 1, 3, 4] = float("nan")
    outputs.category_logits[0, 5] = float("nan")
    with use_kernels("torch"):
        expected = select_instances(outputs, GRID)
    ours = select_instances(outputs, GRID)
    assert expected.valid.any()
    for ours_, expected_ in zip(ours, expected, strict=True):
        np.testing.assert_allclose(ours_.double(), expected_.double(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("chunk_pixels", [40 * 7, 40 * 20, 40 * 48, None])
def test_masks_and_sums_are_the_same_in_any_chunk(chunk_pixels):
    generator = torch.Generator().manual_seed(0)
    weights = torch.randint(-3, 4, (20, 8), generator=generator).float()
    features = torch.randint(-2, 3, (8, 13, 48), generator=generator).float()
    made = dynamic_masks.pack_candidates(
        weights, features, mask_threshold=0.5, chunk_pixels=chunk_pixels, most_rows=500
    )
    soft = (weights @ features.flatten(1)).sigmoid()
    inside = soft > 0.5
    assert torch.equal(made.areas, inside.sum(1))
    expected = (soft * inside).sum(1) / inside.sum(1).clamp_min(1)
    torch.testing.assert_close(made.maskness, expected, rtol=0, atol=1e-6)
    shared = count_bits(made.words[:, None] & made.words).sum(-1, dtype=np.int64)
    np.testing.assert_array_equal(shared, inside.long() @ inside.long().t())
    out = torch.full((5, 13, 48), torch.nan)
    places = torch.tensor([19, 0, 7])
    dynamic_masks.write_soft_masks(
        out, made.logits, places, weights, features, chunk_pixels=chunk_pixels
    )
    torch.testing.assert_close(out[:3].flatten(1), soft[places], rtol=0, atol=1e-6)
    assert out[3:].isnan().all()
