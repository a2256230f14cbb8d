"""Samples from memory are the samples from disk, in this process and in loader processes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_coco import MIXED, SPLIT, write_tiny_coco

from unisolo.data import CocoInstance, CocoPanoptic, cache
from unisolo.data.cache import keep_in_memory
from unisolo.data.images import ImageError
from unisolo.data.loader import build_loader
from unisolo.data.raw import RawSample, RawTarget
from unisolo.data.transforms import TrainTransform
from unisolo.structures import ImageMeta


class Samples:
    """A data set of given samples."""

    def __init__(self, *samples: RawSample) -> None:
        self.samples = samples
        self.cache: Any = None

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, index: int) -> RawSample:
        return self.samples[index]


def check_equal(found: RawSample, wanted: RawSample) -> None:
    assert found.meta == wanted.meta
    assert found.image.dtype == np.uint8 and np.array_equal(found.image, wanted.image)
    assert (found.target is None) == (wanted.target is None)
    for field in fields(RawTarget) if wanted.target is not None else ():
        values, expected = (getattr(sample.target, field.name) for sample in (found, wanted))
        assert (values is None) == (expected is None)
        if expected is not None:
            assert values.dtype == expected.dtype and np.array_equal(values, expected)


def kept(dataset: Any, limit_gib: float = 1.0) -> str:
    said: list[str] = []
    keep_in_memory(dataset, limit_gib, said.append)
    (sentence,) = said
    return sentence


@pytest.mark.parametrize("kind", [CocoInstance, CocoPanoptic])
@pytest.mark.parametrize("with_targets", [True, False])
def test_memory_holds_what_the_files_hold(kind: Any, with_targets: bool, tmp_path: Path) -> None:
    write_tiny_coco(tmp_path)
    dataset = kind.from_root(tmp_path, SPLIT, with_targets=with_targets)
    read = [dataset.read(index) for index in range(len(dataset))]
    said = kept(dataset)
    assert said.startswith("data.cache=ram: 5 training images in 0.00 GiB")
    assert len(dataset.cache) == 5
    for index, wanted in enumerate(read):
        check_equal(dataset.cache[index], wanted)
    with pytest.raises(IndexError):
        dataset.cache[5]


@st.composite
def samples(draw: st.DrawFn) -> RawSample:
    height, width, depth = (draw(st.integers(1, 5)) for _ in range(3))
    low, high = draw(st.sampled_from([(0, 0), (0, 1), (-1, 254), (-1, 255), (-2, 3), (0, 32767)]))
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))

    def values(*shape: int) -> np.ndarray:
        found = rng.integers(low, high + 1, shape).astype(np.int16)
        found.flat[0] = high
        found.flat[-1] = low
        return found

    target = RawTarget(
        rng.integers(0, 80, draw(st.integers(0, 3))),
        values(depth, height, width),
        values(height, width),
        values(height, width) if draw(st.booleans()) else None,
    )
    image = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
    meta = ImageMeta(draw(st.sampled_from([7, "name"])), "a/b.png", (height, width), (1, 2))
    return RawSample(image, meta, target if draw(st.booleans()) else None)


@given(st.lists(samples(), min_size=1, max_size=6), st.sampled_from([1, 40, 2**26]))
def test_any_sample_survives_any_block_size(found: list[RawSample], block: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache, "_BLOCK", block)
        dataset = Samples(*found)
        kept(dataset)
    for index, wanted in enumerate(found):
        check_equal(dataset.cache[index], wanted)


def test_what_is_given_out_may_be_changed(tmp_path: Path) -> None:
    write_tiny_coco(tmp_path)
    dataset = CocoPanoptic.from_root(tmp_path, SPLIT)
    kept(dataset)
    for _ in range(2):
        sample = dataset.cache[1]
        assert sample.meta.image_id == MIXED and sample.image.any() and sample.target is not None
        assert sample.target.object_map.any()
        sample.image[:] = 0
        sample.target.object_map[:] = 0


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_loader_processes_give_the_same_batches(
    start_method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if start_method == "spawn":
        # What a start method other than fork hands to its processes: handles of shared memory.
        monkeypatch.setattr(cache.multiprocessing, "get_start_method", lambda: "spawn")
    write_tiny_coco(tmp_path)
    dataset = CocoPanoptic.from_root(
        tmp_path, SPLIT, transform=TrainTransform(32, 64, scale_jitter=(0.5, 1.5), color=0.5)
    )

    def batches(workers: int) -> list[Any]:
        return list(build_loader(dataset, batch_size=2, workers=workers, shuffle=True, seed=3))

    from_disk = batches(0)
    kept(dataset)
    for number in (0, 1):
        for wanted, found in zip(from_disk, batches(number), strict=True):
            assert torch.equal(wanted.images, found.images) and wanted.metas == found.metas
            for first, second in zip(wanted.targets, found.targets, strict=True):
                assert torch.equal(first.object_map, second.object_map)
                assert torch.equal(first.boxes, second.boxes)
    if start_method == "spawn":
        assert all(block.is_shared() for block in dataset.cache._blocks)


def black(side: int) -> RawSample:
    return RawSample(
        np.zeros((side, side, 3), np.uint8), ImageMeta(1, "", (side, side), (side, side))
    )


def gib(size: int) -> float:
    return size / 2**30


def test_too_large_a_set_is_left_on_disk_and_told() -> None:
    size = 100 * 64 * 64 * 3
    dataset = Samples(*[black(64)] * 100)
    said = kept(dataset, gib(size - 1))
    assert dataset.cache is None
    assert "left off: 100 training images need about 0.00 GiB, and data.cache_gib=" in said
    assert said.endswith("images are read from disk")
    kept(dataset, gib(size))
    assert len(dataset.cache) == 100


def test_a_set_that_turns_out_larger_stops_at_the_limit() -> None:
    found = [black(8)] * 100
    found[50] = black(640)  # not among the samples that are looked at first
    dataset = Samples(*found)
    assert "need more than 0.00 GiB" in kept(dataset, gib(640 * 640))
    assert dataset.cache is None


def test_free_memory_bounds_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "free_memory", lambda: 2**20)
    dataset = Samples(*[black(64)] * 100)
    assert "0.00 GiB of memory are free, of which 80% may" in kept(dataset)
    assert dataset.cache is None


def test_processes_of_one_machine_share_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    size = 100 * 64 * 64 * 3
    monkeypatch.setattr(cache, "free_memory", lambda: 2 * size)
    dataset = Samples(*[black(64)] * 100)
    said: list[str] = []
    keep_in_memory(dataset, 1.0, said.append, processes=2)
    assert dataset.cache is None and "memory for each of 2 processes are free" in said[0]
    keep_in_memory(dataset, 1.0, said.append, processes=1)
    assert len(dataset.cache) == 100


def test_handles_of_shared_memory_find_room_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Pages of a full /dev/shm cannot be written: the process would die of it.
    monkeypatch.setattr(cache.multiprocessing, "get_start_method", lambda: "spawn")
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda folder: Usage(2**20))
    monkeypatch.setattr(cache, "_SHARED", tmp_path)
    dataset = Samples(*[black(64)] * 100)
    assert f"0.00 GiB of memory that processes can share ({tmp_path}) are free" in kept(dataset)
    assert dataset.cache is None


@dataclass(frozen=True)
class Usage:
    free: int


def break_image(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:60])


def remove_image(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("damage", [break_image, remove_image])
def test_a_broken_image_is_named(damage: Callable[[Path], None], tmp_path: Path) -> None:
    tiny = write_tiny_coco(tmp_path)
    damage(tiny.image(MIXED))
    dataset = CocoInstance.from_root(tmp_path, SPLIT)
    with pytest.raises(ImageError, match=tiny.image(MIXED).name):
        keep_in_memory(dataset, 1.0, print)


def test_a_data_set_that_cannot_is_told() -> None:
    with pytest.raises(ValueError, match=r"needs a data set with a method read.*data\.cache=none"):
        keep_in_memory([1, 2], 1.0, print)
