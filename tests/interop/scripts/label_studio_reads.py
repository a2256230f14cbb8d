"""Run by the interop interpreter: Label Studio's own code validates and decodes our tasks."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import label_studio_sdk
import numpy as np
from label_studio_sdk.converter import brush
from label_studio_sdk.converter.converter import Converter, Format
from label_studio_sdk.label_interface import LabelInterface
from PIL import Image
from results import CATEGORIES, crowd, hard_masks, make

from unisolo.interop.label_studio import encode_brush, label_studio_config

folder = Path(sys.argv[1])
config = label_studio_config(CATEGORIES)
interface = LabelInterface(config)
interface.validate()

for result in (make(np.zeros((0, 9, 9))), make(hard_masks()), crowd(30)):
    height, width = result.image_size
    task = json.loads(json.dumps(result.to_label_studio("/street.jpg")))
    (prediction,) = task["predictions"]
    assert interface.validate_prediction(prediction, return_errors=True) == []
    masks = result.numpy()["masks"]
    brushes = [r for r in prediction["result"] if r["type"] == "brushlabels"]
    boxes = [r for r in prediction["result"] if r["type"] == "rectanglelabels"]
    assert len(brushes) == len(boxes) == len(result)
    for region, mask in zip(brushes, masks, strict=True):
        values = brush.decode_rle(region["value"]["rle"]).reshape(height, width, 4)
        assert np.array_equal(values, np.repeat(mask[..., None], 4, axis=2) * 255)
    for region, box in zip(boxes, result.boxes.tolist(), strict=True):
        value = region["value"]
        left, top = value["x"] * width / 100, value["y"] * height / 100
        right = left + value["width"] * width / 100
        bottom = top + value["height"] * height / 100
        assert np.allclose([left, top, right, bottom], box)
    only_masks = result.to_label_studio("/street.jpg", boxes=False)["predictions"][0]["result"]
    assert [region["type"] for region in only_masks] == ["brushlabels"] * len(result)

# Runs of every length at which the packing changes, and of more than 65536 values.
for pixels in (1, 2, 3, 4, 5, 63, 64, 65, 16383, 16384, 16385, 40000):
    mask = np.zeros((1, 2 * pixels + 1), bool)
    mask[:, pixels : 2 * pixels] = True
    values = brush.decode_rle(encode_brush(mask)).reshape(-1, 4)[:, 3] > 0
    assert np.array_equal(values, mask[0]), pixels
    theirs = brush.encode_rle(np.repeat(mask[0].astype(np.uint8) * 255, 4))
    assert len(encode_brush(mask)) <= len(theirs)

# A prediction that was accepted is an annotation; their converter makes COCO of it.
masks = np.zeros((2, 200, 240), bool)
masks[0, 20:90, 10:90] = True
masks[1, 110:190, 120:200] = True
result = make(masks)
Image.new("RGB", (240, 200)).save(folder / "street.png")
task = result.to_label_studio(str(folder / "street.png"))
for kind, only in (("brush", "brushlabels"), ("boxes", "rectanglelabels")):
    regions = [r for r in task["predictions"][0]["result"] if r["type"] == only]
    accepted = {"id": 1, "data": task["data"], "annotations": [{"id": 1, "result": regions}]}
    exported = folder / f"{kind}.json"
    exported.write_text(json.dumps([accepted]))
    converter = Converter(config, str(folder), download_resources=False)
    form = Format.BRUSH_TO_COCO if kind == "brush" else Format.COCO
    converter.convert(str(exported), str(folder / kind), form, is_dir=False)
    (written,) = (folder / kind).glob("result*.json")
    coco = json.loads(written.read_text())
    names = {category["id"]: category["name"] for category in coco["categories"]}
    assert [names[a["category_id"]] for a in coco["annotations"]] == [
        CATEGORIES[label].name for label in result.labels.tolist()
    ]
    for annotation, box in zip(coco["annotations"], result.boxes.tolist(), strict=True):
        x, y, w, h = np.array(annotation["bbox"], dtype=float).reshape(-1)[:4]
        assert np.allclose([x, y, x + w, y + h], box, atol=1), (kind, annotation["bbox"])
print("label-studio-sdk", label_studio_sdk.__version__, "decoded every mask")
