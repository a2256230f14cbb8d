"""Run by the interop interpreter: FiftyOne takes our labels and gives our masks back.

No database is started: samples and labels are serialised as FiftyOne stores them, and its own COCO
writer makes masks of them.
"""

from __future__ import annotations

import json
from dataclasses import replace

import fiftyone as fo
import fiftyone.utils.coco as fouc
import numpy as np
from results import CATEGORIES, crowd, hard_masks, make, panoptic_result

from unisolo.interop.fiftyone import mask_targets

# Boxes from a file may have fractions and leave the image; the masks must not suffer.
wide = make(hard_masks())
loose = replace(wide, boxes=wide.boxes + wide.boxes.new_tensor([-3.4, -0.6, 0.5, 2.0]))

for result in (make(np.zeros((0, 9, 9))), wide, loose, panoptic_result(), crowd()):
    height, width = result.image_size
    sample = fo.Sample(filepath="street.jpg", **result.to_fiftyone())
    again = fo.Sample.from_dict(json.loads(json.dumps(sample.to_dict(), default=str)))
    assert len(again["instances"].detections) == len(result)
    masks = result.numpy()["masks"]
    metadata = fo.ImageMetadata(width=width, height=height)
    for number, detection in enumerate(sample["instances"].detections):
        assert isinstance(detection, fo.Detection)
        detection.validate()
        assert detection.label == CATEGORIES[int(result.labels[number])].name
        assert detection.confidence == float(result.scores[number])
        whole = detection.to_segmentation(frame_size=(width, height)).mask > 0
        assert np.array_equal(whole, masks[number]), number
        written = fouc.COCOObject.from_label(detection, metadata, iscrowd="none").to_anno_dict()
        x, y, w, h = written["bbox"]
        own = (wide if result is loose else result).boxes[number].numpy()
        assert np.allclose([x, y, x + w, y + h], own, atol=0.01)
    if result.panoptic_seg is not None:
        segmentation = sample["panoptic"]
        assert isinstance(segmentation, fo.Segmentation)
        segmentation.validate()
        expected = np.zeros(result.image_size, int)
        for segment in result.segments_info:
            expected[result.panoptic_seg.numpy() == segment.id] = segment.label + 1
        assert np.array_equal(segmentation.mask, expected)
        targets = mask_targets(CATEGORIES)
        assert targets == {1: "cat", 2: 'dog & "friend"', 3: "sky"}
        found = segmentation.to_detections(mask_targets=targets, mask_types="stuff")
        assert {d.label for d in found.detections} == set(targets.values())
    else:
        assert "panoptic" not in sample.field_names

print("fiftyone", fo.__version__, "read every mask")
