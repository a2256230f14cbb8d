from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from tiny_coco import (
    CAT,
    CROWDED,
    DOG,
    DOT,
    EMPTY,
    HEIGHT,
    MIXED,
    ONLY_CROWD,
    RARE,
    SPLIT,
    WIDTH,
    TinyCoco,
    plain_rle,
    rectangle,
    write_tiny_coco,
)

from unisolo.data import DATASETS, CocoInstance
from unisolo.data.coco_files import DatasetError
from unisolo.data.layers import paint_layers
from unisolo.segmentation import area_and_box, decode, encode

LABELS = {CAT: 0, RARE: 1, DOG: 2}


@pytest.fixture
def tiny(tmp_path: Path) -> TinyCoco:
    return write_tiny_coco(tmp_path / "set")


def load(tiny: TinyCoco, image_id: int):
    dataset = CocoInstance.from_root(tiny.root, SPLIT)
    return dataset[dataset.image_ids.index(image_id)]


def add(tiny: TinyCoco, **values: object) -> None:
    tiny.instances["annotations"].append(
        {"id": 100, "image_id": MIXED, "category_id": DOG, "iscrowd": 0, **values}
    )
    tiny.write()


def test_everything_is_a_thing(tiny: TinyCoco) -> None:
    tiny.instances["categories"].append({"id": 95, "name": "sky", "isthing": 0})
    tiny.write()
    dataset = DATASETS["coco_instance"].from_root(tiny.root, SPLIT)
    assert [c.id for c in dataset.categories] == [CAT, RARE, DOG]
    assert dataset.categories.num_stuff == 0 and dataset.provides == {"things"}
    assert dataset.image_ids == (EMPTY, MIXED, CROWDED, ONLY_CROWD, DOT)


def test_objects_are_the_annotations_in_order(tiny: TinyCoco) -> None:
    """Holes, both RLE kinds, a polygon of two parts, crowd: every mask exact."""
    for sample in CocoInstance.from_root(tiny.root, SPLIT):
        target = sample.target
        entries = [
            entry
            for entry in tiny.instances["annotations"]
            if entry["image_id"] == sample.meta.image_id
        ]
        objects = [entry for entry in entries if not entry["iscrowd"]]
        assert target.labels.tolist() == [LABELS[entry["category_id"]] for entry in objects]
        for number, entry in enumerate(objects, start=1):
            mask = (target.object_map == number).any(0)
            np.testing.assert_array_equal(mask, tiny.masks[entry["id"]])
            x, y, w, h = entry["bbox"]
            assert target.boxes[number - 1].tolist() == [x, y, x + w, y + h]
        crowd = np.zeros((HEIGHT, WIDTH))
        for entry in entries:
            if entry["iscrowd"]:
                crowd[tiny.masks[entry["id"]]] = LABELS[entry["category_id"]] + 1
        np.testing.assert_array_equal(target.crowd_map, crowd)
        assert target.stuff_map is None


def test_layers_follow_the_depth_of_overlap(tiny: TinyCoco) -> None:
    assert load(tiny, MIXED).target.object_map.shape[0] == 2
    assert load(tiny, EMPTY).target.object_map.shape == (1, HEIGHT, WIDTH)
    assert load(tiny, CROWDED).target.object_map.shape[0] == 1  # crowd takes no layer


def test_annotations_that_enclose_nothing_are_passed_over(tiny: TinyCoco) -> None:
    before = load(tiny, MIXED).target
    empty_rle = {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}
    for segmentation in ([], None, [[1, 1, 5, 5]], [[]], empty_rle, [[90, 90, 95, 90, 95, 95]]):
        add(tiny, segmentation=segmentation)
    after = load(tiny, MIXED).target
    assert len(before) == 5 and after.labels.tolist() == before.labels.tolist()
    np.testing.assert_array_equal(after.object_map, before.object_map)


def test_degenerate_first_part_is_not_taken_for_a_box(tiny: TinyCoco) -> None:
    add(tiny, segmentation=[[0, 0, 30, 20], [3, 3, 6, 3, 6, 7, 3, 7]])
    target = load(tiny, MIXED).target
    np.testing.assert_array_equal((target.object_map == 6).any(0), rectangle(3, 3, 7, 6))


def test_object_boxes(tiny: TinyCoco) -> None:
    dataset = CocoInstance.from_root(tiny.root, SPLIT)
    found = dataset.object_boxes()
    expected = sorted(
        (entry["image_id"], [x, y, x + width, y + height])
        for entry in tiny.instances["annotations"]
        for x, y, width, height in [entry["bbox"]]
        if not entry["iscrowd"]
    )
    ids = [dataset.image_ids[number] for number in found.image_numbers]
    assert sorted(zip(ids, found.boxes.tolist(), strict=True)) == expected
    assert found.image_sizes.shape == (len(expected), 2)
    none = CocoInstance.from_root(tiny.root, SPLIT, max_images=1).object_boxes()
    assert none.boxes.shape == (0, 4) and none.image_sizes.shape == (0, 2)


def test_samples_without_targets(tiny: TinyCoco) -> None:
    plain = CocoInstance.from_root(tiny.root, SPLIT)
    bare = CocoInstance.from_root(tiny.root, SPLIT, with_targets=False)
    assert bare[1].target is None
    np.testing.assert_array_equal(bare[1].image, plain[1].image)


def test_ground_truth_is_the_file_where_it_can_be(tiny: TinyCoco) -> None:
    dataset = CocoInstance.from_root(tiny.root, SPLIT, max_images=3)
    truth = dataset.coco_ground_truth()
    kept = [a for a in tiny.instances["annotations"] if a["image_id"] in dataset.image_ids]
    assert truth["annotations"] == kept and len(kept) == 7
    assert [image["id"] for image in truth["images"]] == list(dataset.image_ids)


def test_ground_truth_fills_what_evaluators_need(tiny: TinyCoco) -> None:
    whole = {entry["id"]: entry for entry in tiny.instances["annotations"]}
    tiny.instances["annotations"] = [
        {k: v for k, v in entry.items() if k not in ("area", "bbox")} for entry in whole.values()
    ]
    add(tiny, segmentation=[], id=55)
    truth = CocoInstance.from_root(tiny.root, SPLIT).coco_ground_truth()["annotations"]
    assert {a["id"]: (a["area"], a["bbox"]) for a in truth} == {
        number: (entry["area"], entry["bbox"]) for number, entry in whole.items()
    }


def test_ground_truth_ids_are_usable(tiny: TinyCoco) -> None:
    """pycocotools reads id 0 as "no match"; repeated ids collapse."""
    for number, entry in enumerate(tiny.instances["annotations"]):
        entry["id"] = number // 2
    tiny.write()
    truth = CocoInstance.from_root(tiny.root, SPLIT).coco_ground_truth()
    assert [a["id"] for a in truth["annotations"]] == list(range(1, 10))
    coco = COCO()
    coco.dataset = truth
    coco.createIndex()
    assert len(coco.anns) == 9


@pytest.mark.parametrize(
    ("segmentation", "words"),
    [
        ({"size": [HEIGHT, WIDTH]}, "needs 'size' and 'counts'"),
        ([1, 2, 3, 4, 5, 6], "list of polygons"),
        ("abc", "list of polygons"),
    ],
)
def test_malformed_masks_are_refused_at_once(tiny: TinyCoco, segmentation, words: str) -> None:
    add(tiny, segmentation=segmentation)
    with pytest.raises(DatasetError, match=f"annotation 100 of image id {MIXED}.*{words}"):
        CocoInstance.from_root(tiny.root, SPLIT)


@pytest.mark.parametrize(
    ("segmentation", "words"),
    [
        ({"size": [WIDTH, HEIGHT], "counts": [WIDTH * HEIGHT]}, r"size \[36, 24\]"),
        ({"size": [HEIGHT, WIDTH], "counts": [5, 5]}, "sum to 10"),
        ({"size": [HEIGHT, WIDTH], "counts": [-5, HEIGHT * WIDTH + 5]}, "sum to 864"),
        ({"size": [HEIGHT, WIDTH], "counts": "zzzzzzzz"}, "not COCO's compressed text"),
        ({"size": [HEIGHT, WIDTH], "counts": ""}, "not COCO's compressed text"),
        ({"size": [HEIGHT, WIDTH], "counts": "123"}, "do not add up"),
        ({"size": [HEIGHT, WIDTH], "counts": "oooooooooo1"}, "longer than any image"),
        ([[1, 1, 5, 1, 5, 5, 1]], "7 numbers"),
        ([[1, 1, 5, 1, 5, float("nan")]], "not finite"),
        ([[1, 1, 5, 1, 5, 1e12]], "far outside"),
    ],
)
def test_masks_that_do_not_fit_are_named(tiny: TinyCoco, segmentation, words: str) -> None:
    add(tiny, segmentation=segmentation)
    with pytest.raises(DatasetError, match=f"annotation 100 of image id {MIXED}.*{words}"):
        load(tiny, MIXED)


def test_bad_entries_are_named(tiny: TinyCoco) -> None:
    add(tiny, segmentation=[[0, 0, 5, 0, 5, 5]], category_id=4)
    with pytest.raises(DatasetError, match=r"annotation 100.*category id 4 is not a thing"):
        CocoInstance.from_root(tiny.root, SPLIT)
    tiny.instances["annotations"] = []
    add(tiny, segmentation=[[0, 0, 5, 0, 5, 5]], image_id=4)
    with pytest.raises(DatasetError, match="annotation 100 has image_id 4"):
        CocoInstance.from_root(tiny.root, SPLIT)
    tiny.instances["annotations"] = []
    add(tiny, bbox=[0, 0, 5, 5])
    with pytest.raises(DatasetError, match="boxes alone cannot train"):
        CocoInstance.from_root(tiny.root, SPLIT)
    with pytest.raises(DatasetError, match=r"instances_val\.json does not exist"):
        CocoInstance.from_root(tiny.root, "val")


def test_rotated_photo_with_annotations_of_the_unrotated_one(tiny: TinyCoco) -> None:
    image = Image.open(tiny.image(DOT))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tiny.image(DOT), exif=exif)
    with pytest.raises(DatasetError, match=r"36 x 24.*says 24 x 36.*EXIF"):
        load(tiny, DOT)


def test_pickles_small(tiny: TinyCoco) -> None:
    dataset = CocoInstance.from_root(tiny.root, SPLIT)
    again = pickle.loads(pickle.dumps(dataset))
    for first, second in zip(dataset, again, strict=True):
        np.testing.assert_array_equal(first.target.object_map, second.target.object_map)


@given(
    arrays(bool, st.tuples(st.integers(1, 40), st.integers(1, 40))),
    st.integers(1, 30),
)
def test_rle_is_read_as_pycocotools_reads_it(mask: np.ndarray, factor: int) -> None:
    mask = np.repeat(mask, factor, axis=0)  # runs of one and of more than one digit
    rle = encode(mask)
    np.testing.assert_array_equal(coco_mask.decode(rle), mask)
    np.testing.assert_array_equal(decode(rle, *mask.shape), mask)
    np.testing.assert_array_equal(decode(plain_rle(mask), *mask.shape), mask)


@st.composite
def boxes(draw: st.DrawFn) -> list[tuple[int, int, int, int]]:
    side = st.integers(0, 12)
    return draw(st.lists(st.tuples(side, side, side, side), max_size=20))


@given(boxes())
def test_layers_keep_every_mask_and_stay_few(items: list[tuple[int, int, int, int]]) -> None:
    masks = []
    for top, left, height, width in items:
        mask = np.zeros((16, 16), dtype=bool)
        mask[top : top + height, left : left + width] = True
        masks.append(mask)
    object_map, painted = paint_layers(iter(masks), 16, 16)
    assert painted.tolist() == [i for i, mask in enumerate(masks) if mask.any()]
    for number, index in enumerate(painted, start=1):
        np.testing.assert_array_equal((object_map == number).any(0), masks[index])
    # First fit: an object in layer d overlaps something in each layer before it.
    for number in range(1, len(painted) + 1):
        layer = int(np.flatnonzero((object_map == number).any((1, 2)))[0])
        mask = object_map[layer] == number
        assert all(object_map[before][mask].any() for before in range(layer))


def test_a_thousand_objects_take_one_layer() -> None:
    cells = ((row, column) for row in range(32) for column in range(32))

    def masks():
        for row, column in cells:
            mask = np.zeros((64, 64), dtype=bool)
            mask[2 * row : 2 * row + 2, 2 * column : 2 * column + 2] = True
            yield mask

    object_map, painted = paint_layers(masks(), 64, 64)
    assert object_map.shape == (1, 64, 64) and len(painted) == 1024
    assert (np.bincount(object_map.ravel())[1:] == 4).all()


@pytest.mark.parametrize("name", ["coco-mini", "idd-lite", "animals7", "dsb2018"])
def test_real_data(shared_data, name: str) -> None:
    dataset = CocoInstance.from_root(shared_data(name), "val2017", max_images=12)
    truth = dataset.coco_ground_truth()
    for sample in dataset:
        entries = [
            entry
            for entry in truth["annotations"]
            if entry["image_id"] == sample.meta.image_id and not entry["iscrowd"]
        ]
        target = sample.target
        areas = np.bincount(target.object_map.ravel(), minlength=len(entries) + 1)[1:]
        assert areas.tolist() == [entry["area"] for entry in entries]
        expected = np.array([entry["bbox"] for entry in entries]).reshape(-1, 4)
        expected[:, 2:] += expected[:, :2]
        np.testing.assert_array_equal(target.boxes, expected)


@pytest.mark.parametrize("seed", range(20))
def test_area_and_box_from_the_runs_are_those_of_the_mask(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random((int(rng.integers(1, 9)), int(rng.integers(1, 9)))) < rng.choice([0, 0.2, 1])
    area, (left, top, right, bottom) = area_and_box(plain_rle(mask), *mask.shape)
    assert area == mask.sum()
    if area:
        rows, columns = np.nonzero(mask)
        assert (top, bottom) == (rows.min(), rows.max() + 1)
        assert (left, right) == (columns.min(), columns.max() + 1)
    else:
        assert (left, top, right, bottom) == (0, 0, 0, 0)
