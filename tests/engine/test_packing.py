"""A packed batch is the batch, whatever it holds, also after pickling and in poisoned memory."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unisolo.engine.packing import pack
from unisolo.structures import Batch, CellTargets, ImageMeta, Target


def integers(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    info = torch.iinfo(dtype)
    return torch.randint(info.min, info.max, shape, dtype=dtype)


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    height, width, depth = (draw(st.integers(1, 5)) for _ in range(3))
    count = draw(st.integers(0, 3))
    targets = []
    for _ in range(count):
        objects, pairs, crowds = (draw(st.integers(0, 3)) for _ in range(3))
        maps = [
            integers(shape, torch.int16)
            for shape in ((depth, height, width), (height, width), (height, width))
        ]
        cells = CellTargets(
            integers((7,), torch.int64),
            integers((pairs,), torch.int64),
            integers((1,), torch.int64).expand(pairs),
            integers((crowds, 2), torch.int64),
            integers((2 * depth, height, width), torch.int16).transpose(1, 2),
        )
        targets.append(
            Target(
                integers((objects,), torch.int64),
                torch.randn(objects, 4),
                *maps[:2],
                maps[2] if draw(st.booleans()) else None,
                cells,
            )
        )
    images = integers((count, 3, height, width), torch.uint8)
    metas = tuple(ImageMeta(n, f"{n}.png", (height, width), (1, 2)) for n in range(count))
    return Batch(images, integers((count, 2), torch.int64), metas, tuple(targets))


def check_equal(found: Batch, wanted: Batch) -> None:
    torch.testing.assert_close(found.images, wanted.images, rtol=0, atol=0)
    torch.testing.assert_close(found.image_sizes, wanted.image_sizes, rtol=0, atol=0)
    assert found.metas == wanted.metas and len(found.targets) == len(wanted.targets)
    for ours, theirs in zip(found.targets, wanted.targets, strict=True):
        assert (ours.stuff_map is None) == (theirs.stuff_map is None)
        assert ours.cells is not None and theirs.cells is not None
        pairs = [
            (ours.labels, theirs.labels),
            (ours.boxes, theirs.boxes),
            (ours.object_map, theirs.object_map),
            (ours.crowd_map, theirs.crowd_map),
            *zip(ours.cells, theirs.cells, strict=True),
        ]
        if theirs.stuff_map is not None:
            pairs.append((ours.stuff_map, theirs.stuff_map))
        for value, expected in pairs:
            torch.testing.assert_close(value, expected, rtol=0, atol=0)


@given(batches())
def test_a_packed_batch_is_the_batch(batch: Batch) -> None:
    packed = pack(batch)
    check_equal(packed.unpacked(), batch)
    check_equal(pickle.loads(pickle.dumps(packed)).to("cpu").unpacked(), batch)


def test_targets_without_cells_are_named() -> None:
    target = Target(*(torch.zeros(0) for _ in range(4)))
    batch = Batch(torch.zeros(1, 3, 32, 32), torch.zeros(1, 2), (), (target,))
    with pytest.raises(ValueError, match=r"target 0 has no cells.*with_cell_targets"):
        pack(batch)
    assert not pack(replace(batch, targets=())).unpacked().targets
