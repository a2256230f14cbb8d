from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from unisolo.ops.matrix_nms import matrix_nms
from unisolo.ops.select import (
    CandidateMasks,
    Candidates,
    candidate_masks,
    category_probs,
    keep_best,
    nms_inputs,
    points_nms,
    select_instances,
    top_candidates,
)
from unisolo.structures import GridSpec, Outputs

GRID = GridSpec((4, 3, 1), (8, 16, 32), ((1, 8), (4, 16), (8, 64)))


def make_outputs(
    seed=0, batch=1, categories=2, size=(9, 11), channels=4, num_kernels=6, grid=GRID
) -> Outputs:
    """Integer category logits and few different kernels: ties and duplicate masks are common."""
    generator = torch.Generator().manual_seed(seed)
    cells = grid.num_cells
    logits = torch.randint(-5, 5, (batch, cells, categories), generator=generator).float()
    pool = torch.randn(batch, num_kernels, channels, generator=generator) * 4
    pick = torch.randint(num_kernels, (cells,), generator=generator)
    features = torch.randn(batch, channels, *size, generator=generator)
    return Outputs(logits, pool[:, pick], features, {})


def twin_points_nms(probs: np.ndarray) -> np.ndarray:
    kept = np.zeros_like(probs)
    for y, x in np.ndindex(*probs.shape):
        window = probs[max(y - 1, 0) : y + 1, max(x - 1, 0) : x + 1]
        if probs[y, x] == window.max():
            kept[y, x] = probs[y, x]
    return kept


def twin(outputs: Outputs, grid: GridSpec, *, max_candidates=500, pre_nms=500, max_instances=100):
    """One image by loops in float64: [(score, label, cell, soft mask)] by falling score."""
    logits, kernels, features = (field[0].double().numpy() for field in outputs[:3])
    pairs = []
    for size, stride, start in zip(grid.sizes, grid.strides, grid.offsets, strict=True):
        for label in range(logits.shape[1]):
            level = logits[start : start + size * size, label].reshape(size, size)
            kept = twin_points_nms(1 / (1 + np.exp(-level))).ravel()
            pairs += [(p, start + i, label, stride) for i, p in enumerate(kept) if p > 0.1]
    pairs.sort(key=lambda pair: (-pair[0], pair[1], pair[2]))

    found = []
    for prob, cell, label, stride in pairs[:max_candidates]:
        soft = 1 / (1 + np.exp(-np.tensordot(kernels[cell], features, 1)))
        hard = soft > 0.5
        if hard.sum() > stride:
            found.append((prob * soft[hard].mean(), label, cell, soft))
    found.sort(key=lambda item: -item[0])
    found = found[:pre_nms]
    if not found:
        return []
    scores, labels, _, soft = (np.array(field) for field in zip(*found, strict=True))
    decayed = matrix_nms(
        torch.from_numpy(soft > 0.5), torch.from_numpy(labels), torch.from_numpy(scores)
    )
    assume((abs(decayed - 0.05) > 1e-4).all())  # rounding decides there
    kept = [
        (float(score), *item[1:])
        for score, item in zip(decayed, found, strict=True)
        if score >= 0.05
    ]
    return sorted(kept, key=lambda item: -item[0])[:max_instances]


@pytest.mark.usefixtures("each_twin")
@given(st.integers(0, 10**6), st.sampled_from([1, 2, 5]), st.sampled_from([1, 7, 500]))
def test_equals_the_reference_by_loops(seed, categories, max_candidates):
    outputs = make_outputs(seed, categories=categories)
    expected = twin(outputs, GRID, max_candidates=max_candidates)
    instances = select_instances(outputs, GRID, max_candidates=max_candidates)

    count = len(expected)
    assert instances.valid[0].tolist() == [place < count for place in range(100)]
    ours = {(int(instances.cells[0, k]), int(instances.labels[0, k])): k for k in range(count)}
    assert len(ours) == count
    for score, label, cell, soft in expected:
        k = ours[cell, label]
        np.testing.assert_allclose(instances.scores[0, k], score, rtol=0, atol=1e-5)
        np.testing.assert_allclose(instances.mask_probs[0, k], soft, rtol=0, atol=1e-5)


@given(st.integers(0, 10**6), st.sampled_from([1, 3, 8]), st.sampled_from([1, 4, 9, 200]))
def test_cuts_keep_the_best(seed, pre_nms, max_instances):
    outputs = make_outputs(seed, categories=3, num_kernels=40)
    expected = twin(outputs, GRID, pre_nms=pre_nms, max_instances=max_instances)
    instances = select_instances(outputs, GRID, pre_nms=pre_nms, max_instances=max_instances)

    scores = np.zeros(max_instances)
    scores[: len(expected)] = [item[0] for item in expected]
    assert instances.scores.shape == (1, max_instances)
    np.testing.assert_allclose(instances.scores[0], scores, rtol=0, atol=1e-5)


@given(st.integers(0, 10**6))
def test_output_is_sorted_finite_and_empty_places_are_zero_and_last(seed):
    instances = select_instances(make_outputs(seed, batch=2), GRID, max_instances=30)

    assert instances.mask_probs.shape == (2, 30, 9, 11)
    assert instances.scores.dtype == instances.mask_probs.dtype == torch.float32
    assert (instances.scores.diff() <= 0).all()
    assert torch.equal(instances.valid.int(), instances.valid.int().sort(descending=True)[0])
    assert torch.equal(instances.valid, instances.scores > 0)
    for field in (instances.scores, instances.labels, instances.cells, instances.mask_probs):
        assert field.isfinite().all()
        assert (field[~instances.valid] == 0).all()


def test_images_of_a_batch_do_not_touch_each_other():
    outputs = make_outputs(3, batch=3)
    together = select_instances(outputs, GRID)
    for image in range(3):
        alone = Outputs(*(field[image : image + 1] for field in outputs[:3]), {})
        for ours, theirs in zip(select_instances(alone, GRID), together, strict=True):
            assert torch.equal(ours[0], theirs[image])


@pytest.mark.usefixtures("each_twin")
def test_nothing_above_the_threshold_takes_the_same_path():
    outputs = make_outputs()
    silent = select_instances(
        outputs._replace(category_logits=torch.full_like(outputs.category_logits, -9)), GRID
    )
    assert not silent.valid.any()
    assert (silent.mask_probs == 0).all()


@pytest.mark.parametrize("categories", [0, 1, 1203])
def test_any_number_of_categories(categories):
    outputs = make_outputs(categories=categories, num_kernels=30)
    instances = select_instances(outputs, GRID, max_instances=40)
    assert instances.scores.shape == (1, 40)
    assert instances.valid.any() == (categories > 0)
    assert (instances.labels < max(1, categories)).all()


def test_more_places_than_cells_times_categories():
    grid = GridSpec((1,), (8,), ((1, 64),))
    outputs = make_outputs(grid=grid, categories=1)
    outputs = outputs._replace(
        category_logits=torch.full((1, 1, 1), 3.0), mask_features=torch.ones(1, 4, 9, 11)
    )
    outputs = outputs._replace(kernels=torch.ones(1, 1, 4))
    instances = select_instances(outputs, grid, max_instances=1000, max_candidates=7, pre_nms=3)
    assert instances.valid[0].tolist() == [True] + [False] * 999


def test_one_cell_gives_several_categories_one_kernel():
    grid = GridSpec((1,), (8,), ((1, 64),))
    outputs = Outputs(
        torch.tensor([[[3.0, 2.0, -9.0]]]), torch.ones(1, 1, 4), torch.ones(1, 4, 9, 11), {}
    )
    instances = select_instances(outputs, grid, max_instances=3)
    assert instances.labels[0].tolist() == [0, 1, 0]
    assert instances.valid[0].tolist() == [True, True, False]
    assert torch.equal(instances.mask_probs[0, 0], instances.mask_probs[0, 1])


@pytest.mark.usefixtures("each_twin")
@pytest.mark.parametrize("chunk_pixels", [1, 99, 500, 10**9])
def test_result_does_not_depend_on_the_chunk(chunk_pixels):
    # Small integers: products are exact whatever their order, so equality must be, too.
    outputs = make_outputs(7, batch=2)
    outputs = outputs._replace(
        kernels=outputs.kernels.round(), mask_features=outputs.mask_features.round()
    )
    expected = select_instances(outputs, GRID)
    assert expected.valid.sum() > 3
    result = select_instances(outputs, GRID, chunk_pixels=chunk_pixels)
    for ours, theirs in zip(result, expected, strict=True):
        assert torch.equal(ours, theirs)


class _LargestFloat(TorchDispatchMode):
    """Number of values of the largest float tensor made inside."""

    values = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.is_floating_point():
            self.values = max(self.values, out.numel())
        return out


@pytest.mark.usefixtures("each_twin")
def test_soft_masks_of_all_candidates_never_exist_at_once():
    outputs = make_outputs(categories=20, size=(40, 50), num_kernels=30)
    settings = {"max_candidates": 200, "max_instances": 5, "chunk_pixels": 4 * 2000}
    with _LargestFloat() as largest:
        instances = select_instances(outputs, GRID, **settings)
    assert instances.valid.all()
    # The floor: 5 final masks, 4 feature channels, 200 x 200 intersections in rows of 201.
    assert largest.values <= max(5 * 2000, 4 * 2000, 200 * 201)
    assert largest.values < 200 * 2000


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_inputs_are_computed_in_float32(dtype):
    outputs = make_outputs(5)
    half = Outputs(*(field.to(dtype) for field in outputs[:3]), {})
    expected = select_instances(Outputs(*(field.float() for field in half[:3]), {}), GRID)
    assert expected.valid.sum() > 3
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = select_instances(half, GRID)
    for ours, theirs in zip(result, expected, strict=True):
        assert torch.equal(ours, theirs)


def test_gradients_are_not_recorded():
    outputs = make_outputs()
    outputs = outputs._replace(kernels=outputs.kernels.requires_grad_())
    assert not select_instances(outputs, GRID).mask_probs.requires_grad


class _Select(torch.nn.Module):
    def forward(self, logits, kernels, features):
        return tuple(
            select_instances(Outputs(logits, kernels, features, {}), GRID, max_instances=20)
        )


def test_exports_so_no_value_decides_the_next_line():
    program = torch.export.export(_Select(), make_outputs(1, batch=2)[:3], strict=False)
    for seed in range(2, 5):  # other values, other numbers of instances: the same graph
        inputs = make_outputs(seed, batch=2)[:3]
        for ours, theirs in zip(program.module()(*inputs), _Select()(*inputs), strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_never_waits_for_the_device():
    outputs = Outputs(*(field.cuda() for field in make_outputs(1, batch=2)[:3]), {})
    select_instances(outputs, GRID)  # libraries may wait while they start
    torch.cuda.set_sync_debug_mode("error")
    try:
        select_instances(outputs, GRID)
    finally:
        torch.cuda.set_sync_debug_mode("default")


# The stages


@given(st.integers(0, 10**6), st.integers(1, 6))
def test_points_nms_looks_up_and_left_only(seed, size):
    generator = torch.Generator().manual_seed(seed)
    probs = torch.randint(0, 4, (2, 3, size, size), generator=generator) / 4
    kept = points_nms(probs)
    for image, channel in np.ndindex(2, 3):
        np.testing.assert_array_equal(
            kept[image, channel], twin_points_nms(probs[image, channel].numpy())
        )


def test_category_probs_keep_levels_apart_and_cells_in_order():
    logits = torch.full((1, GRID.num_cells, 2), -9.0)
    logits[0, [0, 5, 15, 16, 24, 25], 1] = torch.tensor([1.0, 2, 3, 1, 2, 3])
    probs = category_probs(logits, GRID)
    assert probs.shape == logits.shape
    expected = logits[0, :, 1].sigmoid()
    for cell in (0, 5, 15, 16, 24, 25):
        assert probs[0, cell, 1] == expected[cell]


def test_top_candidates_are_strict_stable_and_bounded():
    probs = torch.tensor([[0.5, 0.25], [0.75, 0.5], [0.1, 0.5]])
    top = top_candidates(probs, score_threshold=0.25, max_candidates=100)
    assert top.scores.tolist() == [0.75, 0.5, 0.5, 0.5, 0, 0]
    assert list(zip(top.cells.tolist(), top.labels.tolist(), strict=True))[:4] == [
        (1, 0),
        (0, 0),
        (1, 1),
        (2, 1),
    ]
    cut = top_candidates(probs, score_threshold=0.25, max_candidates=3)
    assert cut.cells.tolist() == [1, 0, 1]


def test_candidate_masks_of_empty_and_full_masks():
    features = torch.ones(1, 2, 3)
    made = candidate_masks(torch.tensor([[-5.0], [0.0], [5.0]]), features, mask_threshold=0.5)
    assert made.areas.tolist() == [0, 0, 6]  # 0.5 is not above 0.5
    np.testing.assert_allclose(made.maskness, [0, 0, torch.tensor(5.0).sigmoid()], rtol=1e-6)


def test_nms_inputs_drop_an_area_equal_to_the_stride_and_sort_by_maskness():
    candidates = Candidates(
        torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.tensor([3, 4, 5, 6]), torch.tensor([7, 8, 9, 10])
    )
    masks = torch.arange(9).expand(4, 3, 9) < torch.tensor([2, 3, 4, 9]).reshape(4, 1, 1)
    made = CandidateMasks(masks, masks.sum((1, 2)), torch.tensor([1.0, 0.5, 1.0, 1.0]))
    kept, kept_masks = nms_inputs(
        candidates, made, min_areas=torch.tensor([6, 8, 8, 8]), pre_nms=500
    )
    np.testing.assert_allclose(kept.scores, [0.7, 0.6, 0.4, 0])
    assert kept.labels.tolist() == [5, 6, 4, 3]
    assert kept.cells.tolist() == [9, 10, 8, 7]
    assert torch.equal(kept_masks, masks[[2, 3, 1, 0]])

    kept, kept_masks = nms_inputs(candidates, made, min_areas=torch.zeros(4), pre_nms=2)
    assert kept.labels.tolist() == [3, 5]
    assert torch.equal(kept_masks, masks[[0, 2]])


def test_keep_best_is_inclusive_and_keeps_a_decay_to_zero_when_told():
    scores = torch.tensor([0.9, 0.8, 0.7, 0.0])
    candidates = Candidates(scores, torch.tensor([3, 4, 5, 6]), torch.tensor([7, 8, 9, 10]))
    decayed = torch.tensor([0.5, 0.0, 0.75, 0.0])

    best, valid = keep_best(candidates, decayed, update_threshold=0.5, max_instances=6)
    assert best.scores.tolist() == [0.75, 0.5, 0, 0, 0, 0]
    assert best.labels.tolist() == [5, 3, 0, 0, 0, 0]
    assert best.cells.tolist() == [9, 7, 0, 0, 0, 0]
    assert valid.tolist() == [True, True, False, False, False, False]

    best, valid = keep_best(candidates, decayed, update_threshold=0.0, max_instances=4)
    assert best.labels.tolist() == [5, 3, 4, 0]
    assert valid.tolist() == [True, True, True, False]


SETTINGS = [
    {"score_threshold": 0.9},
    {"mask_threshold": 0.8},
    {"max_candidates": 2},
    {"pre_nms": 2},
    {"nms_kernel": "linear"},
    {"nms_sigma": 0.5},
    {"update_threshold": 0.6},
    {"min_area": 50},
]


@pytest.mark.parametrize("setting", SETTINGS)
def test_every_setting_changes_something(setting):
    outputs = make_outputs(11, num_kernels=10)
    default = select_instances(outputs, GRID).scores
    assert not torch.equal(select_instances(outputs, GRID, **setting).scores, default)


ERRORS = [
    ({"category_logits": torch.zeros(1, 5, 2)}, r"26 cells.*\[1, 5, 2\]"),
    ({"kernels": torch.zeros(1, 26, 3)}, r"\[1, 26, 3\].*channels"),
    ({"mask_features": torch.zeros(2, 4, 9, 11)}, "images"),
    ({"mask_features": torch.zeros(4, 9, 11)}, r"\[B, E, h, w\].*\[4, 9, 11\]"),
]


@pytest.mark.parametrize(("wrong", "message"), ERRORS)
def test_outputs_that_do_not_fit_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        select_instances(make_outputs()._replace(**wrong), GRID)


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_candidates": 0},
        {"max_instances": 0},
        {"pre_nms": 0},
        {"mask_threshold": 2},
        {"min_area": -1},
        {"min_area": 0.5},
        {"min_area": "strides"},
        {"min_area": True},
        {"min_area": 2**31},
    ],
)
def test_settings_out_of_range_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        select_instances(make_outputs(), GRID, **wrong)
