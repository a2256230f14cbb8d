from __future__ import annotations

import pickle
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from unisolo.data.raw import RawSample, RawTarget, areas_and_boxes, to_sample
from unisolo.data.transforms import EvalTransform, TrainTransform, resized_size
from unisolo.structures import STUFF_IGNORE, ImageMeta

META = ImageMeta(7, "a.jpg", (1, 1), (1, 1))


def raw_sample(height: int, width: int, objects: int = 5, depth: int = 1, seed: int = 0):
    """Noise in every map; pixel (y, x) of the image says where it came from: red y, green x."""
    rng = np.random.default_rng(seed)
    image = np.zeros((height, width, 3), dtype=np.uint8)
    image[..., 0] = np.arange(height)[:, None] % 256
    image[..., 1] = np.arange(width) % 256
    object_map = np.zeros((depth, height, width), dtype=np.int16)
    for number in range(1, objects + 1):  # small blocks, each in one layer
        top, left = rng.integers(height), rng.integers(width)
        block = np.s_[number % depth, top : top + 3, left : left + 4]
        object_map[block] = number
    target = RawTarget(
        labels=rng.integers(0, 50, objects),
        object_map=object_map,
        crowd_map=rng.integers(0, 1204, (height, width)).astype(np.int16),
        stuff_map=rng.integers(STUFF_IGNORE, 54, (height, width)).astype(np.int16),
    )
    return RawSample(image, replace(META, orig_size=(height, width)), target)


def check_target(sample, raw: RawSample) -> None:
    """What holds after any transform."""
    target = sample.target
    height, width = sample.image.shape[-2:]
    assert sample.image.dtype == torch.uint8 and sample.image.is_contiguous()
    assert sample.meta == replace(raw.meta, input_size=(height, width))
    assert target.object_map.dtype == target.crowd_map.dtype == torch.int16
    assert target.boxes.dtype == torch.float32 and target.labels.dtype == torch.int64
    assert target.object_map.shape[1:] == target.crowd_map.shape == (height, width)
    assert target.object_map.shape[0] >= 1
    if target.object_map.shape[0] > 1:
        assert target.object_map.flatten(1).any(1).all()
    numbers = target.object_map.unique()
    assert numbers[numbers > 0].tolist() == list(range(1, len(target) + 1))
    for number in range(1, len(target) + 1):
        rows, columns = torch.nonzero((target.object_map == number).any(0), as_tuple=True)
        box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert target.boxes[number - 1].tolist() == [int(side) for side in box]


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((1, 1), (800, 800)),
        ((4000, 30), (1333, 10)),
        ((4000, 1), (1333, 1)),  # the formula alone would say 0
        ((480, 640), (800, 1067)),
    ],
)
def test_resized_size(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert resized_size(size, 800, 1333) == expected


def test_eval_transform_without_target() -> None:
    image = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    sample = EvalTransform(60, 100)(RawSample(image, META))
    assert sample.image.shape == (3, 60, 80) and sample.target is None
    assert sample.meta.input_size == (60, 80)
    same = EvalTransform(30, 100)(RawSample(image, META)).image
    np.testing.assert_array_equal(same.permute(1, 2, 0), image)
    same[:] = 0  # the caller's array is not the sample's
    assert image.any()


def test_image_and_maps_stay_aligned() -> None:
    """Nearest must pick the pixel in the middle of each block, as bilinear does."""
    raw = raw_sample(12, 18)
    double = EvalTransform(24, 1000)(raw).target
    for ours, original in (
        (double.crowd_map, raw.target.crowd_map),
        (double.stuff_map, raw.target.stuff_map),
    ):
        np.testing.assert_array_equal(ours, original.repeat(2, 0).repeat(2, 1))
    third = EvalTransform(4, 1000)(raw).target
    np.testing.assert_array_equal(third.crowd_map, raw.target.crowd_map[1::3, 1::3])


def test_antialias() -> None:
    checkers = np.indices((64, 64)).sum(0) % 2 * 255
    image = np.repeat(checkers[..., None], 3, axis=2).astype(np.uint8)
    small = EvalTransform(16, 16)(RawSample(image, META)).image.float()
    assert (small - 127.5).abs().max() < 20


ODD_SIZES = [
    (1, 1), (1, 90), (90, 1), (7, 13), (13, 7), (31, 97), (97, 31), (45, 45), (64, 96), (60, 80),
    (101, 203), (203, 101), (33, 500), (500, 33), (239, 319), (427, 640), (333, 500), (480, 361),
    (720, 1279), (1081, 811),
]  # fmt: skip


@pytest.mark.parametrize("size", ODD_SIZES)
def test_opencv_resize_is_opencv(size: tuple[int, int]) -> None:
    """Bit for bit, up and down; the maps are those of the torch mode."""
    import cv2

    raw = raw_sample(*size)
    noise = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    raw = replace(raw, image=noise)
    height, width = resized_size(size, 160, 267)
    expected = cv2.resize(noise, (width, height), interpolation=cv2.INTER_LINEAR)
    sample = EvalTransform(160, 267, resize="opencv")(raw)
    np.testing.assert_array_equal(sample.image.permute(1, 2, 0), expected)
    train = TrainTransform(160, 267, flip=0.0, resize="opencv")(raw)
    np.testing.assert_array_equal(train.image.permute(1, 2, 0), expected)
    torch_sample = EvalTransform(160, 267)(raw)
    for name in ("labels", "object_map", "crowd_map", "stuff_map", "boxes"):
        ours, theirs = getattr(sample.target, name), getattr(torch_sample.target, name)
        assert torch.equal(ours, theirs)
    assert sample.image.is_contiguous() and sample.meta == torch_sample.meta


def test_torch_resize_is_torchvision() -> None:
    """The default stays what checkpoints without the setting were trained with."""
    from torchvision.transforms.v2 import InterpolationMode, functional

    noise = np.random.default_rng(1).integers(0, 256, (203, 301, 3), dtype=np.uint8)
    for short in (60, 400):
        image = EvalTransform(short, 9999)(RawSample(noise, META)).image
        expected = functional.resize(
            torch.from_numpy(noise).permute(2, 0, 1),
            list(image.shape[-2:]),
            interpolation=InterpolationMode.BILINEAR,
            antialias=True,
        )
        assert torch.equal(image, expected)
        assert not torch.equal(
            image, EvalTransform(short, 9999, resize="opencv")(RawSample(noise, META)).image
        )


@given(
    st.tuples(st.integers(1, 60), st.integers(1, 60)),
    st.integers(1, 5),
    st.integers(0, 30),
    st.one_of(st.none(), st.tuples(st.integers(1, 70), st.integers(1, 70))),
    st.integers(0, 10**6),
)
def test_crop_and_flips_move_everything_alike(size, depth, objects, crop, seed) -> None:
    """The image's pixels tell where they came from: every map must say the same."""
    raw = raw_sample(*size, objects=objects, depth=depth, seed=seed)
    raw = replace(raw, target=replace(raw.target, labels=np.arange(objects)))
    transform = TrainTransform(min(size), 1000, crop=crop, flip=0.5, vertical_flip=0.5)
    torch.manual_seed(seed)
    sample = transform(raw)
    check_target(sample, raw)
    rows, columns = sample.image[0].long().numpy(), sample.image[1].long().numpy()
    limits = crop or size
    assert sample.image.shape[-2:] == tuple(min(a, b) for a, b in zip(size, limits, strict=True))
    np.testing.assert_array_equal(sample.target.crowd_map, raw.target.crowd_map[rows, columns])
    np.testing.assert_array_equal(sample.target.stuff_map, raw.target.stuff_map[rows, columns])
    moved = raw.target.object_map[:, rows, columns]
    assert sample.target.labels.tolist() == (np.unique(moved[moved > 0]) - 1).tolist()
    for number, label in enumerate(sample.target.labels.tolist(), start=1):
        ours = (sample.target.object_map == number).any(0)
        np.testing.assert_array_equal(ours, (moved == label + 1).any(0))


@pytest.mark.parametrize("size", [(1, 1), (4000, 30), (30, 4000)])
@pytest.mark.parametrize("crop", [None, (64, 64)])
def test_extreme_sizes(size: tuple[int, int], crop: tuple[int, int] | None) -> None:
    raw = raw_sample(*size)
    check_target(EvalTransform(80, 133)(raw), raw)
    transform = TrainTransform(
        80, 133, crop=crop, scale_jitter=(0.1, 2.0), vertical_flip=0.5, color=1.0
    )
    for _ in range(10):
        check_target(transform(raw), raw)


@pytest.mark.parametrize(("depth", "objects"), [(1, 30_000), (600, 600)])
def test_many_objects_and_many_layers(depth: int, objects: int) -> None:
    """Beyond 255 values and beyond OpenCV's 512 channels the numbers stay exact."""
    pixels = np.arange(1, objects + 1, dtype=np.int16)
    object_map = np.zeros((depth, 150, 200), dtype=np.int16)
    flat = object_map.reshape(depth, -1)
    flat[np.arange(objects) % depth, np.arange(objects)] = pixels
    image = np.zeros((150, 200, 3), dtype=np.uint8)
    zeros = np.zeros((150, 200), dtype=np.int16)
    target = RawTarget(np.arange(objects), object_map, zeros)
    sample = TrainTransform(150, 1000, flip=1.0, vertical_flip=1.0)(RawSample(image, META, target))
    np.testing.assert_array_equal(sample.target.object_map, object_map[:, ::-1, ::-1])
    assert sample.target.labels.tolist() == list(range(objects))
    assert sample.target.stuff_map is None


def test_object_cropped_away() -> None:
    raw = raw_sample(40, 40, objects=0)
    object_map = np.zeros((2, 40, 40), dtype=np.int16)
    object_map[0, 33, 36] = 1
    object_map[1, 5:35, 5:35] = 2
    raw = replace(raw, target=replace(raw.target, labels=np.array([4, 9]), object_map=object_map))
    transform = TrainTransform(40, 100, crop=(20, 20), flip=0.0)
    seen = set()
    for _ in range(100):
        target = transform(raw).target
        seen.add(tuple(target.labels.tolist()))
        assert target.object_map.shape[0] == max(len(target), 1)
    assert seen == {(9,), (4, 9)}


def test_only_crowd_and_no_objects() -> None:
    raw = raw_sample(20, 20, objects=0)
    target = TrainTransform(50, 90, crop=(32, 32))(raw).target
    assert len(target) == 0 and target.boxes.shape == (0, 4)
    assert target.object_map.shape == (1, 32, 32) and not target.object_map.any()
    assert target.crowd_map.any()


def test_min_object_area() -> None:
    raw = raw_sample(20, 20, objects=0)
    object_map = np.zeros((1, 20, 20), dtype=np.int16)
    object_map[0, 0, :3] = 1
    object_map[0, 5, :4] = 2
    raw = replace(raw, target=replace(raw.target, labels=np.array([1, 2]), object_map=object_map))
    for area, labels in ((1, [1, 2]), (4, [2]), (5, [])):
        target = TrainTransform(20, 20, flip=0, min_object_area=area)(raw).target
        assert target.labels.tolist() == labels
    assert to_sample(raw).target.labels.tolist() == [1, 2]


def test_areas_and_boxes_with_objects_without_pixels() -> None:
    object_map = np.zeros((1, 4, 6), dtype=np.int16)
    object_map[0, 1:3, 2:6] = 2
    areas, boxes = areas_and_boxes(object_map, 3)
    assert areas.tolist() == [0, 8, 0]
    assert boxes.tolist() == [[0] * 4, [2, 1, 6, 3], [0] * 4]


@given(arrays(np.int16, array_shapes(min_dims=3, max_dims=3), elements=st.integers(0, 6)))
def test_areas_and_boxes_one_by_one(object_map: np.ndarray) -> None:
    areas, boxes = areas_and_boxes(object_map, 6)
    for number in range(1, 7):
        _, rows, columns = np.nonzero(object_map == number)
        assert areas[number - 1] == len(rows)
        if len(rows):
            box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert boxes[number - 1].tolist() == box


def test_every_argument_does_something() -> None:
    raw = raw_sample(60, 90)
    plain = TrainTransform(60, 90, flip=0.0)(raw)
    np.testing.assert_array_equal(plain.image.permute(1, 2, 0), raw.image)

    def shapes(**arguments: object) -> set[tuple[int, ...]]:
        transform = TrainTransform(60, 90, flip=0.0, **arguments)
        return {tuple(transform(raw).image.shape[-2:]) for _ in range(40)}

    assert shapes(sizes=(20, 30, 40)) == {(20, 30), (30, 45), (40, 60)}
    assert shapes(crop=(50, 200)) == {(50, 90)}
    zoomed = shapes(scale_jitter=(0.5, 2.0))  # beyond max_size: the jitter moves both limits
    assert min(zoomed)[0] < 45 and max(zoomed)[0] > 90 and max(zoomed)[0] <= 120
    flipped = TrainTransform(60, 90, flip=1.0)(raw).image
    assert torch.equal(flipped, plain.image.flip(2))
    assert torch.equal(
        TrainTransform(60, 90, flip=0.0, vertical_flip=1.0)(raw).image, plain.image.flip(1)
    )
    coloured = TrainTransform(60, 90, flip=0.0, color=0.5)(raw)
    assert not torch.equal(coloured.image, plain.image)
    assert torch.equal(coloured.target.object_map, plain.target.object_map)
    assert TrainTransform(60, 45, flip=0.0)(raw).image.shape[-2:] == (30, 45)


def test_one_seed_one_result() -> None:
    raw = raw_sample(60, 90)
    transform = TrainTransform(
        60, 90, scale_jitter=(0.5, 2.0), crop=(40, 40), vertical_flip=0.5, color=1.0
    )
    other = pickle.loads(pickle.dumps(transform))
    torch.manual_seed(5)
    first = [transform(raw).image for _ in range(4)]
    torch.manual_seed(5)
    np.random.seed(1)
    second = [other(raw).image for _ in range(4)]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0], first[1])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"image_size": 0}, "at least 1"),
        ({"crop": (0, 5)}, "at least 1"),
        ({"sizes": (-3,)}, "at least 1"),
        ({"scale_jitter": (2.0, 1.0)}, "scale_jitter"),
        ({"flip": 1.5}, "flip must lie"),
        ({"color": -0.1}, "color must lie"),
        ({"resize": "pil"}, "resize must be one of torch, opencv, got 'pil'"),
    ],
)
def test_arguments_out_of_range(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TrainTransform(**arguments)  # type: ignore[arg-type]


def test_albumentations_is_imported_by_the_training_transform_only() -> None:
    code = (
        "import os, sys; os.environ.pop('NO_ALBUMENTATIONS_UPDATE', None)\n"
        "from unisolo.data.transforms import EvalTransform, TrainTransform\n"
        "EvalTransform(); assert 'albumentations' not in sys.modules\n"
        "TrainTransform(); assert 'albumentations' in sys.modules\n"
        "assert os.environ['NO_ALBUMENTATIONS_UPDATE'] == '1'\n"  # no call over the network
    )
    subprocess.run([sys.executable, "-c", code], check=True)
