from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unisolo.ops.cpu import packed
from unisolo.ops.cpu.packed import count_bits, intersections, pack_words


def random_masks(rng: np.random.Generator, count: int, size: int) -> np.ndarray:
    """Runs, copies, single pixels, noise and empty masks."""
    masks = np.zeros((count, size), bool)
    for mask in masks:
        kind, place = rng.integers(5), rng.integers(size)
        if kind == 0:
            mask[place : place + rng.integers(1, size + 1)] = True
        elif kind == 1:
            mask[:] = masks[rng.integers(count)]
        elif kind == 2:
            mask[place] = True
        elif kind == 3:
            mask[:] = rng.random(size) < 0.5
    return masks


@given(
    st.integers(0, 10**6),
    st.integers(0, 14),
    st.sampled_from([1, 7, 8, 63, 64, 65, 128, 500]),
    st.integers(1, 4),
    st.sampled_from([1, 5, packed.PART_WORDS]),
)
def test_intersections_of_one_label_are_exact(seed, count, size, num_labels, part_words):
    rng = np.random.default_rng(seed)
    masks = random_masks(rng, count, size)
    labels = rng.integers(num_labels, size=count) - 1
    expected = masks.astype(int) @ masks.T.astype(int)
    expected[(labels[:, None] != labels) & ~np.eye(count, dtype=bool)] = 0

    words = pack_words(torch.from_numpy(masks))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed, "PART_WORDS", part_words)
        shared = intersections(
            words, torch.from_numpy(masks.sum(1, dtype=np.int64)), torch.from_numpy(labels)
        )
    assert shared.dtype == torch.float32
    np.testing.assert_array_equal(shared, expected)


def test_masks_without_pixels_share_none():
    words = pack_words(torch.zeros(3, 0, dtype=torch.bool))
    assert words.shape == (3, 0)
    shared = intersections(words, torch.zeros(3, dtype=torch.int64), torch.zeros(3).long())
    assert (shared == 0).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint64])
@pytest.mark.parametrize("count", [count_bits, packed._count_by_table])
def test_bits_are_counted_with_and_without_numpy_2(dtype, count):
    rng = np.random.default_rng(0)
    numbers = rng.integers(np.iinfo(dtype).max, size=(50, 6), dtype=dtype, endpoint=True)
    numbers[0, :2] = 0, np.iinfo(dtype).max
    expected = [[int(number).bit_count() for number in row] for row in numbers.tolist()]
    counts = count(numbers)
    assert counts.dtype == np.uint8
    assert counts.tolist() == expected
    assert count(numbers[::3, 1:4]).tolist() == [row[1:4] for row in expected[::3]]


@given(st.integers(0, 10**6), st.integers(0, 5), st.integers(1, 200))
def test_packing_keeps_every_pixel(seed, count, size):
    masks = torch.from_numpy(random_masks(np.random.default_rng(seed), count, size))
    words = pack_words(masks)
    assert words.dtype == np.uint64
    assert words.shape == (count, -(-size // 64))
    assert count_bits(words).sum(1, dtype=int).tolist() == masks.sum(1).tolist()
    assert np.array_equal(pack_words(masks.t().contiguous().t()), words)
