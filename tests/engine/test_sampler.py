from __future__ import annotations

from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unisolo.engine.sampler import TrainSampler


def take(count: int, **arguments: int) -> list[int]:
    return list(islice(TrainSampler(**arguments), count))


@given(st.integers(1, 40), st.integers(0, 5))
def test_every_epoch_is_a_permutation(length: int, seed: int) -> None:
    stream = take(3 * length, length=length, seed=seed)
    for epoch in range(3):
        assert sorted(stream[epoch * length : (epoch + 1) * length]) == list(range(length))


@given(st.integers(1, 40), st.integers(1, 5), st.integers(0, 100))
def test_processes_share_one_stream_and_resume_in_it(length: int, size: int, start: int) -> None:
    whole = take(start + 60 * size, length=length, seed=1)
    for rank in range(size):
        share = take(60, length=length, seed=1, rank=rank, world_size=size, start=start)
        assert share == whole[start + rank :: size][:60]


def test_seeds_differ_and_an_empty_set_is_an_error() -> None:
    assert take(30, length=30, seed=1) != take(30, length=30, seed=2)
    with pytest.raises(ValueError, match="training set is empty"):
        TrainSampler(0, seed=0)
