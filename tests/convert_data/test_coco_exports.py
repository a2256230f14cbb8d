"""What annotation tools export as COCO becomes COCO's own layout, object by object."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from unisolo.choose import find_splits
from unisolo.cli import app
from unisolo.convert_data import Summary, convert_data
from unisolo.convert_data.source import Options
from unisolo.data import CocoInstance
from unisolo.data.images import image_files

SIZE = (20, 30)
TOO_LOW = {"id": 0, "file_name": "a.png", "height": 9, "width": 30}
SQUARE = [[2.0, 3.0, 12.0, 3.0, 12.0, 13.0, 2.0, 13.0]]


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = sum(str(path).encode())
    pixels = np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def tree(*names: str, categories: list[dict[str, Any]] | None = None, **more: Any) -> Any:
    images = [
        {"id": n, "file_name": name, "height": SIZE[0], "width": SIZE[1]}
        for n, name in enumerate(names)
    ]
    one = {"category_id": 1, "bbox": [2, 3, 10, 10], "area": 100, "iscrowd": 0}
    annotations = [
        {"id": n + 1, "image_id": n, "segmentation": SQUARE, **one, **more}
        for n in range(len(names))
    ]
    categories = categories or [{"id": 1, "name": "Kiste"}, {"id": 2, "name": "Straße"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def cvat(src: Path) -> None:
    names = ["ä b.png", "tief/er/c.jpg", "d.png", "e.png"]
    write(src / "annotations" / "instances_default.json", tree(*names))
    for name in names:
        picture(src / "images" / "default" / name)


def label_studio(src: Path) -> None:
    names = [r"..\..\data\upload\1\ä b.png", "/data/upload/1/c.jpg", "images/d.png", "e.png"]
    write(src / "result.json", tree(*names))
    for name in ("ä b.png", "c.jpg", "d.png", "e.png"):
        picture(src / "images" / name)


def roboflow(src: Path) -> None:
    whole = {"id": 0, "name": "dinge", "supercategory": "none"}
    others = [{"id": n, "name": name, "supercategory": "dinge"} for n, name in ((1, "Kiste"),)]
    for split, names in (("train", ["a.jpg", "b.jpg", "c.jpg"]), ("valid", ["d.jpg"])):
        write(src / split / "_annotations.coco.json", tree(*names, categories=[whole, *others]))
        for name in names:
            picture(src / split / name)


def convert(root: Path, **arguments: Any) -> Summary:
    return convert_data(root / "src", root / "out", **arguments)


@pytest.mark.parametrize("export", [cvat, label_studio, roboflow])
def test_exports_of_tools(export: Any, tmp_path: Path) -> None:
    export(tmp_path / "src")
    words = ["convert-data", str(tmp_path / "src"), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "coco data set as COCO" in done.output
    splits = find_splits(tmp_path / "out")
    assert (splits.train, splits.val) == ("train2017", "val2017")
    train, val = (
        CocoInstance.from_root(tmp_path / "out", name) for name in (splits.train, splits.val)
    )
    assert (len(train), len(val)) == (3, 1)
    assert "dinge" not in [category.name for category in train.categories]
    for data in (train, val):
        truth = data.coco_ground_truth()
        names = {one["id"]: one["name"] for one in truth["categories"]}
        for one in truth["annotations"]:
            assert (names[one["category_id"]], one["area"]) == ("Kiste", 100)
    given = {path.read_bytes() for path in image_files(tmp_path / "src")}
    assert {path.read_bytes() for path in image_files(tmp_path / "out")} == given
    assert len(given) == 4


def test_crowds_boxes_and_images_without_objects(tmp_path: Path) -> None:
    content = tree("a.png", "b.png", "c.png", "d.png")
    first, second, third, _ = content["annotations"]
    first["iscrowd"] = 1
    first["segmentation"] = {"size": list(SIZE), "counts": [0, 40, 560]}
    second["segmentation"] = []
    third["image_id"] = 0
    write(tmp_path / "src" / "labels.json", content)
    write(tmp_path / "src" / "info.json", {"made": "by hand"})
    for name in "abcde":
        picture(tmp_path / "src" / f"{name}.png")
    with pytest.raises(ValueError, match=r"1 thing cannot .*\n.*annotation 2: has no outline"):
        convert(tmp_path)
    done = convert(tmp_path, options=Options(boxes_as_masks=True))
    assert sum(done.images.values()) == 4 and sum(done.objects.values()) == 4
    assert "images that no COCO file names: left out (1)" in done.notes
    assert "JSON files that are not COCO's: passed over (1)" in done.notes
    files = (tmp_path / "out" / "annotations").glob("*.json")
    written = [one for file in files for one in json.loads(file.read_text())["annotations"]]
    assert sorted(one["iscrowd"] for one in written) == [0, 0, 0, 1]
    assert sorted(one["area"] for one in written) == [40, 100, 100, 100]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"images": [{"id": 0, "file_name": "x.png"}]}, "image 'x.png' is not there"),
        ({"images": [{"id": 0, "file_name": "twice.png"}]}, "'twice.png' is in 2 folders"),
        ({"images": [{"file_name": "a.png"}]}, "has no id, or one that comes twice"),
        ({"images": [TOO_LOW, {"id": 1, "file_name": "b.png"}]}, "is 9 x 30"),
        ({"annotations": [{"id": 7, "image_id": 9}]}, "annotation 7 has image_id 9"),
        ({"annotations": [{"id": 7, "image_id": 0, "category_id": 5}]}, "category 5 is not in"),
        ({"annotations": [{"id": 7, "image_id": 0, "segments_info": []}]}, "panoptic annotations"),
        ({"categories": []}, "no categories"),
        ({"categories": [{"id": 1}]}, "labels.json.*'name'"),
    ],
)
def test_faults_name_file_and_entry(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    write(tmp_path / "src" / "labels.json", {**tree("a.png", "b.png"), **change})
    for name in ("a.png", "b.png", "one/twice.png", "two/twice.png"):
        picture(tmp_path / "src" / name)
    with pytest.raises(ValueError, match=words):
        convert(tmp_path)
    assert not (tmp_path / "out").exists()


def test_a_parent_that_is_no_text_is_passed_over(tmp_path: Path) -> None:
    content = tree("a.png", "b.png")
    for category in content["categories"]:
        category["supercategory"] = {"is": ["not text"]}
    write(tmp_path / "src" / "labels.json", content)
    for name in ("a.png", "b.png"):
        picture(tmp_path / "src" / name)
    assert sum(convert(tmp_path).images.values()) == 2


def test_files_of_different_categories_are_refused(tmp_path: Path) -> None:
    roboflow(tmp_path / "src")
    write(tmp_path / "src" / "valid" / "_annotations.coco.json", tree("d.jpg"))
    with pytest.raises(ValueError, match="other categories than"):
        convert(tmp_path)
