"""Ranked pairs against the torch definition, place for place and tie for tie."""

from __future__ import annotations

import pytest
import torch

from unisolo.ops.select import category_probs, top_candidates
from unisolo.ops.stages import top_pairs
from unisolo.structures import GridSpec

pytest.importorskip("triton")
GRID = GridSpec((4, 3, 1), (8, 16, 32), ((1, 8), (4, 16), (8, 64)))
FULL = GridSpec()


def check(logits, grid, poisoned, *, threshold=0.1, count=40, capacity=4096):
    from unisolo.ops.kernels.candidates import ranked_pairs

    with poisoned():
        found = ranked_pairs(
            logits, grid, score_threshold=threshold, max_candidates=count, capacity=capacity
        )
    probs = category_probs(logits, grid)
    ranked = top_candidates(probs, score_threshold=0.0, max_candidates=max(count, 5))
    scores, labels, cells = (field[:, :count] for field in ranked)
    assert torch.equal(found.candidates.scores, torch.where(scores > threshold, scores, 0))
    assert torch.equal(found.candidates.labels, labels)
    assert torch.equal(found.candidates.cells, cells)
    top_probs, top_labels = top_pairs(ranked.scores, ranked.labels)
    assert torch.equal(found.top_probs, top_probs)
    assert torch.equal(found.top_labels, top_labels)
    assert torch.equal(found.num_passing, (probs > threshold).flatten(1).sum(1, keepdim=True))


def tied_logits(device, batch=1, categories=2, grid=GRID, seed=0):
    generator = torch.Generator().manual_seed(seed)
    size = (batch, grid.num_cells, categories)
    return torch.randint(-5, 5, size, generator=generator).to(device).float()


@pytest.mark.parametrize("capacity", [4096, 8])
@pytest.mark.parametrize(("categories", "count"), [(1, 500), (3, 17)])
def test_many_ties(device, poisoned, categories, count, capacity):
    """A capacity below the number of pairs takes the way of a list that is too long."""
    logits = tied_logits(device, batch=2, categories=categories)
    check(logits, GRID, poisoned, count=count, capacity=capacity)


@pytest.mark.parametrize("value", [-30.0, -2.0, 0.0, 40.0])
def test_all_equal(device, poisoned, value):
    """No neighbour is better, so all pairs tie: none, or all, above the threshold."""
    check(torch.full((1, 26, 3), value, device=device), GRID, poisoned, count=9, capacity=4)


def test_ties_that_only_rounding_makes(device, poisoned):
    logits = 16 + torch.rand(1, 26, 2, generator=torch.Generator().manual_seed(0)).to(device)
    assert len(category_probs(logits, GRID).unique()) < 10
    check(logits, GRID, poisoned, count=30, capacity=16)


def test_a_nan_takes_its_neighbours_with_it_as_in_the_definition(device, poisoned):
    logits = tied_logits(device, categories=2)
    logits[0, [0, 5, 25], 1] = torch.nan  # the first cell of a grid, one inside it, a whole grid
    check(logits, GRID, poisoned, threshold=0.0, count=60)


def test_fewer_pairs_than_places(device, poisoned):
    grid = GridSpec((1,), (8,), ((1, 8),))
    check(torch.zeros(2, 1, 3, device=device), grid, poisoned, count=10)


def test_half_precision_and_any_strides(device, poisoned):
    logits = tied_logits(device, batch=3, categories=4).half()
    check(logits.transpose(1, 2).contiguous().transpose(1, 2), GRID, poisoned, threshold=0.5)
    check(logits[..., ::2], GRID, poisoned, threshold=0.5)


@pytest.mark.parametrize("capacity", [4096, 64])
def test_a_whole_head(device, poisoned, capacity):
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(1, FULL.num_cells, 1, generator=generator).to(device) * 2
    check(logits, FULL, poisoned, count=50, capacity=capacity)


def steady(logits):
    """Logits of which torch has one sigmoid, wherever in a tensor on a CPU they lie."""
    alone = torch.stack([value.sigmoid() for value in logits.flatten()])
    return torch.where(logits.sigmoid().flatten() == alone, logits.flatten(), 0).view_as(logits)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(30))
def test_random_sizes(device, poisoned, seed):
    generator = torch.Generator().manual_seed(seed)
    sizes = tuple(torch.randint(1, 9, (int(torch.randint(1, 5, (1,), generator=generator)),),
                                generator=generator).tolist())  # fmt: skip
    grid = GridSpec(sizes, (8,) * len(sizes), ((1, 8),) * len(sizes))
    batch, categories, count, capacity = (
        int(torch.randint(1, high, (1,), generator=generator)) for high in (4, 7, 300, 200)
    )
    logits = torch.randn(batch, grid.num_cells, categories, generator=generator) * 3
    if seed % 2:
        logits = logits.round()
    threshold = float(torch.rand(1, generator=generator))
    logits = steady(logits).to(device)
    check(logits, grid, poisoned, threshold=threshold, count=count, capacity=capacity)


@pytest.mark.gpu
@pytest.mark.parametrize("categories", [80, 1203])
@pytest.mark.parametrize("kind", ["random", "half", "equal"])
def test_on_a_gpu(poisoned, categories, kind):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    logits = torch.randn(2, FULL.num_cells, categories, device="cuda") - 2
    if kind == "half":
        logits = logits.half()
    elif kind == "equal":
        logits = torch.full_like(logits, -1.5)
    check(logits, FULL, poisoned, count=500)
    check(logits, FULL, poisoned, count=2000, threshold=0.0)
