from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_coco import SPLIT, write_tiny_coco
from torch.utils.data import Dataset

from unisolo.data import CocoPanoptic
from unisolo.data.loader import build_loader, collate, padded_size, padded_size_groups
from unisolo.data.transforms import EvalTransform, TrainTransform
from unisolo.structures import STUFF_IGNORE, ImageMeta, Sample, Target


def sample(height: int, width: int, depth: int = 1, target: bool = True) -> Sample:
    ones = torch.ones(height, width, dtype=torch.int16)
    return Sample(
        torch.full((3, height, width), 9, dtype=torch.uint8),
        ImageMeta(height, "", (height, width), (height, width)),
        Target(
            torch.tensor([2]),
            torch.tensor([[0.0, 0.0, width, height]]),
            ones.expand(depth, -1, -1).clone(),
            ones,
            ones,
        )
        if target
        else None,
    )


@pytest.mark.parametrize(
    ("size", "expected"), [((1, 32), (32, 32)), ((33, 64), (64, 64)), ((800, 1333), (800, 1344))]
)
def test_padded_size(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert padded_size(size) == expected
    assert padded_size(size, 1) == size


def test_collate_pads_at_the_bottom_and_right() -> None:
    samples = [sample(5, 40, depth=3), sample(33, 7)]
    batch = collate(samples)
    assert batch.images.shape == (2, 3, 64, 64) and batch.images.dtype == torch.uint8
    assert batch.image_sizes.tolist() == [[5, 40], [33, 7]]
    assert [meta.image_id for meta in batch.metas] == [5, 33]
    for image, target, (height, width) in zip(
        batch.images, batch.targets, [(5, 40), (33, 7)], strict=True
    ):
        valid = torch.zeros(64, 64, dtype=torch.bool)
        valid[:height, :width] = True
        assert (image[:, valid] == 9).all() and (image[:, ~valid] == 0).all()
        assert target.object_map.dtype == torch.int16
        for values, padding in (
            (target.object_map[0], 0),
            (target.crowd_map, 0),
            (target.stuff_map, STUFF_IGNORE),
        ):
            assert (values[valid] == 1).all() and (values[~valid] == padding).all()
    assert batch.targets[0].object_map.shape == (3, 64, 64)


def test_collate_without_targets_or_with_some() -> None:
    assert collate([sample(3, 3, target=False)]).targets == ()
    with pytest.raises(ValueError, match="1 of 2 samples have a target"):
        collate([sample(3, 3), sample(3, 3, target=False)])
    with pytest.raises(ValueError, match="no samples"):
        collate([])


class Noise(Dataset[Sample]):
    """Each sample is what torch's generator says at that moment."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        image = torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8)
        return Sample(image, ImageMeta(index, "", (8, 8), (8, 8)))


def contents(loader) -> list[tuple[list[int], bytes]]:
    return [([m.image_id for m in b.metas], b.images.numpy().tobytes()) for b in loader]


def test_seed_alone_decides() -> None:
    """Same order and same noise with any number of workers; other passes and seeds differ."""

    def passes(seed: int, workers: int) -> list[list[tuple[list[int], bytes]]]:
        torch.manual_seed(workers)
        loader = build_loader(Noise(7), batch_size=2, workers=workers, shuffle=True, seed=seed)
        return [contents(loader), contents(loader)]

    reference = passes(3, 0)
    assert passes(3, 1) == reference
    assert passes(3, 2) == reference
    assert reference[0] != reference[1]
    assert passes(4, 0) != reference
    assert sorted(i for ids, _ in reference[0] for i in ids) == list(range(7))


def test_images_of_one_batch_and_pass_differ() -> None:
    loader = build_loader(Noise(6), batch_size=6, sampler=[0] * 6)
    first, second = (next(iter(loader)).images for _ in range(2))
    images = torch.cat([first, second]).flatten(1)
    assert len(images.unique(dim=0)) == 12


def test_processes_of_one_run_differ() -> None:
    halves = [contents(build_loader(Noise(4), batch_size=2, sampler=s)) for s in ([0, 1], [2, 3])]
    assert halves[0][0][1] != halves[1][0][1]


def test_the_process_keeps_its_own_randomness() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    list(build_loader(Noise(3), batch_size=2, shuffle=True))
    assert torch.equal(torch.rand(3), expected)


def test_data_set_smaller_than_a_batch() -> None:
    for drop_last in (False, True):
        loader = build_loader(Noise(3), batch_size=8, drop_last=drop_last)
        assert [len(batch) for batch in loader] == [3]
    assert [len(b) for b in build_loader(Noise(5), batch_size=2, drop_last=True)] == [2, 2]
    assert [len(b) for b in build_loader(Noise(5), batch_size=2)] == [2, 2, 1]


def test_an_endless_sampler_is_fine() -> None:
    def forever():
        while True:
            yield 1

    class Endless:
        def __iter__(self):
            return forever()

    batches = iter(build_loader(Noise(3), batch_size=2, sampler=Endless(), drop_last=True))
    assert [next(batches).metas[0].image_id for _ in range(3)] == [1, 1, 1]


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="not both"):
        build_loader(Noise(3), batch_size=1, shuffle=True, sampler=[0])
    with pytest.raises(ValueError, match="no images"):
        build_loader(Noise(0), batch_size=1)


def test_real_reader_with_workers_agrees_with_none(tmp_path: Path) -> None:
    write_tiny_coco(tmp_path)
    transform = TrainTransform(
        40, 80, scale_jitter=(0.5, 2.0), crop=(32, 48), vertical_flip=0.5, color=1.0
    )
    dataset = CocoPanoptic.from_root(tmp_path, SPLIT, transform=transform)
    batches = [
        list(build_loader(dataset, batch_size=2, workers=workers, shuffle=True, seed=1))
        for workers in (0, 2)
    ]
    for here, there in zip(*batches, strict=True):
        assert here.metas == there.metas and torch.equal(here.images, there.images)
        for a, b in zip(here.targets, there.targets, strict=True):
            assert torch.equal(a.object_map, b.object_map)
            assert torch.equal(a.stuff_map, b.stuff_map)
            assert a.labels.tolist() == b.labels.tolist()


def test_an_error_in_a_worker_keeps_its_sentence(tmp_path: Path) -> None:
    tiny = write_tiny_coco(tmp_path)
    dataset = CocoPanoptic.from_root(tmp_path, SPLIT, transform=EvalTransform(32, 64))
    tiny.image(dataset.image_ids[0]).write_bytes(b"")
    with pytest.raises(ValueError, match="the file is empty"):
        list(build_loader(dataset, batch_size=2, workers=1))


def test_targets_do_not_grow_with_the_number_of_objects() -> None:
    """A crowded image costs the maps of its depth, not a mask per object."""
    side, count = 64, 1000
    object_map = np.zeros((1, side, side), dtype=np.int16)
    object_map.reshape(-1)[:count] = np.arange(1, count + 1)
    target = Target(
        torch.zeros(count, dtype=torch.int64),
        torch.zeros(count, 4),
        torch.from_numpy(object_map),
        torch.zeros(side, side, dtype=torch.int16),
    )
    batch = collate(
        [Sample(torch.zeros(3, side, side, dtype=torch.uint8), sample(1, 1).meta, target)]
    )
    (padded,) = batch.targets
    size = sum(
        t.numel() * t.element_size() for t in (padded.object_map, padded.boxes, padded.labels)
    )
    assert size < 3 * side * side * 2 + count * 24


@given(st.lists(st.tuples(st.integers(1, 90), st.integers(1, 90)), max_size=30), st.integers(1, 4))
def test_groups_hold_one_padded_size_and_lose_nothing(
    sizes: list[tuple[int, int]], batch_size: int
) -> None:
    items = list(enumerate(sizes))
    groups = list(padded_size_groups(items, batch_size, lambda item: item[1]))
    assert sorted(item for group in groups for item in group) == items
    for group in groups:
        assert 1 <= len(group) <= batch_size
        assert len({padded_size(size) for _, size in group}) == 1


def test_groups_need_a_size() -> None:
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        list(padded_size_groups([(1, 1)], 0, lambda item: item))
