from __future__ import annotations

import hashlib
import itertools
import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from typer.testing import CliRunner

from unisolo.categories import Categories
from unisolo.data import shapes_scene, shapes_things
from unisolo.data.shapes import generate_shapes
from unisolo.data.shapes_paint import outline, paint_stuff

SIZE = (96, 128)
SPLITS = {"train2017": 24, "val2017": 8}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shapes") / "set"
    return generate_shapes(folder, num_train=24, num_val=8, image_size=SIZE, seed=3)


def read(root: Path, kind: str, split: str) -> dict[str, Any]:
    return json.loads((root / "annotations" / f"{kind}_{split}.json").read_text())


def segment_map(root: Path, split: str, annotation: dict[str, Any]) -> np.ndarray:
    path = root / "annotations" / f"panoptic_{split}" / annotation["file_name"]
    with Image.open(path) as picture:
        assert picture.mode == "RGB"
        return np.asarray(picture).astype(np.int64) @ np.array([1, 256, 65536])


def panoptic_pairs(root: Path) -> list[tuple[dict[str, Any], np.ndarray]]:
    return [
        (annotation, segment_map(root, split, annotation))
        for split in SPLITS
        for annotation in read(root, "panoptic", split)["annotations"]
    ]


def digest(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def has_hole(mask: np.ndarray) -> bool:
    """Whether background that the outside cannot reach (4-neighbours) is left: flood by hand."""
    free = ~np.pad(mask, 1)
    reached = np.zeros_like(free)
    stack = [(0, 0)]
    while stack:
        y, x = stack.pop()
        if 0 <= y < free.shape[0] and 0 <= x < free.shape[1] and free[y, x] and not reached[y, x]:
            reached[y, x] = True
            stack += [(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)]
    return bool((free & ~reached).any())


# --- the files are a COCO panoptic data set -------------------------------------------------------


@pytest.mark.parametrize("split", SPLITS)
def test_images_match_their_entries(root: Path, split: str) -> None:
    panoptic, instances = read(root, "panoptic", split), read(root, "instances", split)
    assert panoptic["images"] == instances["images"]
    assert len(panoptic["images"]) == SPLITS[split]
    assert {p.name for p in (root / split).iterdir()} == {
        e["file_name"] for e in panoptic["images"]
    }
    for entry in panoptic["images"]:
        with Image.open(root / split / entry["file_name"]) as picture:
            assert picture.mode == "RGB"
            assert picture.size == (entry["width"], entry["height"]) == SIZE[::-1]
            assert picture.format == ("PNG" if entry["file_name"].endswith("png") else "JPEG")
    assert {Path(e["file_name"]).suffix for e in panoptic["images"]} == {".jpg", ".png"}
    assert panoptic["licenses"][0]["id"] == panoptic["images"][0]["license"]


def test_ids_are_sparse_and_splits_are_apart(root: Path) -> None:
    ids = {
        split: [image["id"] for image in read(root, "panoptic", split)["images"]]
        for split in SPLITS
    }
    for values in ids.values():
        assert len(set(values)) == len(values)
        assert max(values) - min(values) > len(values)
    assert not set(ids["train2017"]) & set(ids["val2017"])
    category_ids = [c["id"] for c in read(root, "panoptic", "val2017")["categories"]]
    assert len(category_ids) == 10
    assert min(category_ids) > 1
    assert all(b - a > 1 for a, b in itertools.pairwise(category_ids))


@pytest.mark.parametrize("split", SPLITS)
def test_categories_read_back(root: Path, split: str) -> None:
    entries = read(root, "panoptic", split)["categories"]
    categories = Categories.from_coco(entries)
    assert categories == shapes_scene.CATEGORIES
    things = [(c["id"], c["name"]) for c in read(root, "instances", split)["categories"]]
    assert things == [(c.id, c.name) for c in categories.things]


def test_png_and_segments_info_agree(root: Path) -> None:
    for annotation, ids in panoptic_pairs(root):
        infos = annotation["segments_info"]
        assert {info["id"] for info in infos} == set(np.unique(ids).tolist()) - {0}
        assert len({info["id"] for info in infos}) == len(infos)
        for info in infos:
            rows, columns = np.nonzero(ids == info["id"])
            x, y = columns.min(), rows.min()
            assert info["area"] == len(rows)
            assert info["bbox"] == [x, y, columns.max() + 1 - x, rows.max() + 1 - y]


def test_stuff_is_one_segment_per_category(root: Path) -> None:
    for annotation, _ in panoptic_pairs(root):
        stuff = [i["category_id"] for i in annotation["segments_info"] if i["category_id"] > 90]
        assert len(set(stuff)) == len(stuff)


@pytest.mark.parametrize("split", SPLITS)
def test_instances_are_the_panoptic_things(root: Path, split: str) -> None:
    coco = COCO(str(root / "annotations" / f"instances_{split}.json"))
    assert len(coco.anns) == len(coco.dataset["annotations"])
    for annotation in read(root, "panoptic", split)["annotations"]:
        ids = segment_map(root, split, annotation)
        things = [i for i in annotation["segments_info"] if i["category_id"] in coco.cats]
        found = coco.loadAnns(coco.getAnnIds(imgIds=[annotation["image_id"]]))
        assert len(found) == len(things)
        for instance, info in zip(found, things, strict=True):
            for key in ("category_id", "iscrowd", "area", "bbox"):
                assert instance[key] == info[key]
            np.testing.assert_array_equal(coco.annToMask(instance), ids == info["id"])
            assert coco_mask.area(coco.annToRLE(instance)) == info["area"]


def test_every_spelling_of_a_segmentation_occurs(root: Path) -> None:
    instances = read(root, "instances", "train2017")["annotations"]
    spelled = {
        "polygon"
        if isinstance(i["segmentation"], list)
        else type(i["segmentation"]["counts"]).__name__
        for i in instances
    }
    assert spelled == {"polygon", "list", "str"}
    for instance in instances:  # a crowd as polygons would not be a COCO crowd
        assert instance["iscrowd"] == (
            isinstance(instance["segmentation"], dict)
            and isinstance(instance["segmentation"]["counts"], list)
        )


# --- what the scenes hold -------------------------------------------------------------------------


def test_rare_content_is_there(root: Path) -> None:
    pairs = panoptic_pairs(root)
    infos = [info for annotation, _ in pairs for info in annotation["segments_info"]]
    assert any((ids == 0).any() for _, ids in pairs), "void"
    assert any((ids != 0).all() for _, ids in pairs), "no void"
    assert 1 <= sum(info["iscrowd"] for info in infos) <= len(pairs) // 5, "crowd"
    empty = [all(i["category_id"] > 90 for i in a["segments_info"]) for a, _ in pairs]
    assert 1 <= sum(empty) <= len(pairs) // 5, "an image without things"
    assert {info["category_id"] for info in infos} == {c.id for c in shapes_scene.CATEGORIES}
    rings = [
        ids == info["id"]
        for annotation, ids in pairs
        for info in annotation["segments_info"]
        if info["category_id"] == 25
    ]
    assert any(has_hole(mask) for mask in rings), "a hole"


def test_things_are_large_enough_to_see(root: Path) -> None:
    for annotation, _ in panoptic_pairs(root):
        for info in annotation["segments_info"]:
            is_stuff = info["category_id"] > 90
            assert info["area"] >= (0.004 * SIZE[0] * SIZE[1] if is_stuff else 20)


def disc(x: float, y: float, radius: float = 10.0) -> shapes_things.Shape:
    return shapes_things.Shape("ball", x, y, radius, 0.0, 1.0, 0.5)


@pytest.mark.parametrize(
    ("first", "second", "accepted"),
    [
        (disc(30, 30), disc(60, 30), True),  # apart
        (disc(30, 30), disc(44, 30), True),  # a small part of the first is hidden
        (disc(30, 30), disc(31, 30), False),  # the first would all but vanish
        (disc(30, 30, 4), disc(30, 30, 20), False),  # the first would vanish
        (disc(30, 30), disc(-6, 30), False),  # the second is mostly outside
        (disc(30, 30), disc(200, 200), False),  # the second is wholly outside
        (disc(30, 30), disc(10, 10, 2), False),  # the second is too small
    ],
)
def test_nothing_visible_goes_unlabelled(
    first: shapes_things.Shape, second: shapes_things.Shape, accepted: bool
) -> None:
    rng = np.random.default_rng(0)
    canvas = shapes_things.Canvas(np.full((64, 64, 3), 128, dtype=np.float32))
    assert canvas.add(rng, first, None)
    before = canvas.image.copy(), canvas.owner.copy()
    assert canvas.add(rng, second, None) is accepted
    assert len(canvas.segments) == 1 + accepted
    if not accepted:  # a refused thing leaves no trace
        np.testing.assert_array_equal(canvas.image, before[0])
        np.testing.assert_array_equal(canvas.owner, before[1])


@pytest.mark.parametrize(
    ("kind", "low", "high"),
    [  # share of the enclosing circle that the outline covers
        ("ball", 0.98, 1.02),
        ("box", 0.62, 0.66),  # a square: 2 / pi
        ("triangle", 0.40, 0.43),  # 3 sqrt(3) / (4 pi)
        ("star", 0.35, 0.5),
        ("ring", 0.55, 0.72),
    ],
)
def test_outline_area(kind: str, low: float, high: float) -> None:
    axis = np.arange(-60, 61, dtype=np.float32)
    v, u = np.meshgrid(axis, axis, indexing="ij")
    field = outline(kind, u, v, 50.0, 1.0, 0.5)
    assert low < (field <= 0).sum() / (np.pi * 50.0**2) < high
    assert (field[np.hypot(u, v) > 51] > 0).all()
    assert (field[60, 60] > 0) == (kind == "ring")


def test_kinds_are_the_thing_categories() -> None:
    assert tuple(c.name for c in shapes_scene.CATEGORIES.things) == shapes_things.KINDS
    rng = np.random.default_rng(0)
    for category in shapes_scene.CATEGORIES.stuff:
        assert paint_stuff(rng, category.name, (40, 50)).shape == (40, 50, 3)


def test_unknown_name_is_an_error() -> None:
    zeros = np.zeros((2, 2), dtype=np.float32)
    with pytest.raises(ValueError, match="'cube'; known: ball"):
        outline("cube", zeros, zeros, 4.0, 1.0, 0.5)
    with pytest.raises(ValueError, match="'lava'; known: sky"):
        paint_stuff(np.random.default_rng(0), "lava", (4, 4))


# --- the same again, or not -----------------------------------------------------------------------


def test_same_seed_same_files_and_longer_set_starts_alike(tmp_path: Path) -> None:
    size = (48, 40)
    a = generate_shapes(tmp_path / "a", num_train=3, num_val=2, image_size=size)
    b = generate_shapes(tmp_path / "b", num_train=3, num_val=2, image_size=size)
    longer = generate_shapes(tmp_path / "c", num_train=5, num_val=1, image_size=size)
    other = generate_shapes(tmp_path / "d", num_train=3, num_val=2, image_size=size, seed=1)
    assert digest(a) == digest(b)
    of_longer = digest(longer)
    for name, value in digest(a).items():
        if name.startswith("train2017") or "panoptic_train2017/" in name:
            assert of_longer[name] == value
    for kind in ("panoptic", "instances"):
        few, many = read(a, kind, "train2017"), read(longer, kind, "train2017")
        assert few["images"] == many["images"][:3]
        assert few["annotations"] == many["annotations"][: len(few["annotations"])]

    def pictures(root: Path) -> set[str]:
        return {v for k, v in digest(root).items() if k.startswith(("train2017", "val2017"))}

    assert len(pictures(a)) == 5
    assert not pictures(a) & pictures(other)


def test_finished_set_is_reused_and_unfinished_one_is_written_anew(tmp_path: Path) -> None:
    parameters: dict[str, Any] = {"num_train": 2, "num_val": 1, "image_size": (32, 32)}
    root = generate_shapes(tmp_path, **parameters)
    expected = digest(root)
    image = next((root / "train2017").iterdir())
    image.write_bytes(b"touched")
    generate_shapes(root, **parameters)
    assert image.read_bytes() == b"touched"
    marker = root / "unisolo_shapes.json"
    marker.write_text(json.dumps({**json.loads(marker.read_text()), "finished": False}))
    generate_shapes(root, **parameters)
    assert digest(root) == expected
    (root / "annotations" / "panoptic_val2017.json").unlink()
    generate_shapes(root, **parameters)
    assert digest(root) == expected


def test_refuses_folders_that_are_not_its_own(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="not written by generate_shapes"):
        generate_shapes(tmp_path, num_train=1, num_val=0)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(NotADirectoryError, match=r"notes\.txt is a file"):
        generate_shapes(tmp_path / "notes.txt")
    ours = generate_shapes(tmp_path / "ours", num_train=1, num_val=0, image_size=(32, 32))
    with pytest.raises(ValueError, match="seed: 0 there, 5 asked"):
        generate_shapes(ours, num_train=1, num_val=0, image_size=(32, 32), seed=5)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"num_train": 0, "num_val": 0}, "at least 1"),
        ({"num_train": -1}, "negative"),
        ({"image_size": (31, 64)}, "image_size"),
        ({"seed": -1}, "seed"),
    ],
)
def test_parameters_out_of_range(tmp_path: Path, parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate_shapes(tmp_path / "x", **parameters)
    assert not (tmp_path / "x").exists()


def test_smallest_images_of_every_kind(tmp_path: Path) -> None:
    root = generate_shapes(tmp_path, num_train=6, num_val=0, image_size=(32, 33))
    assert read(root, "panoptic", "val2017")["images"] == []
    annotations = read(root, "panoptic", "train2017")["annotations"]
    assert len(annotations) == 6
    for annotation in annotations:
        ids = set(np.unique(segment_map(root, "train2017", annotation)).tolist()) - {0}
        assert ids == {info["id"] for info in annotation["segments_info"]}


def test_tool_writes_one_image_and_explains_errors(tmp_path: Path) -> None:
    tool = runpy.run_path(str(Path(__file__).parents[2] / "tools" / "make_shapes.py"))
    app = typer.Typer()
    app.command()(tool["shapes"])
    command = [str(tmp_path / "out"), "--val", "0", "--size", "32"]
    done = CliRunner().invoke(app, [*command, "--train", "1"])
    assert done.exit_code == 0, done.output
    assert len(list((tmp_path / "out" / "train2017").iterdir())) == 1
    done = CliRunner().invoke(app, [*command, "--train", "2"])
    assert done.exit_code == 2
    assert "other parameters" in " ".join(done.output.replace("│", " ").split())
