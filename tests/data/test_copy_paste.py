from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_coco import MIXED, SPLIT, write_tiny_coco
from tiny_model import tiny_config

from unisolo.build import build_dataset
from unisolo.config import ConfigError
from unisolo.data import DATASETS
from unisolo.data.cache import keep_in_memory
from unisolo.data.copy_paste import CopyPaste, paste_objects
from unisolo.data.loader import build_loader
from unisolo.data.raw import RawSample, RawTarget, to_sample
from unisolo.data.transforms import TrainTransform
from unisolo.structures import STUFF_IGNORE, ImageMeta


def meta(size: tuple[int, int]) -> ImageMeta:
    return ImageMeta(1, "image.png", size, size)


def random_raw(seed: int, size: tuple[int, int], count: int, depth: int, stuff: bool) -> RawSample:
    """Objects of random pixels in random layers, some without any; crowds; 2 stuff categories."""
    rng = np.random.default_rng(seed)
    layers = rng.integers(0, depth, count)
    object_map = np.zeros((depth, *size), np.int16)
    for number, layer in enumerate(layers):
        mask = rng.random(size) < 0.4
        object_map[layer][mask & (object_map[layer] == 0)] = number + 1
    crowd_map = np.where(rng.random(size) < 0.2, rng.integers(1, 4, size), 0).astype(np.int16)
    stuff_map = rng.integers(STUFF_IGNORE, 3, size).astype(np.int16)
    target = RawTarget(
        rng.integers(0, 3, count), object_map, crowd_map, stuff_map if stuff else None
    )
    image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    return RawSample(image, meta(size), target)


def masks_of(raw: RawSample) -> np.ndarray:
    assert raw.target is not None
    numbers = np.arange(1, len(raw.target.labels) + 1)
    return (raw.target.object_map[None] == numbers[:, None, None, None]).any(1)


def check_by_pixels(base: RawSample, donor: RawSample, found: RawSample) -> int:
    """Find the place and the objects pasted, and compare every pixel; return how many objects."""
    ours, theirs, result = base.target, donor.target, found.target
    assert ours is not None and theirs is not None and result is not None
    new = masks_of(found)[len(ours.labels) :]
    covered = new.any(0)
    for kept, mask in zip(masks_of(found), masks_of(base), strict=False):
        assert np.array_equal(kept, mask & ~covered)
    (height, width), (tall, wide) = base.image.shape[:2], donor.image.shape[:2]
    places = [
        (y, x)
        for y in range(min(0, height - tall), max(0, height - tall) + 1)
        for x in range(min(0, width - wide), max(0, width - wide) + 1)
        if _lies_at(y, x, donor, found, new, covered)
    ]
    assert places, "the pasted pixels are those of no place of the donor"
    outside = ~covered
    for before, after in ((base.image, found.image), (ours.crowd_map, result.crowd_map)):
        assert np.array_equal(before[outside], after[outside])
    if ours.stuff_map is not None:
        assert np.array_equal(ours.stuff_map[outside], result.stuff_map[outside])
    return len(new)


def _lies_at(y, x, donor, found, new, covered) -> bool:
    """Whether the donor, its first pixel at (y, x), explains all that was pasted."""
    rows, columns = np.nonzero(covered)
    at = rows - y, columns - x
    if any(
        (axis < 0).any() or (axis >= n).any()
        for axis, n in zip(at, donor.image.shape[:2], strict=True)
    ):
        return False
    fields = [(donor.image, found.image), (donor.target.crowd_map, found.target.crowd_map)]
    if donor.target.stuff_map is not None:
        fields.append((donor.target.stuff_map, found.target.stuff_map))
    if not all(np.array_equal(d[at], f[rows, columns]) for d, f in fields):
        return False
    height, width = covered.shape
    known = []
    for label, mask in zip(donor.target.labels, masks_of(donor), strict=True):
        whole = np.zeros(covered.shape, bool)
        ys, xs = np.nonzero(mask)
        inside = (ys + y >= 0) & (ys + y < height) & (xs + x >= 0) & (xs + x < width)
        whole[ys[inside] + y, xs[inside] + x] = True
        known.append((int(label), whole.tobytes()))
    labels = found.target.labels[len(found.target.labels) - len(new) :]
    pasted = [(int(label), mask.tobytes()) for label, mask in zip(labels, new, strict=True)]
    return all(pair in known for pair in pasted) and len(set(pasted)) == len(pasted)


sizes = st.tuples(st.integers(1, 9), st.integers(1, 9))


@given(st.integers(0, 10**6), sizes, sizes, st.integers(0, 5), st.integers(0, 5), st.booleans())
def test_every_pixel_is_the_bases_or_the_donors(seed, size, other, count, donated, stuff) -> None:
    base = random_raw(seed, size, count, 2, stuff)
    donor = random_raw(seed + 1, other, donated, 3, stuff)
    kept = [base.image.copy(), base.target.object_map.copy(), base.target.crowd_map.copy()]
    found = paste_objects(base, donor, np.random.default_rng(seed))
    pasted = check_by_pixels(base, donor, found)
    visible = masks_of(donor).any((1, 2)).sum()
    assert pasted <= visible
    if size == other and visible:  # the whole donor is seen
        assert pasted >= 1
    if pasted == 0:
        assert found is base
    for before, after in zip(
        kept, (base.image, base.target.object_map, base.target.crowd_map), strict=True
    ):
        assert np.array_equal(before, after)


def one_object(size: tuple[int, int], box: tuple[int, int, int, int], color: int) -> RawSample:
    object_map = np.zeros((1, *size), np.int16)
    object_map[0, box[1] : box[3], box[0] : box[2]] = 1
    target = RawTarget(np.array([color % 3]), object_map, np.zeros(size, np.int16))
    return RawSample(np.full((*size, 3), color, np.uint8), meta(size), target)


def test_occlusion_moves_boxes_and_areas() -> None:
    base, donor = one_object((8, 8), (1, 1, 7, 5), 10), one_object((8, 8), (4, 0, 8, 8), 20)
    target = to_sample(paste_objects(base, donor, np.random.default_rng(0))).target
    assert target is not None
    assert target.boxes.tolist() == [[1, 1, 4, 5], [4, 0, 8, 8]]
    assert target.labels.tolist() == [10 % 3, 20 % 3]
    assert torch.bincount(target.object_map.flatten().long()).tolist() == [20, 12, 32]


def test_what_is_hidden_altogether_is_dropped() -> None:
    base, donor = one_object((8, 8), (2, 2, 4, 4), 10), one_object((8, 8), (0, 0, 8, 8), 20)
    sample = to_sample(paste_objects(base, donor, np.random.default_rng(0)))
    assert sample.target is not None and sample.target.labels.tolist() == [20 % 3]
    assert (sample.image == 20).all()


def test_a_crowd_under_an_object_is_hidden_and_one_of_the_donor_is_not_pasted() -> None:
    base, donor = one_object((4, 4), (0, 0, 1, 1), 10), one_object((4, 4), (2, 2, 4, 4), 20)
    base.target.crowd_map[:] = 3
    donor.target.crowd_map[0] = 1
    found = paste_objects(base, donor, np.random.default_rng(0)).target
    assert found.crowd_map.tolist() == [[3] * 4, [3] * 4, [3, 3, 0, 0], [3, 3, 0, 0]]


def test_any_number_from_one_to_all_is_pasted_and_specks_are_not() -> None:
    object_map = np.zeros((1, 4, 4), np.int16)
    object_map[0, :, :3] = [1, 2, 3]
    object_map[0, 0, 3] = 4
    blank = np.zeros((4, 4), np.int16)
    donor = RawSample(
        np.zeros((4, 4, 3), np.uint8), meta((4, 4)), RawTarget(np.arange(4), object_map, blank)
    )
    base = one_object((4, 4), (0, 0, 1, 1), 10)
    sets = {
        tuple(
            paste_objects(base, donor, np.random.default_rng(seed), min_object_area=2)
            .target.labels[1:]
            .tolist()
        )
        for seed in range(200)
    }
    assert sets == {(0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)}


def test_what_cannot_be_pasted_is_named() -> None:
    base = one_object((4, 4), (0, 0, 1, 1), 10)
    with pytest.raises(ValueError, match="with_targets"):
        paste_objects(base, RawSample(base.image, base.meta), np.random.default_rng(0))
    with pytest.raises(ValueError, match="only one of"):
        paste_objects(base, random_raw(0, (4, 4), 1, 1, True), np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"copy_paste.*1\.5"):
        CopyPaste(TrainTransform(32, 32), 1.5, [])  # type: ignore[arg-type]


# As an option of a run


def small_set(tmp_path: Path, *overrides: str, task: str = "panoptic"):
    if not (tmp_path / SPLIT).exists():
        write_tiny_coco(tmp_path)
    config = tiny_config(
        f"data.root={tmp_path}",
        f"data.train_split={SPLIT}",
        "data.image_size=32",
        "data.max_size=48",
        "data.augment.scale_jitter=[0.5, 1.5]",
        "data.augment.color=0.3",
        *overrides,
        task=task,
    )
    return build_dataset(config, split="train")


def batches(dataset, *, start: int = 0, workers: int = 0) -> list[list[torch.Tensor]]:
    order = [n % len(dataset) for n in range(start, 10)]
    loader = build_loader(
        dataset, batch_size=2, workers=workers, sampler=order, seed=5, first_position=start
    )
    found = []
    for batch in loader:
        fields = [batch.images]
        for target in batch.targets:
            fields += [target.labels, target.boxes, target.object_map, target.crowd_map]
            fields += [] if target.stuff_map is None else [target.stuff_map]
        found.append(fields)
    return found


def assert_same(one, two) -> None:
    assert len(one) == len(two)
    for ours, theirs in zip(one, two, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("task", ["panoptic", "instance"])
def test_batches_follow_from_their_place_alone(tmp_path: Path, task: str) -> None:
    dataset = small_set(tmp_path, "data.augment.copy_paste=0.8", task=task)
    expected = batches(dataset)
    assert_same(batches(dataset), expected)
    assert_same(batches(dataset, start=4), expected[2:])  # a resumed run
    keep_in_memory(dataset, 1.0, lambda text: None)
    assert dataset.cache is not None
    assert_same(batches(dataset), expected)
    if task == "panoptic":
        assert_same(batches(dataset, workers=2), expected)


def test_off_is_the_plain_transform_and_on_pastes(tmp_path: Path) -> None:
    off, on = small_set(tmp_path), small_set(tmp_path, "data.augment.copy_paste=1")
    assert isinstance(off.transform, TrainTransform) and isinstance(on.transform, CopyPaste)
    index = off.image_ids.index(MIXED)
    counts = set()
    for seed in range(20):
        torch.manual_seed(seed)
        before = len(off[index].target)
        torch.manual_seed(seed)
        counts.add(len(on[index].target) - before)
    assert max(counts) > 0


def test_a_data_set_that_cannot_give_images_is_named(tmp_path: Path, monkeypatch) -> None:
    class NoRead:
        transform = None

        @classmethod
        def from_root(cls, *args, **kwargs):
            return cls()

    monkeypatch.setitem(DATASETS, "no_read", NoRead)
    with pytest.raises(ConfigError, match="copy_paste needs a data set with a method read"):
        small_set(tmp_path, "data.augment.copy_paste=1", "data.dataset=no_read")
