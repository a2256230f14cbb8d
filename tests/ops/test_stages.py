"""What the selection counts: against loops, and without a change to what it selects."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_select import GRID, make_outputs

from unisolo.ops.matrix_nms import matrix_nms
from unisolo.ops.select import candidate_masks, category_probs, select_instances, top_candidates
from unisolo.ops.stages import STAGES, top_pairs
from unisolo.structures import GridSpec, Outputs


@given(
    st.integers(0, 10**6),
    st.sampled_from([0.0, 0.1, 0.9, 1.0]),
    st.sampled_from([1, 3, 9, 500]),
    st.sampled_from([1, 4, 500]),
    st.sampled_from([0.0, 0.3, 0.9]),
    st.sampled_from([1, 3, 100]),
)
def test_counts_are_those_of_loops(
    seed, score_threshold, max_candidates, pre_nms, update_threshold, max_instances
):
    outputs = make_outputs(seed, categories=3, num_kernels=30)
    instances = select_instances(
        outputs,
        GRID,
        score_threshold=score_threshold,
        max_candidates=max_candidates,
        pre_nms=pre_nms,
        update_threshold=update_threshold,
        max_instances=max_instances,
    )
    probs = category_probs(outputs.category_logits, GRID)[0]
    pairs = sorted(
        ((float(p), -n) for n, p in enumerate(probs.flatten()) if p > score_threshold), reverse=True
    )
    kept = [(p, *divmod(-n, 3)) for p, n in pairs[:max_candidates]]
    strides = [s for size, s in zip(GRID.sizes, GRID.strides, strict=True) for _ in range(size**2)]
    entered = []
    for probability, cell, label in kept:
        made = candidate_masks(
            outputs.kernels[0, cell][None], outputs.mask_features[0], mask_threshold=0.5
        )
        if made.areas[0] > strides[cell]:
            entered.append((probability * float(made.maskness[0]), label, made.masks[0]))
    large = len(entered)
    entered = sorted(entered, key=lambda item: -item[0])[:pre_nms]
    decayed = [0.0]
    if entered:
        scores, labels, masks = zip(*entered, strict=True)
        decayed = matrix_nms(torch.stack(masks), torch.tensor(labels), torch.tensor(scores))
        decayed = decayed.tolist()
    if any(abs(score - update_threshold) < 1e-4 for score in decayed):
        return  # rounding decides there
    alive = sum(score >= update_threshold for score in decayed[: len(entered)])
    expected = [len(pairs), len(kept), large, len(entered), alive, min(alive, max_instances)]
    assert instances.stage_counts[0].tolist() == expected
    assert len(expected) == len(STAGES)


@given(st.integers(0, 10**6), st.sampled_from([1, 2, 500]))
def test_the_best_pairs_are_known_whatever_the_threshold(seed, max_candidates):
    outputs = make_outputs(seed, batch=2)
    probs = category_probs(outputs.category_logits, GRID)
    for threshold in (0.0, 0.5, 1.0):
        instances = select_instances(
            outputs, GRID, score_threshold=threshold, max_candidates=max_candidates
        )
        for image in range(2):
            best = probs[image].flatten().sort(descending=True).values[:5]
            assert torch.equal(instances.top_probs[image], best)
            for probability, label in zip(
                instances.top_probs[image], instances.top_labels[image], strict=True
            ):
                assert (probs[image, :, label] == probability).any()


def test_sorting_before_the_threshold_selects_the_same():
    outputs = make_outputs(4, categories=3, num_kernels=30)
    probs = category_probs(outputs.category_logits, GRID)[0]
    for threshold in (0.0, 0.2, 0.7, 1.0):
        cut = top_candidates(probs, score_threshold=threshold, max_candidates=20)
        raw = top_candidates(probs, score_threshold=0.0, max_candidates=20)
        count = int((cut.scores > 0).sum())
        assert count == min(20, int((probs > threshold).sum()))
        for ours, theirs in zip(raw, cut, strict=True):
            assert torch.equal(ours[:count], theirs[:count])


@pytest.mark.parametrize("count", [0, 1, 5, 7])
def test_fewer_pairs_than_places(count):
    probs, labels = top_pairs(torch.linspace(0.9, 0.1, count), torch.arange(count))
    assert probs.shape == labels.shape == (5,)
    assert (probs > 0).sum() == min(count, 5)


def test_nothing_finite_is_no_candidate_and_a_top_of_zeros():
    outputs = make_outputs(1)
    broken = outputs._replace(category_logits=outputs.category_logits * float("nan"))
    instances = select_instances(broken, GRID, score_threshold=0.0)
    assert not instances.valid.any()
    assert instances.stage_counts.tolist() == [[0] * len(STAGES)]
    assert (instances.top_probs == 0).all()


def test_one_bad_cell_does_not_hide_the_others():
    grid = GridSpec((1, 1), (8, 8), ((1, 8), (4, 64)))
    logits = torch.tensor([[[float("nan"), 1.0], [2.0, -1.0]]])
    outputs = Outputs(logits, torch.ones(1, 2, 4), torch.ones(1, 4, 9, 11), {})
    instances = select_instances(outputs, grid, max_candidates=2)
    assert instances.labels[0, :2].tolist() == [0, 1]
    np.testing.assert_allclose(
        instances.top_probs[0, :3], torch.tensor([2.0, 1.0, -1.0]).sigmoid(), rtol=1e-6
    )
