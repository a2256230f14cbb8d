from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
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
    save_ids,
    write_tiny_coco,
)

from unisolo.data import DATASETS, CocoPanoptic
from unisolo.data.coco_files import DatasetError
from unisolo.data.images import ImageError
from unisolo.structures import STUFF_IGNORE

NUM_STUFF = 2
LABELS = {CAT: 0, RARE: 1, DOG: 2}


@pytest.fixture
def tiny(tmp_path: Path) -> TinyCoco:
    return write_tiny_coco(tmp_path / "set")


def load(tiny: TinyCoco, image_id: int):
    dataset = CocoPanoptic.from_root(tiny.root, SPLIT)
    return dataset[dataset.image_ids.index(image_id)]


def test_categories_come_from_the_file(tiny: TinyCoco) -> None:
    dataset = DATASETS["coco_panoptic"].from_root(tiny.root, SPLIT)
    assert [(c.id, c.name, c.isthing) for c in dataset.categories] == [
        (3, "cat", True),
        (17, "rare", True),
        (90, "dog", True),
        (95, "sky", False),
        (200, "grass", False),
    ]
    assert dataset.categories[0].color == (200, 20, 30)
    assert dataset.provides == {"things", "stuff"}
    assert dataset.panoptic_dir == tiny.png(0).parent


def test_every_image_stays_by_ascending_id(tiny: TinyCoco) -> None:
    dataset = CocoPanoptic.from_root(str(tiny.root), SPLIT)
    assert dataset.image_ids == (EMPTY, MIXED, CROWDED, ONLY_CROWD, DOT)
    assert [sample.meta.image_id for sample in dataset] == list(dataset.image_ids)
    some = CocoPanoptic.from_root(tiny.root, SPLIT, max_images=2)
    assert some.image_ids == (EMPTY, MIXED) and len(some) == 2


def test_targets_equal_the_segments_one_by_one(tiny: TinyCoco) -> None:
    """Brute force over every segment of every image."""
    dataset = CocoPanoptic.from_root(tiny.root, SPLIT)
    for sample in dataset:
        image_id = sample.meta.image_id
        ids, target = tiny.pngs[image_id], sample.target
        np.testing.assert_array_equal(
            sample.image.permute(1, 2, 0).numpy(), np.asarray(Image.open(tiny.image(image_id)))
        )
        infos = sorted(tiny.segments(image_id), key=lambda info: info["id"])
        stuff = np.full((HEIGHT, WIDTH), STUFF_IGNORE)
        crowd = np.zeros((HEIGHT, WIDTH))
        labels, boxes, masks = [], [], []
        for info in infos:
            mask = ids == info["id"]
            label = dataset.categories.label(info["category_id"])
            if label >= len(LABELS):
                stuff[mask] = label - len(LABELS)
            elif info["iscrowd"]:
                crowd[mask] = label + 1
            else:
                stuff[mask] = NUM_STUFF
                x, y, w, h = info["bbox"]
                labels.append(label)
                boxes.append([x, y, x + w, y + h])
                masks.append(mask)
        assert target.labels.tolist() == labels
        np.testing.assert_array_equal(target.boxes, np.reshape(boxes, (-1, 4)))
        assert target.object_map.shape == (1, HEIGHT, WIDTH)
        for number, mask in enumerate(masks, start=1):
            np.testing.assert_array_equal(target.object_map[0] == number, mask)
        assert int(target.object_map.max()) == len(masks)
        np.testing.assert_array_equal(target.crowd_map, crowd)
        np.testing.assert_array_equal(target.stuff_map, stuff)
        assert sample.meta.orig_size == sample.meta.input_size == (HEIGHT, WIDTH)


def test_empty_and_only_crowd(tiny: TinyCoco) -> None:
    empty = load(tiny, EMPTY).target
    assert len(empty) == 0 and empty.boxes.shape == (0, 4) and not empty.object_map.any()
    assert set(empty.stuff_map.unique().tolist()) == {STUFF_IGNORE, 0}
    crowd = load(tiny, ONLY_CROWD).target
    assert len(crowd) == 0 and crowd.crowd_map.max() == LABELS[CAT] + 1
    assert (crowd.stuff_map == STUFF_IGNORE).all()


def test_one_pixel_object(tiny: TinyCoco) -> None:
    target = load(tiny, DOT).target
    assert target.labels.tolist() == [LABELS[RARE]]
    assert target.boxes.tolist() == [[7, 5, 8, 6]]


def test_segment_without_pixels_is_passed_over(tiny: TinyCoco) -> None:
    before = load(tiny, MIXED).target
    tiny.segments(MIXED).append({"id": 1, "category_id": DOG, "iscrowd": 0})
    tiny.write()
    after = load(tiny, MIXED).target
    np.testing.assert_array_equal(after.object_map, before.object_map)
    assert after.labels.tolist() == before.labels.tolist()


def test_object_boxes_leave_crowd_and_stuff_out(tiny: TinyCoco) -> None:
    dataset = CocoPanoptic.from_root(tiny.root, SPLIT)
    found = dataset.object_boxes()
    expected = sorted(
        (annotation["image_id"], [x, y, x + width, y + height])
        for annotation in tiny.panoptic["annotations"]
        for info in annotation["segments_info"]
        for x, y, width, height in [info["bbox"]]
        if info["category_id"] in LABELS and not info["iscrowd"]
    )
    ids = [dataset.image_ids[number] for number in found.image_numbers]
    assert sorted(zip(ids, found.boxes.tolist(), strict=True)) == expected
    assert found.image_sizes.tolist() == [[HEIGHT, WIDTH]] * len(expected)
    bare = CocoPanoptic.from_root(tiny.root, SPLIT, with_targets=False)
    assert bare[1].target is None


def test_ground_truth_is_restricted_to_the_images_in_use(tiny: TinyCoco) -> None:
    dataset = CocoPanoptic.from_root(tiny.root, SPLIT, max_images=2)
    panoptic = dataset.panoptic_ground_truth()
    assert [image["id"] for image in panoptic["images"]] == [EMPTY, MIXED]
    assert [a["image_id"] for a in panoptic["annotations"]] == [EMPTY, MIXED]
    assert panoptic["categories"] == tiny.panoptic["categories"]
    coco = dataset.coco_ground_truth()
    assert [image["id"] for image in coco["images"]] == [EMPTY, MIXED]
    assert {a["image_id"] for a in coco["annotations"]} == {MIXED}
    assert {c["id"] for c in coco["categories"]} == set(LABELS)


def test_instances_made_from_the_pngs(tiny: TinyCoco) -> None:
    tiny.instances_file.unlink()
    truth = CocoPanoptic.from_root(tiny.root, SPLIT).coco_ground_truth()
    json.dumps(truth)  # ASCII counts: nothing that JSON cannot hold
    assert len({a["id"] for a in truth["annotations"]}) == len(truth["annotations"])
    expected = {
        (annotation["image_id"], tuple(info["bbox"])): info
        for annotation in tiny.panoptic["annotations"]
        for info in annotation["segments_info"]
        if info["category_id"] in LABELS
    }
    assert len(truth["annotations"]) == len(expected)
    for annotation in truth["annotations"]:
        info = expected[annotation["image_id"], tuple(annotation["bbox"])]
        for key in ("category_id", "iscrowd", "area"):
            assert annotation[key] == info[key]
        mask = coco_mask.decode(annotation["segmentation"])
        np.testing.assert_array_equal(mask, tiny.pngs[annotation["image_id"]] == info["id"])
    assert {c["id"] for c in truth["categories"]} == set(LABELS)


def test_instances_file_of_other_images_or_categories_is_refused(tiny: TinyCoco) -> None:
    dataset = CocoPanoptic.from_root(tiny.root, SPLIT)
    tiny.instances["categories"] = tiny.instances["categories"][1:]
    tiny.write()
    with pytest.raises(DatasetError, match=rf"lacks the thing categories with ids \[{DOG}\]"):
        dataset.coco_ground_truth()
    tiny.instances["images"] = tiny.instances["images"][1:]
    tiny.write()
    with pytest.raises(DatasetError, match=f"lacks 1 images.*{DOT}"):
        dataset.coco_ground_truth()


def test_pickles(tiny: TinyCoco) -> None:
    dataset = CocoPanoptic.from_root(tiny.root, SPLIT)
    again = pickle.loads(pickle.dumps(dataset))
    assert again.categories == dataset.categories
    np.testing.assert_array_equal(again[1].target.object_map, dataset[1].target.object_map)


def test_unknown_pixels_and_damaged_files_name_the_file(tiny: TinyCoco) -> None:
    ids = tiny.pngs[MIXED].copy()
    ids[20, 3] = 123_456
    save_ids(tiny.png(MIXED), ids)
    with pytest.raises(DatasetError, match=rf"{MIXED:06d}\.png.*123456.*image id {MIXED}"):
        load(tiny, MIXED)
    ids[20, 3] = 2**24 - 1  # beyond the largest id that is known
    save_ids(tiny.png(MIXED), ids)
    with pytest.raises(DatasetError, match="16777215"):
        load(tiny, MIXED)
    save_ids(tiny.png(MIXED), tiny.pngs[MIXED][1:])
    with pytest.raises(DatasetError, match=f"is 23 x 36.*image id {MIXED} is 24 x 36"):
        load(tiny, MIXED)
    Image.new("L", (WIDTH, HEIGHT)).save(tiny.png(MIXED))
    with pytest.raises(DatasetError, match=r"must be RGB.*this one is L"):
        load(tiny, MIXED)
    tiny.png(MIXED).write_bytes(b"nothing")
    with pytest.raises(DatasetError, match="damaged panoptic PNG"):
        load(tiny, MIXED)
    tiny.png(MIXED).unlink()
    with pytest.raises(DatasetError, match=f"no such panoptic PNG.*image id {MIXED}"):
        load(tiny, MIXED)


def test_missing_or_other_image(tiny: TinyCoco) -> None:
    Image.new("RGB", (HEIGHT, WIDTH)).save(tiny.image(DOT))
    with pytest.raises(DatasetError, match=rf"{DOT}\.png.*36 x 24.*24 x 36.*image id {DOT}"):
        load(tiny, DOT)
    tiny.image(DOT).unlink()
    with pytest.raises(ImageError, match=rf"{DOT}\.png: no such image file"):
        load(tiny, DOT)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.segments(MIXED)[0].update(category_id=4), f"image id {MIXED}.*category id 4"),
        (lambda t: t.segments(MIXED)[0].update(id=300), "segment id 300 appears twice"),
        (lambda t: t.segments(MIXED)[0].update(id=0), "0 is void"),
        (lambda t: t.panoptic["annotations"].pop(0), "has 0 entries under 'annotations'"),
        (lambda t: t.panoptic["annotations"][0].pop("segments_info"), "segments_info"),
        (lambda t: t.panoptic["annotations"][0].update(image_id=8), "image_id 8"),
        (lambda t: t.panoptic["annotations"][0].update(file_name="../x.png"), r"\.\./x\.png"),
        (lambda t: t.panoptic["images"][0].update(file_name="/etc/x.png"), "/etc/x.png"),
        (lambda t: t.panoptic["images"][0].update(file_name="a/../../x.png"), "points outside"),
        (lambda t: t.panoptic["images"][0].update(file_name="..\\x.png"), "points outside"),
        (lambda t: t.panoptic["images"][0].update(id=MIXED), f"image id {MIXED} appears twice"),
        (lambda t: t.panoptic["images"][0].update(id="9"), "must be an integer"),
        (lambda t: t.panoptic["images"][0].pop("height"), "lacks height"),
        (lambda t: t.panoptic["images"][0].update(width=0), "width 0"),
        (lambda t: t.panoptic.update(categories=[]), "no categories"),
        (
            lambda t: t.panoptic.update(categories=[{"id": 1, "name": "a"}]),
            r"\['a'\] lack 'isthing'",
        ),
        (lambda t: t.panoptic.pop("annotations"), "needs a list 'annotations'"),
    ],
)
def test_bad_json_is_refused_at_once_by_name(tmp_path: Path, change, words: str) -> None:
    tiny = write_tiny_coco(tmp_path)
    change(tiny)
    tiny.write()
    with pytest.raises(DatasetError, match=words) as caught:
        CocoPanoptic.from_root(tiny.root, SPLIT)
    assert str(tiny.panoptic_file) in str(caught.value)


def test_missing_layout_names_path_and_layout(tiny: TinyCoco) -> None:
    with pytest.raises(DatasetError, match=r"panoptic_val\.json.*Expected layout.*train2017"):
        CocoPanoptic.from_root(tiny.root, "val")
    with pytest.raises(DatasetError, match=r"nowhere does not exist"):
        CocoPanoptic.from_root(tiny.root / "nowhere", SPLIT)
    tiny.panoptic_file.write_text("{")
    with pytest.raises(DatasetError, match="not valid JSON"):
        CocoPanoptic.from_root(tiny.root, SPLIT)
    tiny.panoptic_file.write_text("[]")
    with pytest.raises(DatasetError, match="not a COCO annotation file"):
        CocoPanoptic.from_root(tiny.root, SPLIT)


def test_max_images_must_be_positive(tiny: TinyCoco) -> None:
    with pytest.raises(ValueError, match=r"max_images.*got 0"):
        CocoPanoptic.from_root(tiny.root, SPLIT, max_images=0)


@pytest.mark.parametrize("name", ["coco-mini", "idd-lite", "animals7", "dsb2018"])
def test_real_data(shared_data, name: str) -> None:
    """Labels, boxes and areas of the target are those of the JSON file."""
    root = shared_data(name)
    dataset = CocoPanoptic.from_root(root, "val2017", max_images=12)
    truth = dataset.panoptic_ground_truth()
    for sample, annotation in zip(dataset, truth["annotations"], strict=True):
        infos = [
            info
            for info in sorted(annotation["segments_info"], key=lambda info: info["id"])
            if dataset.categories.label(info["category_id"]) < dataset.categories.num_things
            and not info["iscrowd"]
        ]
        target = sample.target
        expected = np.array([info["bbox"] for info in infos]).reshape(-1, 4)
        expected[:, 2:] += expected[:, :2]
        np.testing.assert_array_equal(target.boxes, expected)
        areas = np.bincount(target.object_map.ravel(), minlength=len(infos) + 1)[1:]
        assert areas.tolist() == [info["area"] for info in infos]
        ids = [dataset.categories.id(label) for label in target.labels.tolist()]
        assert ids == [info["category_id"] for info in infos]


@pytest.mark.parametrize("name", ["coco-mini", "dsb2018"])
def test_real_pngs_and_instances_file_agree(shared_data, name: str) -> None:
    dataset = CocoPanoptic.from_root(shared_data(name), "val2017", max_images=10)

    def keys(truth):
        return sorted(
            (a["image_id"], a["category_id"], a["iscrowd"], a["area"], tuple(a["bbox"]))
            for a in truth["annotations"]
        )

    from_file = dataset.coco_ground_truth()
    dataset.instances = None
    assert keys(dataset.coco_ground_truth()) == keys(from_file)
