"""The baseline answers what the package answers: it is slower, not another method."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unisolo.benchmark.postprocess.reference_chain import (
    reference_candidates,
    reference_full_masks,
    reference_select,
)
from unisolo.benchmark.postprocess.scenes import SceneName, make_scene
from unisolo.ops.backend import use_kernels
from unisolo.ops.masks import unpack_bits, upsample_masks
from unisolo.ops.select import select_instances
from unisolo.structures import GridSpec, Outputs

GRID = GridSpec(sizes=(6, 5, 4, 3, 2))


def assert_same(outputs: Outputs, grid: GridSpec) -> int:
    with use_kernels("torch"):
        ours = select_instances(outputs, grid)
    kept = 0
    for image, found in enumerate(reference_select(outputs, grid)):
        count = int(ours.valid[image].sum())
        assert len(found.scores) == count
        assert torch.equal(found.labels, ours.labels[image, :count])
        assert torch.equal(found.cells, ours.cells[image, :count])
        torch.testing.assert_close(found.scores, ours.scores[image, :count], rtol=0, atol=1e-5)
        torch.testing.assert_close(
            found.mask_probs, ours.mask_probs[image, :count], rtol=0, atol=1e-5
        )
        kept += count
    return kept


@pytest.mark.parametrize("name", ["coco", "dense"])
def test_kept_set_and_order_are_those_of_select_instances(name: SceneName) -> None:
    scene = make_scene(name, 60, (96, 160), channels=16)
    assert assert_same(scene.outputs, scene.grid) > 10


@settings(max_examples=6, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    images=st.integers(1, 3),
    categories=st.integers(1, 4),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    bias=st.sampled_from([-9.0, -3.0, 0.0]),
)
def test_random_outputs_too(
    seed: int, images: int, categories: int, size: tuple[int, int], bias: float
) -> None:
    draw = torch.Generator().manual_seed(seed)
    outputs = Outputs(
        torch.randn(images, GRID.num_cells, categories, generator=draw) + bias,
        torch.randn(images, GRID.num_cells, 8, generator=draw),
        torch.randn(images, 8, *size, generator=draw),
        {},
    )
    assert_same(outputs, GRID)


def test_nothing_above_the_threshold_is_no_error() -> None:
    outputs = Outputs(
        torch.full((1, GRID.num_cells, 2), -20.0),
        torch.ones(1, GRID.num_cells, 8),
        torch.ones(1, 8, 4, 5),
        {},
    )
    assert assert_same(outputs, GRID) == 0
    (found,) = reference_select(outputs, GRID)
    sizes = {"padded_size": (16, 20), "input_size": (16, 20), "orig_size": (30, 41)}
    assert reference_full_masks(found.mask_probs, **sizes).shape == (0, 30, 41)


def test_candidates_know_the_stride_of_their_level() -> None:
    logits = torch.full((GRID.num_cells, 1), 5.0)
    found = reference_candidates(logits, torch.zeros(GRID.num_cells, 4), GRID)
    assert len(found.scores) == GRID.num_cells  # equal neighbours all stay
    expected = [
        stride
        for size, stride in zip(GRID.sizes, GRID.strides, strict=True)
        for _ in range(size**2)
    ]
    assert found.min_areas.tolist() == expected


@pytest.mark.parametrize(
    "sizes",
    [((32, 64), (32, 64), (32, 64)), ((32, 64), (30, 53), (61, 107)), ((32, 64), (29, 64), (7, 9))],
)
def test_full_masks_are_those_of_upsample_masks(sizes: tuple[tuple[int, int], ...]) -> None:
    padded, valid, orig = sizes
    soft = torch.rand(5, 8, 16, generator=torch.Generator().manual_seed(1))
    frames = {"padded_size": padded, "input_size": valid, "orig_size": orig}
    with use_kernels("torch"):
        packed = upsample_masks(soft, **frames).packed
    assert torch.equal(reference_full_masks(soft, **frames), unpack_bits(packed, orig[1]))
