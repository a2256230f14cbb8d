from __future__ import annotations

import pytest
import torch

from unisolo.ops import ranking
from unisolo.ops.ranking import pick, rank


def test_ties_go_to_the_earlier_index() -> None:
    values = torch.tensor([[1.0, 3.0, 3.0, 0.0, 3.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    found, index = rank(values, 4)
    assert found.tolist() == [[3, 3, 3, 1], [0, 0, 0, 0]]
    assert index.tolist() == [[1, 2, 4, 0], [0, 1, 2, 3]]
    assert rank(values[0], 99)[1].tolist() == [1, 2, 4, 0, 3]


@pytest.mark.parametrize("shape", [(23,), (3, 40), (2, 8)])
def test_parts_change_memory_only(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.randint(0, 4, shape).float()  # ties within and across parts
    whole = [rank(values, count) for count in (1, 3, 6)]
    monkeypatch.setattr(ranking, "PART", 7)
    for (found, index), count in zip(whole, (1, 3, 6), strict=True):
        again, places = rank(values, count)
        assert torch.equal(again, found) and torch.equal(places, index)


def test_torch_before_2_7_ranks_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.compiler, "is_exporting", raising=False)
    assert rank(torch.tensor([1.0, 2.0]), 1)[1].tolist() == [1]


def test_rows_of_one_image_and_of_each_of_a_batch() -> None:
    rows = torch.arange(12).reshape(2, 3, 2)
    index = torch.tensor([[2, 0, 2, 1], [1, 1, 0, 2]])
    expected = torch.stack([rows[image][index[image]] for image in range(2)])
    assert torch.equal(pick(rows, index), expected)
    assert torch.equal(pick(rows[0], index[0]), expected[0])
