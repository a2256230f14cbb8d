from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unisolo.ops.backend import use_kernels
from unisolo.ops.dynamic_masks import LevelFeatures, candidate_masks, kept_masks
from unisolo.ops.masks import pack_bits
from unisolo.ops.select import select_instances
from unisolo.structures import LEVEL_FEATURES, GridSpec, Outputs

GRID = GridSpec((5, 4, 3, 2, 1))
FACTORS = (1, 1, 2, 4, 4)
SIZE = (16, 24)


def make_outputs(
    seed: int = 0, batch: int = 1, size: tuple[int, int] = SIZE, factors=FACTORS
) -> Outputs:
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    first, *others = (noise(batch, 3, size[0] // f, size[1] // f) for f in factors)
    logits = torch.randint(-5, 5, (batch, GRID.num_cells, 2), generator=generator).float()
    logits = logits + noise(*logits.shape) / 100  # no ties
    extras = dict(zip(LEVEL_FEATURES, others, strict=True))
    return Outputs(logits, noise(batch, GRID.num_cells, 3) * 3, first, extras)


def enlarged(small: np.ndarray, factor: int) -> np.ndarray:
    """Bilinear, pixel centres at + 0.5, edges repeated; by loops."""
    height, width = small.shape
    large = np.zeros((height * factor, width * factor))
    for y, x in np.ndindex(*large.shape):
        down = min(max((y + 0.5) / factor - 0.5, 0), height - 1)
        right = min(max((x + 0.5) / factor - 0.5, 0), width - 1)
        top, left = int(down), int(right)
        for row, by_row in ((top, 1 - (down - top)), (top + 1, down - top)):
            for column, by_column in ((left, 1 - (right - left)), (left + 1, right - left)):
                if by_row * by_column > 0:
                    large[y, x] += by_row * by_column * small[row, column]
    return large


def soft_mask(outputs: Outputs, image: int, cell: int) -> np.ndarray:
    level = max(n for n in range(5) if GRID.offsets[n] <= cell)
    kernel = outputs.kernels[image, cell].double().numpy()
    features = outputs.level_features[level][image].double().numpy()
    return enlarged(1 / (1 + np.exp(-np.tensordot(kernel, features, 1))), FACTORS[level])


@pytest.mark.parametrize("chunk_pixels", [None, 1, 700, 2**20])
def test_every_cells_mask_is_drawn_on_its_level(chunk_pixels: int | None) -> None:
    outputs = make_outputs(batch=2)
    cells = torch.arange(GRID.num_cells).expand(2, -1).flip(1)
    offsets = torch.tensor(GRID.offsets[1:])
    source = LevelFeatures(outputs.level_features, torch.bucketize(cells, offsets, right=True))
    kernels = outputs.kernels.flip(1)
    valid = torch.ones(cells.shape, dtype=torch.bool)
    soft = kept_masks(kernels, source, valid, chunk_pixels=chunk_pixels)
    made = candidate_masks(kernels, source, mask_threshold=0.4, chunk_pixels=chunk_pixels)
    for image in range(2):
        for place, cell in enumerate(cells[image].tolist()):
            expected = soft_mask(outputs, image, cell)
            np.testing.assert_allclose(soft[image, place], expected, rtol=0, atol=1e-5)
    hard = soft > 0.4
    assert torch.equal(made.masks, hard if chunk_pixels is None else pack_bits(hard))
    assert torch.equal(made.areas, hard.sum((-2, -1)))
    maskness = torch.where(hard, soft, 0).sum((-2, -1)) / made.areas.clamp_min(1)
    torch.testing.assert_close(made.maskness, maskness)


@given(
    st.sampled_from([(4, 4), (8, 4), (16, 24), (32, 8)]),
    st.integers(1, 40),
    st.integers(0, 10**6),
)
def test_rows_at_a_time_change_nothing(size: tuple[int, int], rows: int, seed: int) -> None:
    outputs = make_outputs(seed, size=size)
    levels = torch.arange(5).repeat_interleave(11)[None]
    source = LevelFeatures(outputs.level_features, levels)
    kernels, valid = outputs.kernels, torch.ones(1, 55, dtype=torch.bool)
    whole = kept_masks(kernels, source, valid)
    parts = kept_masks(kernels, source, valid, chunk_pixels=rows * 55 * size[1])
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-6)


def test_places_that_are_empty_have_empty_masks() -> None:
    outputs = make_outputs()
    source = LevelFeatures(outputs.level_features, torch.zeros(1, 2, dtype=torch.int64))
    valid = torch.tensor([[True, False]])
    soft = kept_masks(outputs.kernels[:, :2], source, valid, chunk_pixels=100)
    assert soft[0, 0].any() and not soft[0, 1].any()


@settings(max_examples=8)
@given(st.integers(0, 10**6), st.sampled_from([1, 7, 500]))
def test_selection_equals_that_of_one_map_where_sizes_are_equal(seed: int, most: int) -> None:
    """Levels side by side as channels of one map, and kernels that are 0 for all but their own."""
    outputs = make_outputs(seed, batch=2, factors=(1,) * 5)
    kernels = torch.zeros(2, GRID.num_cells, 15)
    ends = [*GRID.offsets[1:], GRID.num_cells]
    for level, (start, end) in enumerate(zip(GRID.offsets, ends, strict=True)):
        kernels[:, start:end, 3 * level : 3 * level + 3] = outputs.kernels[:, start:end]
    joined = Outputs(outputs.category_logits, kernels, torch.cat(outputs.level_features, dim=1), {})
    ours = select_instances(outputs, GRID, max_candidates=most)
    with use_kernels("torch"):
        theirs = select_instances(joined, GRID, max_candidates=most)
    assert ours.valid.any()
    for name, one, other in zip(ours._fields, ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5, msg=name)


def test_kept_masks_of_a_selection_are_those_of_its_cells() -> None:
    outputs = make_outputs(3, batch=2)
    found = select_instances(outputs, GRID)
    levels = set()
    for image in range(2):
        assert found.valid[image].sum() > 3
        for place in range(int(found.valid[image].sum())):
            cell = int(found.cells[image, place])
            levels.add(sum(cell >= start for start in GRID.offsets))
            expected = soft_mask(outputs, image, cell)
            np.testing.assert_allclose(found.mask_probs[image, place], expected, rtol=0, atol=1e-5)
    assert len(levels) > 2


def test_every_backend_gives_the_definition() -> None:
    outputs = make_outputs(5, batch=2)
    with use_kernels("torch"):
        expected = select_instances(outputs, GRID)
    for one, other in zip(select_instances(outputs, GRID), expected, strict=True):
        assert torch.equal(one, other)


def test_images_of_a_batch_do_not_touch_each_other() -> None:
    outputs = make_outputs(7, batch=2)
    together = select_instances(outputs, GRID)
    for image in range(2):
        rows = slice(image, image + 1)
        extras = {name: level[rows] for name, level in outputs.extras.items()}
        alone = Outputs(*(field[rows] for field in outputs[:3]), extras)
        for one, other in zip(select_instances(alone, GRID), together, strict=True):
            assert torch.equal(one[0], other[image])


def test_no_candidate_gives_empty_places() -> None:
    outputs = make_outputs()
    silent = outputs._replace(category_logits=torch.full_like(outputs.category_logits, -30.0))
    found = select_instances(silent, GRID, max_instances=4)
    assert not found.valid.any() and not found.mask_probs.any()


def test_features_that_do_not_fit_are_named() -> None:
    outputs = make_outputs()
    short = {name: outputs.extras[name] for name in LEVEL_FEATURES[:2]}
    with pytest.raises(ValueError, match="the grid has 5 levels, but 3 have mask features"):
        select_instances(outputs._replace(extras=short), GRID)
    for wrong in (torch.zeros(1, 3, 7, 24), torch.zeros(1, 2, 8, 12), torch.zeros(1, 3, 8)):
        extras = {**outputs.extras, LEVEL_FEATURES[1]: wrong}
        with pytest.raises(ValueError, match="mask features of level 2"):
            select_instances(outputs._replace(extras=extras), GRID)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same_and_is_never_waited_for() -> None:
    outputs = make_outputs(5, batch=2)
    expected = select_instances(outputs, GRID)
    extras = {name: level.cuda() for name, level in outputs.extras.items()}
    moved = Outputs(*(field.cuda() for field in outputs[:3]), extras)
    select_instances(moved, GRID)  # libraries may wait while they start
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = select_instances(moved, GRID)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for name, one, other in zip(found._fields, found, expected, strict=True):
        torch.testing.assert_close(one.cpu(), other, rtol=1e-4, atol=1e-4, msg=name)
