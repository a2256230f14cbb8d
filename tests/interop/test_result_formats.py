"""LabelMe, YOLO, supervision and pandas: what others read of our results."""

from __future__ import annotations

import base64
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from PIL import Image
from pycocotools import mask as coco_mask
from results import CATEGORIES, crowd, hard_masks, iou, make, random_masks

from unisolo.categories import Categories
from unisolo.interop.outlines import join_rings, trace_mask
from unisolo.results import Result

pytestmark = pytest.mark.filterwarnings("ignore:.*__array__.*:DeprecationWarning")


def rasterise(polygon: Any, height: int, width: int) -> np.ndarray:
    values = np.asarray(polygon, dtype=float).reshape(-1).tolist()
    rle = coco_mask.merge(coco_mask.frPyObjects([values], height, width))
    return coco_mask.decode(rle).astype(bool)


@given(random_masks(most=1))
def test_outlines_enclose_the_very_pixels(masks: np.ndarray) -> None:
    for mask in masks:
        parts = trace_mask(mask)
        layers = [
            sign * rasterise(ring, *mask.shape).astype(int)
            for part in parts
            for sign, ring in [(1, part.outer), *((-1, hole) for hole in part.holes)]
        ]
        assert np.array_equal(sum(layers, np.zeros(mask.shape, int)), mask.astype(int))
        if parts:
            assert np.array_equal(rasterise(join_rings(parts), *mask.shape), mask)


def test_outlines_of_simple_shapes() -> None:
    assert trace_mask(np.zeros((4, 5), bool)) == []
    mask = np.zeros((6, 9), bool)
    mask[2, 3] = True
    (dot,) = trace_mask(mask)
    assert sorted(map(tuple, dot.outer.tolist())) == [(3, 2), (3, 3), (4, 2), (4, 3)]
    mask[:] = True
    mask[2, 3:5] = False
    (frame,) = trace_mask(mask)
    assert sorted(map(tuple, frame.outer.tolist())) == [(0, 0), (0, 6), (9, 0), (9, 6)]
    assert sorted(map(tuple, frame.holes[0].tolist())) == [(3, 2), (3, 3), (5, 2), (5, 3)]


def test_yolo_lines() -> None:
    result = make(hard_masks())
    height, width = result.image_size
    lines = result.to_yolo()
    assert [int(line.split()[0]) for line in lines] == result.labels.tolist()
    for line, mask in zip(lines, result.numpy()["masks"], strict=True):
        values = np.array(line.split()[1:], dtype=float)
        assert 0 <= values.min() <= values.max() <= 1
        assert np.array_equal(rasterise(values.reshape(-1, 2) * [width, height], *mask.shape), mask)
    assert make(np.zeros((2, 5, 5))).to_yolo() == []
    boxes = Result((10, 20), CATEGORIES, torch.ones(1), torch.ones(1).long(), torch.ones(1, 4) * 2)
    boxes.boxes[0, 2:] = torch.tensor([12.0, 7.0])
    assert boxes.to_yolo() == ["1 0.35 0.45 0.5 0.5"]


def test_supervision_reads_the_yolo_lines(tmp_path: Path) -> None:
    """Its rasteriser draws outlines too, so masks grow by up to a pixel to the right and below."""
    supervision = pytest.importorskip("supervision")
    masks = np.zeros((3, 200, 240), bool)
    y, x = np.ogrid[:200, :240]
    masks[0] = (y - 90) ** 2 + (x - 100) ** 2 < 80**2
    masks[1] = masks[0] & ((y - 90) ** 2 + (x - 100) ** 2 > 40**2)
    masks[2, 20:90, 10:90] = masks[2, 110:190, 120:200] = True
    result = make(masks)
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    Image.new("RGB", (240, 200)).save(tmp_path / "images" / "a.png")
    (tmp_path / "labels" / "a.txt").write_text("\n".join(result.to_yolo()) + "\n")
    names = [category.name for category in CATEGORIES.things]
    (tmp_path / "data.yaml").write_text(json.dumps({"names": names}))
    dataset = supervision.DetectionDataset.from_yolo(
        str(tmp_path / "images"), str(tmp_path / "labels"), str(tmp_path / "data.yaml")
    )
    (detections,) = dataset.annotations.values()
    assert detections.class_id.tolist() == result.labels.tolist()
    found = [iou(np.asarray(m), mask) for m, mask in zip(detections.mask, masks, strict=True)]
    assert found[0] > 0.98
    assert min(found) > 0.95, found
    assert [c.name for c in Categories.from_names(dataset.classes)] == names


def test_labelme_shapes_hold_every_pixel() -> None:
    result = make(hard_masks())
    tree = json.loads(json.dumps(result.to_labelme("photos/street.jpg")))
    assert {
        "version", "flags", "shapes", "imagePath", "imageData", "imageHeight", "imageWidth"
    } == set(tree)  # fmt: skip
    assert (tree["imageHeight"], tree["imageWidth"]) == result.image_size
    masks = result.numpy()["masks"]
    shapes = tree["shapes"]
    assert [s["shape_type"] for s in shapes] == ["mask", "polygon", "polygon", "polygon", "mask",
                                                 "polygon"]  # fmt: skip
    assert [s["group_id"] for s in shapes] == [None, None, 3, 3, None, None]
    for number, members in enumerate([[0], [1], [2, 3], [4], [5]]):
        found = np.zeros(result.image_size, bool)
        for shape in (shapes[member] for member in members):
            assert shape["label"] == CATEGORIES[int(result.labels[number])].name
            assert shape["score"] == float(result.scores[number])
            if shape["shape_type"] == "mask":
                (left, top), (right, bottom) = np.array(shape["points"], int)
                cut = np.array(Image.open(io.BytesIO(base64.b64decode(shape["mask"])))) > 0
                found[top : bottom + 1, left : right + 1] |= cut  # LabelMe's ends are inside
            else:
                found |= rasterise(shape["points"], *result.image_size)
        assert np.array_equal(found, masks[number])


def test_supervision_reads_the_labelme_file(tmp_path: Path) -> None:
    supervision = pytest.importorskip("supervision")
    masks = np.zeros((2, 200, 240), bool)
    masks[0, 20:90, 10:90] = masks[0, 110:190, 120:200] = True
    masks[1, 30:180, 50:200] = True
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    Image.new("RGB", (240, 200)).save(tmp_path / "images" / "a.png")
    tree = make(masks).to_labelme("../images/a.png")
    (tmp_path / "labels" / "a.json").write_text(json.dumps(tree))
    if not hasattr(supervision.DetectionDataset, "from_labelme"):
        pytest.skip("this supervision does not read LabelMe files")
    dataset = supervision.DetectionDataset.from_labelme(
        str(tmp_path / "images"), str(tmp_path / "labels")
    )
    (detections,) = dataset.annotations.values()
    assert len(detections) == 2  # two parts, one object
    found = [iou(np.asarray(m), mask) for m, mask in zip(detections.mask, masks, strict=True)]
    assert min(found) > 0.97, found


def test_boxes_become_labelme_rectangles_and_empty_results_no_shapes() -> None:
    assert make(np.zeros((0, 5, 5))).to_labelme("a.jpg")["shapes"] == []
    assert make(np.zeros((1, 5, 5))).to_labelme("a.jpg")["shapes"] == []
    boxes = torch.tensor([[1.0, 2, 3, 4]])
    result = Result((10, 20), CATEGORIES, torch.ones(1), torch.ones(1).long(), boxes)
    (shape,) = result.to_labelme("a.jpg")["shapes"]
    assert shape["shape_type"] == "rectangle"
    assert shape["points"] == [[1, 2], [3, 4]]


def test_pandas_rows() -> None:
    pandas = pytest.importorskip("pandas")
    result = crowd()
    frame = result.to_pandas(image_id="street")
    assert isinstance(frame, pandas.DataFrame)
    assert frame.columns.tolist() == [
        "image_id", "category_id", "category", "score", "x1", "y1", "x2", "y2", "area"
    ]  # fmt: skip
    assert frame["image_id"].unique().tolist() == ["street"]
    assert frame["area"].tolist() == result.numpy()["masks"].sum((1, 2)).tolist()
    assert np.array_equal(frame[["x1", "y1", "x2", "y2"]], result.boxes.numpy())
    assert np.array_equal(frame["score"], result.scores.numpy())
    assert frame.groupby("category").size().to_dict() == {"cat": 100, 'dog & "friend"': 100}
    empty = make(np.zeros((0, 5, 5))).to_pandas()
    assert "image_id" not in empty
    assert (len(empty), empty["area"].dtype) == (0, "float64")
    one = Result((9, 9), CATEGORIES, torch.ones(1), torch.zeros(1).long(), torch.ones(1, 4) * 3)
    one.boxes[0, 2:] = 5
    assert one.to_pandas()["area"].tolist() == [4]


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    result = make(np.zeros((0, 5, 5)))
    for package in ("fiftyone", "pandas", "supervision"):
        monkeypatch.setitem(sys.modules, package, None)  # what makes an import fail
        with pytest.raises(ImportError, match=f"to_{package} needs {package}: pip install"):
            getattr(result, f"to_{package}")()
