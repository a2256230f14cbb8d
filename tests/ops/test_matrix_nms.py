from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from unisolo.ops.masks import mask_intersections
from unisolo.ops.matrix_nms import decay_factors, matrix_nms

KERNELS = [("gaussian", 2.0), ("gaussian", 0.5), ("linear", 2.0)]


def twin(masks, labels, scores, kernel, sigma):
    """The formula, pair by pair, in float64; 0 / 0 counts as 0."""
    count = len(scores)
    better = [
        [labels[i] == labels[j] and (scores[i], -i) > (scores[j], -j) for j in range(count)]
        for i in range(count)
    ]

    def iou(i, j):
        union = int((masks[i] | masks[j]).sum())
        return int((masks[i] & masks[j]).sum()) / union if better[i][j] and union else 0.0

    def f(x):
        return math.exp(-sigma * x * x) if kernel == "gaussian" else 1 - x

    def quotient(a, b):
        return a / b if b else (math.inf if a else 0.0)

    own = [max(iou(k, i) for k in range(count)) for i in range(count)]
    return [
        scores[j] * min(quotient(f(iou(i, j)), f(own[i])) for i in range(count))
        for j in range(count)
    ]


@st.composite
def instances(draw, max_count=9):
    count = draw(st.integers(0, max_count))
    shape = (draw(st.integers(1, 4)), draw(st.integers(1, 5)))
    # Few different masks, scores and labels: duplicates, ties and empty masks are common.
    pool = draw(hnp.arrays(bool, (4, *shape), elements=st.booleans()))
    pool[3] = False
    pick = draw(hnp.arrays(np.int64, count, elements=st.integers(0, 3)))
    labels = draw(hnp.arrays(np.int64, count, elements=st.integers(0, 1)))
    scores = draw(hnp.arrays(np.int64, count, elements=st.integers(0, 8))) / 8
    return pool[pick], labels, scores


def run(masks, labels, scores, kernel="gaussian", sigma=2.0):
    return matrix_nms(
        torch.from_numpy(masks),
        torch.from_numpy(labels),
        torch.from_numpy(scores).float(),
        kernel=kernel,
        sigma=sigma,
    ).numpy()


@pytest.mark.usefixtures("each_twin")
@pytest.mark.parametrize(("kernel", "sigma"), KERNELS)
@given(data=instances())
def test_equals_the_formula_pair_by_pair(kernel, sigma, data):
    decayed = run(*data, kernel, sigma)

    assert decayed.dtype == np.float32
    np.testing.assert_allclose(decayed, twin(*data, kernel, sigma), rtol=1e-5, atol=1e-6)
    assert (decayed <= data[2].astype(np.float32)).all()


@pytest.mark.parametrize(("kernel", "sigma"), KERNELS)
@given(data=instances(), seed=st.integers(0, 99))
def test_order_of_the_instances_does_not_matter(kernel, sigma, data, seed):
    masks, labels, scores = data
    scores = scores + np.arange(len(scores)) / 1024  # no ties: those go by position
    order = np.random.default_rng(seed).permutation(len(scores))

    expected = run(masks, labels, scores, kernel, sigma)[order]
    np.testing.assert_array_equal(
        run(masks[order], labels[order], scores[order], kernel, sigma), expected
    )


def test_nothing_in_nothing_out():
    empty = (np.zeros((0, 3, 4), bool), np.zeros(0, np.int64), np.zeros(0))
    for kernel, sigma in KERNELS:
        assert run(*empty, kernel, sigma).shape == (0,)


def test_of_equal_scores_the_earlier_index_wins():
    masks = np.ones((3, 1, 1), bool)
    scores = np.full(3, 0.5)
    labels = np.zeros(3, np.int64)

    assert run(masks, labels, scores, "linear").tolist() == [0.5, 0, 0]
    decayed = run(masks, labels, scores, "gaussian")
    np.testing.assert_allclose(decayed, [0.5, 0.5 * math.exp(-2), 0.5 * math.exp(-2)], rtol=1e-6)


def test_many_copies_of_one_mask_leave_one():
    masks = np.ones((40, 6, 7), bool)
    scores = np.linspace(0.1, 0.9, 40)
    decayed = run(masks, np.zeros(40, np.int64), scores, "linear")
    assert decayed[:-1].tolist() == [0] * 39
    assert decayed[-1] == np.float32(0.9)


def test_empty_masks_keep_their_score_and_leave_the_others_alone():
    masks = np.zeros((4, 2, 3), bool)
    masks[1] = masks[3] = True
    scores = np.array([0.75, 0.5, 0.875, 0.25])
    for kernel, sigma in KERNELS:
        decayed = run(masks, np.zeros(4, np.int64), scores, kernel, sigma)
        assert decayed[[0, 1, 2]].tolist() == [0.75, 0.5, 0.875]
        assert 0 <= decayed[3] < 0.25


def test_labels_do_not_mix_even_with_1203_of_them():
    masks = np.ones((1203, 1, 2), bool)
    scores = np.full(1203, 0.5)
    assert run(masks, np.arange(1203), scores).tolist() == [0.5] * 1203


def test_a_huge_sigma_stays_finite():
    masks = np.ones((3, 2, 2), bool)
    decayed = run(masks, np.zeros(3, np.int64), np.array([0.5, 0.75, 0.25]), "gaussian", 1e6)
    assert decayed.tolist() == [0, 0.75, 0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_scores_of_any_float_type_give_float32(dtype):
    masks = torch.rand(6, 5, 5) > 0.5
    labels = torch.zeros(6, dtype=torch.int64)
    scores = torch.rand(6).to(dtype)
    decayed = matrix_nms(masks, labels, scores)
    assert decayed.dtype == torch.float32
    assert torch.equal(decayed, matrix_nms(masks, labels, scores.float()))


def test_factors_of_a_batch_equal_those_of_each_image():
    masks = torch.rand(3, 6, 20) > 0.5
    labels = torch.randint(0, 2, (3, 6))
    scores = torch.rand(3, 6)
    intersections = torch.stack([mask_intersections(image) for image in masks])
    for kernel, sigma in KERNELS:
        settings = {"kernel": kernel, "sigma": sigma}
        factors = decay_factors(intersections, labels, scores, **settings)
        for image in range(3):
            alone = decay_factors(intersections[image], labels[image], scores[image], **settings)
            assert torch.equal(factors[image], alone)


GOOD = {
    "masks": torch.ones(2, 3, 4, dtype=torch.bool),
    "labels": torch.zeros(2, dtype=torch.int64),
    "scores": torch.ones(2),
}
ERRORS = [
    ({"masks": torch.ones(2, 3, 4)}, r"bool masks.*float32 \[2, 3, 4\].*threshold"),
    ({"masks": torch.ones(2, 4, dtype=torch.bool)}, r"\[N, H, W\].*\[2, 4\]"),
    ({"masks": torch.ones(3, 3, 4, dtype=torch.bool)}, r"\[2\] scores.*\[3, 3\]"),
    ({"labels": torch.zeros(2)}, "integer labels.*float32"),
    ({"labels": torch.zeros(3, dtype=torch.int64)}, r"shape \[2\].*\[3\]"),
    ({"scores": torch.ones(2, dtype=torch.int64)}, "floating scores.*int64"),
    ({"kernel": "gauss"}, "'gauss'.*'gaussian' or 'linear'"),
    ({"sigma": 0.0}, "above 0, got 0.0"),
]


@pytest.mark.parametrize(("wrong", "message"), ERRORS)
def test_wrong_arguments_name_what_came(wrong, message):
    with pytest.raises(ValueError, match=message):
        matrix_nms(**{**GOOD, **wrong})
