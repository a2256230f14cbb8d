"""Every fault names its file and entry, all of them are told at once, and nothing is written."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from unisolo.cli import app
from unisolo.convert_data import convert_data
from unisolo.convert_data.source import Options

SQUARE = "0.1 0.1 0.5 0.1 0.5 0.5 0.1 0.5"


def picture(path: Path, size: tuple[int, int] = (20, 30)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = sum(path.name.encode())
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def yolo(root: Path, label: str | None, **data: Any) -> None:
    for split in ("train", "val"):
        picture(root / "images" / split / f"{split}.png")
        (root / "labels" / split).mkdir(parents=True)
        (root / "labels" / split / f"{split}.txt").write_text(f"0 {SQUARE}\n")
    if label is None:
        (root / "labels" / "train" / "train.txt").unlink()
    else:
        (root / "labels" / "train" / "train.txt").write_text(label)
    tree = {"train": "images/train", "val": "images/val", "names": ["a", "b"], **data}
    (root / "data.yaml").write_text(json.dumps(tree))


def refused(root: Path, words: str, **arguments: Any) -> None:
    with pytest.raises((ValueError, OSError), match=words):
        convert_data(root / "source", root / "out", **arguments)
    assert sorted(path.name for path in root.iterdir()) == ["source"]  # nothing half-written


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("0 0.1 0.1 0.5 0.5", "is a box.*--boxes-as-masks"),
        ("0 0.1 0.1 0.5 0.5 0.9", "has 5 coordinates"),
        ("0 0.1 0.1", "has 2 coordinates"),
        ("0 0.1 0.1 0.5 0.1 0.5 0.5 0.4", "has 7 coordinates"),
        (f"2 {SQUARE}", "class 2 is not one of 0 to 1"),
        (f"-1 {SQUARE}", "class -1"),
        (f"0.5 {SQUARE}", "class 0.5"),
        (f"nan {SQUARE}", "class nan"),
        ("0 0.1 0.1 0.5 nan 0.5 0.5", "not finite"),
        ("0 0.1 0.1 0.5 inf 0.5 0.5", "not finite"),
        ("0 10 10 50 10 50 50", "coordinates from 10 to 50; divide"),
        ("0 a b c d e f", "holds what is no number"),
        ("0 0.1 0.1 0.1 0.1 0.1 0.1", "encloses no pixel"),
    ],
)
def test_yolo_lines(tmp_path: Path, line: str, words: str) -> None:
    yolo(tmp_path / "source", f"0 {SQUARE}\n\n{line}\n")
    refused(tmp_path, rf"labels/train/train.txt: line 3: .*{words}")
    summary = convert_data(tmp_path / "source", tmp_path / "out", skip_faulty=True)
    assert summary.objects == {"train2017": 1, "val2017": 1}
    assert len(summary.faults) == 1


def test_yolo_images_without_objects(tmp_path: Path) -> None:
    for name, label in (("a", ""), ("b", None)):
        yolo(tmp_path / name / "source", label)
        summary = convert_data(tmp_path / name / "source", tmp_path / name / "out")
        assert summary.images == {"train2017": 1, "val2017": 1}
        assert summary.objects == {"train2017": 0, "val2017": 1}
    assert summary.notes == ("images without a label file: taken as images without objects (1)",)


@pytest.mark.parametrize(
    "before", ["/content/data/", "../", "../../data/", "C:\\data\\", "other/place/"]
)
def test_yolo_paths_of_another_machine(tmp_path: Path, before: str) -> None:
    yolo(tmp_path / "source", None, train=f"{before}images/train", val=f"{before}images/val")
    done = convert_data(tmp_path / "source", tmp_path / "out")
    assert done.images == {"train2017": 1, "val2017": 1}


def test_yolo_one_folder_beside_the_file(tmp_path: Path) -> None:
    yolo(tmp_path / "source", None, train="../images", val="../images")
    done = convert_data(tmp_path / "source", tmp_path / "out")
    assert sum(done.images.values()) == 2
    refused_root = tmp_path / "other"
    yolo(refused_root / "source", None, train="/content/images", val="images/val")
    refused(refused_root, "leads to /content/images, which does not exist; correct it")


def test_yolo_boxes_on_demand(tmp_path: Path) -> None:
    yolo(tmp_path / "source", "1 0.5 0.5 0.4 0.2\n")
    summary = convert_data(
        tmp_path / "source", tmp_path / "out", options=Options(boxes_as_masks=True)
    )
    assert "rectangles" in summary.notes[0]
    tree = json.loads((tmp_path / "out/annotations/instances_train2017.json").read_text())
    assert tree["annotations"][0]["bbox"] == [9, 8, 12, 4]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"train": "nowhere"}, "data.yaml: 'train' leads to .*nowhere"),
        ({"train": 5}, "data.yaml: 'train' is 5"),
        ({"train": None, "val": None}, "data.yaml: 'train' and 'val' lead to no image"),
        ({"names": {"1": "a"}}, "data.yaml: 'names' must list"),
        ({"names": ["a", "a"]}, "data.yaml: .*twice"),
    ],
)
def test_data_yaml(tmp_path: Path, data: dict[str, Any], words: str) -> None:
    yolo(tmp_path / "source", "", **data)
    refused(tmp_path, words)


def test_images_that_cannot_be_used(tmp_path: Path) -> None:
    yolo(tmp_path / "source", "")
    image = tmp_path / "source" / "images" / "train" / "train.png"
    data = image.read_bytes()
    image.write_bytes(data[: len(data) // 2])
    (image.parent / "empty.png").write_bytes(b"")
    refused(tmp_path, "2 things(.|\n)*empty.png: the file is empty(.|\n)*train.png: damaged")
    lines = tmp_path / "source" / "train.txt"
    lines.write_text("./images/train/gone.png\n")
    tree = {"train": "train.txt", "val": "images/val", "names": ["a"]}
    (tmp_path / "source" / "data.yaml").write_text(json.dumps(tree))
    refused(tmp_path, "gone.png: no such image file")


def labelme(root: Path, **changes: Any) -> None:
    for name in ("x", "y"):
        picture(root / f"{name}.png")
        shape = {"label": "a", "points": [[2, 1], [6, 1], [6, 3]], "shape_type": "polygon"}
        tree = {"shapes": [shape], "imagePath": f"{name}.png", "imageData": None}
        if name == "x":
            tree["shapes"].append({**shape, **changes.pop("shape", {})})
            tree.update(changes)
        (root / f"{name}.json").write_text(json.dumps(tree))


def png(height: int, width: int) -> str:
    buffer = io.BytesIO()
    Image.fromarray(np.ones((height, width), np.uint8)).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"shape": {"points": [[1, 1], [5, 5]]}}, "x.json: shape 1 .*polygon of 2 points"),
        ({"shape": {"points": [[1, 1], [5, float("nan")], [1, 5]]}}, "shape 1 .*finite"),
        ({"shape": {"points": [[1, 1], [5], [1, 5]]}}, "shape 1 .*finite"),
        ({"shape": {"points": None}}, "shape 1 .*no list of points"),
        ({"shape": {"points": [[90, 90], [95, 90], [95, 99]]}}, "shape 1: encloses no pixel"),
        ({"shape": {"points": [[1, 1], [1e9, 1], [1, 5]]}}, "shape 1: .*far outside"),
        ({"shape": {"label": ""}}, "x.json: shape 1: has no label"),
        ({"shape": {"shape_type": "circle", "points": [[1, 1]]}}, "circle needs two points"),
        ({"shape": {"shape_type": "mask", "points": [[1, 1], [5, 5]]}}, "no PNG in base64"),
        (
            {"shape": {"shape_type": "mask", "points": [[1, 1], [5, 5]], "mask": png(5, 6)}},
            "its mask is 5 x 6 .* span 5 x 5",
        ),
        (
            {"shape": {"shape_type": "mask", "points": [[27, 1], [31, 5]], "mask": png(5, 5)}},
            "its mask leaves the image",
        ),
        ({"imagePath": "y.png"}, "y.json: names the image y.png that x.json names too"),
        ({"imageHeight": 21}, r"x.json: says the image is 21 x 30 .* but it is 20 x 30"),
        ({"imagePath": "gone.png"}, "x.json: imagePath 'gone.png' names no file"),
        ({"imagePath": "../../gone.png"}, "x.json: imagePath .* points outside"),
        ({"imagePath": None, "imageData": "!!"}, "x.json: imageData is damaged"),
        ({"imagePath": None, "imageData": "aGVsbG8="}, "x.png: its imageData is no image"),
    ],
)
def test_labelme_entries(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    labelme(tmp_path / "source", **changes)
    refused(tmp_path, words)


def test_labelme_without_a_size(tmp_path: Path) -> None:
    labelme(tmp_path / "source", imageHeight=None, imageWidth=None)
    assert convert_data(tmp_path / "source", tmp_path / "out").images["val2017"] == 1


def test_labelme_folders(tmp_path: Path) -> None:
    labelme(tmp_path / "source")
    (tmp_path / "source" / "z.json").write_text("[1, 2")
    refused(tmp_path, "z.json: not a LabelMe file")
    (tmp_path / "source" / "z.json").unlink()
    (tmp_path / "source" / "y.json").unlink()
    refused(tmp_path, "one image cannot be shared out")


def voc(root: Path) -> dict[str, np.ndarray]:
    for name in ("x", "y"):
        picture(root / "JPEGImages" / f"{name}.png")
    arrays = {key: np.zeros((20, 30), np.uint8) for key in ("Class", "Object")}
    for array in arrays.values():
        array[2:5, 3:9] = 1
    for name in ("x", "y"):
        for key, array in arrays.items():
            save(root, key, array, name)
    (root / "classes.txt").write_text("a\nb\n")
    return arrays


def save(root: Path, key: str, array: np.ndarray, name: str = "x", mode: str = "L") -> None:
    path = root / f"Segmentation{key}" / f"{name}.png"
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(array).convert(mode).save(path)


def _class_out_of_range(root: Path, arrays: dict[str, np.ndarray]) -> None:
    save(root, "Class", arrays["Class"] * 3)


def _two_classes(root: Path, arrays: dict[str, np.ndarray]) -> None:
    arrays["Class"][2, 3] = 2
    save(root, "Class", arrays["Class"])


def _class_without_object(root: Path, arrays: dict[str, np.ndarray]) -> None:
    arrays["Class"][0, 0] = 2
    save(root, "Class", arrays["Class"])


def _wrong_size(root: Path, arrays: dict[str, np.ndarray]) -> None:
    save(root, "Object", arrays["Object"][:, :20])


def _strange_colour(root: Path, arrays: dict[str, np.ndarray]) -> None:
    save(root, "Class", arrays["Class"] * 77, mode="RGB")


def _transparent(root: Path, arrays: dict[str, np.ndarray]) -> None:
    save(root, "Class", arrays["Class"], mode="RGBA")


def _missing_mask(root: Path, arrays: dict[str, np.ndarray]) -> None:
    (root / "SegmentationClass" / "x.png").unlink()


def _missing_image(root: Path, arrays: dict[str, np.ndarray]) -> None:
    (root / "JPEGImages" / "x.png").unlink()


def _damaged_mask(root: Path, arrays: dict[str, np.ndarray]) -> None:
    (root / "SegmentationObject" / "x.png").write_bytes(b"\x89PNG")


def _list_leads_outside(root: Path, arrays: dict[str, np.ndarray]) -> None:
    picture(root.parent / "source" / "other.png")
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    (root / "ImageSets" / "Segmentation" / "train.txt").write_text("../other\n")


def _bad_colour_table(root: Path, arrays: dict[str, np.ndarray]) -> None:
    (root / "labelmap.txt").write_text("a:1,2::\n")


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (_class_out_of_range, r"SegmentationObject/x.png: object 1: has the classes \[3\]"),
        (_two_classes, r"object 1: has the classes \[1, 2\] in x.png"),
        (_class_without_object, "SegmentationClass/x.png: 1 pixels have a class but no object"),
        (_wrong_size, "SegmentationObject/x.png: the mask is 20 x 20 .* is 20 x 30"),
        (_strange_colour, r"SegmentationClass/x.png: has the colour \(77, 77, 77\)"),
        (_transparent, "SegmentationClass/x.png: .* this one is RGBA"),
        (_missing_mask, "SegmentationClass/x.png: no such mask PNG"),
        (_missing_image, "JPEGImages: no image called 'x'"),
        (_damaged_mask, "SegmentationObject/x.png: damaged mask"),
        (_list_leads_outside, "JPEGImages: no image called '../other'"),
        (_bad_colour_table, "'a:1,2::' must be name:red,green,blue"),
    ],
)
def test_voc_files(tmp_path: Path, break_it: Callable[..., None], words: str) -> None:
    root = tmp_path / "source"
    break_it(root, voc(root))
    refused(tmp_path, words)


def test_mask_folders(tmp_path: Path) -> None:
    root = tmp_path / "source"
    for name in ("x", "y"):
        picture(root / "images" / f"{name}.png")
        (root / "masks").mkdir(exist_ok=True)
        Image.fromarray(np.full((20, 30), 2, np.uint8)).save(root / "masks" / f"{name}.png")
    refused(tmp_path, "no names.txt")
    (root / "names.txt").write_text("a\n\nb\n")
    refused(tmp_path, "names.txt: line 2 is empty")
    (root / "names.txt").write_text("\ufeffa\nb\n\n", encoding="utf-8")
    refused(tmp_path, "masks/x.png: has pixels of class 2, and the names are those of 0 to 1")
    refused(tmp_path, "no image is left", skip_faulty=True)
    refused(tmp_path, "every class is stuff", options=Options(stuff=("a", "b")))
    refused(tmp_path, "others.txt: no such file", options=Options(names=root / "others.txt"))


def test_what_is_no_data_set(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    refused(tmp_path, "looks like no format")
    for form, words in (
        ("yolo", "no data.yaml"),
        ("labelme", "no LabelMe file"),
        ("voc", "SegmentationClass: no such folder"),
        ("masks", "images: no such folder"),
    ):
        refused(tmp_path, words, form=form)
    refused(tmp_path, "not one of auto, yolo", form="cvat")
    refused(tmp_path, "above 0 and below 1", val_share=1.0)
    with pytest.raises(ValueError, match="no such folder"):
        convert_data(tmp_path / "none", tmp_path / "out")


def test_the_command_says_faults_in_sentences(tmp_path: Path) -> None:
    yolo(tmp_path / "source", "0 0.5 0.5 0.5 0.5\n" * 30)
    words = ["convert-data", str(tmp_path / "source"), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2
    assert "30 things cannot be used" in done.output
    assert len(re.findall(r"line \d+: is a box", done.output)) == 20
    assert "and 10 more" in done.output
    done = CliRunner().invoke(app, [*words, "--boxes-as-masks"])
    assert done.exit_code == 0
    assert "rectangles (30)" in done.output
