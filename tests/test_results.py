from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from unisolo import encoding
from unisolo.categories import Categories, Category
from unisolo.encoding import encode_rle
from unisolo.ops.boxes import masks_to_boxes
from unisolo.ops.masks import pack_bits
from unisolo.results import Result, Segment

pytestmark = pytest.mark.filterwarnings(
    # pycocotools' own, under numpy 2
    "ignore:.*__array__.*:DeprecationWarning"
)

CATEGORIES = Categories(
    [Category(7, "cat"), Category(90, "dog"), Category(3, "sky", isthing=False)]
)
HEIGHT, WIDTH = 11, 13  # not multiples of 8


def make(masks: np.ndarray, labels: Any = None, scores: Any = None, **fields: Any) -> Result:
    """Result of masks [N, H, W]; labels default to 0, scores fall from 1."""
    count = len(masks)
    tensor = torch.from_numpy(masks.astype(bool))
    labels = [0] * count if labels is None else labels
    scores = [1 - n / (count + 1) for n in range(count)] if scores is None else scores
    return Result(
        image_size=(masks.shape[1], masks.shape[2]),
        categories=CATEGORIES,
        scores=torch.tensor(scores, dtype=torch.float32),
        labels=torch.tensor(labels, dtype=torch.int64),
        boxes=masks_to_boxes(tensor),
        packed_masks=pack_bits(tensor),
        **fields,
    )


@pytest.fixture
def three() -> Result:
    """A ring (hole inside) of a cat, one pixel of a dog in the last corner, nothing of a cat."""
    masks = np.zeros((3, HEIGHT, WIDTH), bool)
    masks[0, 2:7, 3:9] = True
    masks[0, 4, 5:7] = False
    masks[1, -1, -1] = True
    panoptic = torch.zeros(HEIGHT, WIDTH, dtype=torch.int32)
    panoptic[torch.from_numpy(masks[0])] = 1
    panoptic[0, :] = 70_000  # needs all three bytes of the PNG
    segments = (Segment(1, 7, 0, True, 0.9, 28), Segment(70_000, 3, 2, False, 1.0, WIDTH))
    return make(masks, [0, 1, 0], [0.9, 0.5, 0.5], panoptic_seg=panoptic, segments_info=segments)


@pytest.fixture
def empty() -> Result:
    return make(
        np.zeros((0, HEIGHT, WIDTH), bool),
        panoptic_seg=torch.zeros(HEIGHT, WIDTH, dtype=torch.int32),
        segments_info=(),
    )


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        (0, [0]),
        (-1, [2]),
        (np.int64(1), [1]),
        (torch.tensor(2), [2]),
        (slice(None), [0, 1, 2]),
        (slice(1, None), [1, 2]),
        (slice(None, None, -1), [2, 1, 0]),
        ([], []),
        ([2, 0, 2], [2, 0, 2]),
        (np.array([-1, 0]), [2, 0]),
        ([True, False, True], [0, 2]),
        (np.array([False, True, False]), [1]),
        (torch.tensor([False, False, False]), []),
    ],
)
def test_index_selects_instances_and_keeps_the_panoptic_map(
    three: Result, index: Any, expected: list[int]
) -> None:
    chosen = three[index]
    assert len(chosen) == len(expected)
    for name in ("scores", "labels", "boxes", "packed_masks", "masks", "category_ids"):
        assert torch.equal(getattr(chosen, name), getattr(three, name)[expected]), name
    assert chosen.panoptic_seg is three.panoptic_seg
    assert chosen.segments_info is three.segments_info


@pytest.mark.parametrize(
    ("index", "error"),
    [
        (3, IndexError),
        ([0, -4], IndexError),
        ([True, False], IndexError),
        (True, TypeError),
        ([0.5], TypeError),
        (torch.zeros(3, 1, dtype=torch.bool), TypeError),
    ],
)
def test_wrong_index_is_refused(three: Result, index: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        three[index]


def test_empty_result_indexes_and_iterates(empty: Result) -> None:
    assert list(empty) == []
    assert len(empty[:]) == len(empty[[]]) == len(empty.filter(min_score=0.1)) == 0
    with pytest.raises(IndexError):
        empty[0]


def test_iteration_gives_single_instances(three: Result) -> None:
    assert [one.scores.tolist() for one in three] == [[score] for score in three.scores.tolist()]


def test_filter(three: Result) -> None:
    assert three.filter(min_score=0.5).scores.tolist() == three.scores.tolist()  # inclusive
    assert len(three.filter(min_score=0.51)) == 1
    assert three.filter(categories=["dog"]).labels.tolist() == [1]
    assert three.filter(categories=[7]).labels.tolist() == [0, 0]
    assert len(three.filter(min_score=0.6, categories=["dog", "cat"])) == 1
    assert len(three.filter(categories=[])) == 0
    with pytest.raises(ValueError, match="did you mean 'dog'"):
        three.filter(categories=["dogg"])
    with pytest.raises(ValueError, match="stuff"):
        three.filter(categories=["sky"])


def test_frozen_and_picklable(three: Result) -> None:
    with pytest.raises(AttributeError):
        three.scores = three.labels  # type: ignore[misc]
    again = pickle.loads(pickle.dumps(three))
    assert torch.equal(again.packed_masks, three.packed_masks)
    assert again.categories == three.categories


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("labels", torch.zeros(2, dtype=torch.int64)),
        ("labels", torch.zeros(3, dtype=torch.int32)),
        ("boxes", torch.zeros(3, 5)),
        ("scores", torch.zeros(())),
        ("packed_masks", torch.zeros(3, HEIGHT, WIDTH, dtype=torch.uint8)),
        ("panoptic_seg", torch.zeros(WIDTH, HEIGHT, dtype=torch.int32)),
    ],
)
def test_wrong_shape_or_dtype_names_the_field(three: Result, field: str, value: Any) -> None:
    fields = {**{name: getattr(three, name) for name in three.__dataclass_fields__}, field: value}
    with pytest.raises(ValueError, match=field):
        Result(**fields)
    with pytest.raises(ValueError, match="come together"):
        Result(**{**fields, field: getattr(three, field), "segments_info": None})


def test_numpy_and_cpu(three: Result) -> None:
    fields = three.numpy()
    assert fields["masks"].dtype == bool
    assert fields["masks"].sum(axis=(1, 2)).tolist() == [28, 1, 0]
    assert fields["category_ids"].tolist() == [7, 90, 7]
    assert fields["segments_info"][1]["category_id"] == 3
    assert fields["panoptic_seg"].dtype == np.int32
    assert torch.equal(three.cpu().scores, three.scores)
    boxes_only = Result(three.image_size, CATEGORIES, three.scores, three.labels, three.boxes)
    assert boxes_only.masks is None
    assert boxes_only.numpy()["masks"] is None
    assert boxes_only.cpu()[0].packed_masks is None
    assert "segmentation" not in boxes_only.to_coco(1)[0]


def test_to_coco_is_json_that_pycocotools_loads(three: Result) -> None:
    from pycocotools.coco import COCO

    entries = three.to_coco(image_id=42)
    truth = COCO()
    truth.dataset = {
        "images": [{"id": 42, "height": HEIGHT, "width": WIDTH}],
        "categories": CATEGORIES.to_coco(),
        "annotations": [],
    }
    truth.createIndex()
    loaded = truth.loadRes(json.loads(json.dumps(entries)))
    annotations = loaded.loadAnns(loaded.getAnnIds())
    masks = np.stack([loaded.annToMask(entry) for entry in annotations])
    assert np.array_equal(masks.astype(bool), three.numpy()["masks"])
    assert [entry["category_id"] for entry in annotations] == [7, 90, 7]
    assert [entry["bbox"] for entry in annotations] == [
        [3, 2, 6, 5],
        [WIDTH - 1, HEIGHT - 1, 1, 1],
        [0, 0, 0, 0],
    ]


def test_empty_result_converts(empty: Result, tmp_path: Path) -> None:
    assert empty.to_coco(1) == []
    annotation = empty.save_panoptic(tmp_path)
    assert annotation == {
        "image_id": "panoptic",
        "file_name": "panoptic.png",
        "segments_info": [],
    }
    assert not np.array(Image.open(tmp_path / "panoptic.png")).any()
    assert len(empty.to_supervision()) == 0


@given(
    st.integers(0, 4), st.integers(1, 20), st.integers(1, 35), st.floats(0, 1), st.integers(0, 99)
)
def test_masks_survive_the_way_through_rle(
    count: int, height: int, width: int, density: float, seed: int
) -> None:
    """Masks -> Result -> COCO -> pycocotools gives the masks back, and its very own encoding."""
    from pycocotools import mask as rle_ops

    masks = np.random.default_rng(seed).random((count, height, width)) < density
    entries = json.loads(json.dumps(make(masks).to_coco("name")))
    assert len(entries) == count
    for mask, entry in zip(masks, entries, strict=True):
        assert np.array_equal(rle_ops.decode(entry["segmentation"]).astype(bool), mask)
        expected = rle_ops.encode(np.asfortranarray(mask.astype(np.uint8)))
        assert entry["segmentation"]["counts"] == expected["counts"].decode()
        assert entry["segmentation"]["size"] == [height, width]
        x, y, w, h = entry["bbox"]
        assert rle_ops.toBbox(expected).tolist() == [x, y, w, h]


def test_a_pickled_result_takes_only_its_own_memory() -> None:
    block = torch.zeros(50, 100, 125, dtype=torch.uint8)
    fields = {"scores": torch.ones(2), "labels": torch.zeros(2, dtype=torch.int64)}
    result = Result(
        (100, 1000), CATEGORIES, boxes=torch.ones(2, 4), packed_masks=block[:2], **fields
    )
    written = pickle.dumps(result)
    assert len(written) < 3 * 100 * 125 < block.numel()
    again = pickle.loads(written)
    assert torch.equal(again.packed_masks, result.packed_masks)
    assert again.categories == CATEGORIES


def test_long_runs_take_several_letters() -> None:
    from pycocotools import mask as rle_ops

    masks = np.zeros((5, 700, 900), dtype=bool)
    masks[1] = True
    masks[2, 0, 0] = masks[2, -1, -1] = True
    masks[3, 10:600, 20:850] = np.random.default_rng(1).random((590, 830)) < 0.5
    masks[4, :, 100:101] = masks[4, :, 800:] = True
    rles = encode_rle(np.packbits(masks, axis=-1), 900)
    for mask, rle in zip(masks, rles, strict=True):
        expected = rle_ops.encode(np.asfortranarray(mask.astype(np.uint8)))
        assert rle == {"size": [700, 900], "counts": expected["counts"].decode()}


@pytest.mark.parametrize("large_bytes", [0, 1 << 62], ids=["packed", "unpacked"])
def test_each_way_to_write_rle(monkeypatch: pytest.MonkeyPatch, large_bytes: int) -> None:
    from pycocotools import mask as rle_ops

    monkeypatch.setattr(encoding, "_LARGE_BYTES", large_bytes)
    monkeypatch.setattr(encoding, "_BUSY_SHARE", 1)
    rng = np.random.default_rng(3)
    for height, width in [(1, 1), (1, 9), (7, 1), (5, 8), (13, 17), (40, 70)]:
        masks = (
            rng.random((6, height, width)) < np.array([0, 0.02, 0.3, 0.5, 0.9, 1])[:, None, None]
        )
        expected = [
            {"size": [height, width], "counts": str(rle["counts"], "ascii")}
            for rle in (rle_ops.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in masks)
        ]
        assert encode_rle(np.packbits(masks, axis=-1), width) == expected


def test_bits_beyond_the_width_are_ignored(three: Result) -> None:
    dirty = three.packed_masks.clone()
    dirty[..., -1] |= 0b111
    fields = {name: getattr(three, name) for name in three.__dataclass_fields__}
    assert Result(**{**fields, "packed_masks": dirty}).to_coco(1) == three.to_coco(1)


def test_panoptic_png_reads_back_as_coco_ids(three: Result, tmp_path: Path) -> None:
    utils = pytest.importorskip("panopticapi.utils", reason="panopticapi-lite is not installed")

    annotation = three.save_panoptic(tmp_path / "new", image_id=42, file_name="sub/a.png")
    files = [path for path in (tmp_path / "new").rglob("*") if path.is_file()]
    assert files == [tmp_path / "new" / "sub" / "a.png"]  # nothing temporary stays
    ids = utils.rgb2id(np.array(Image.open(files[0])))
    assert np.array_equal(ids, three.panoptic_seg.numpy())
    assert annotation["image_id"] == 42
    assert annotation["file_name"] == "sub/a.png"
    assert [(s["id"], s["category_id"], s["area"]) for s in annotation["segments_info"]] == [
        (1, 7, 28),
        (70_000, 3, WIDTH),
    ]
    json.dumps(annotation)


def test_panoptic_ids_must_fit_the_table(three: Result) -> None:
    fields = {name: getattr(three, name) for name in three.__dataclass_fields__}
    unlisted = Result(**{**fields, "segments_info": three.segments_info[:1]})
    with pytest.raises(ValueError, match=r"\[70000\] are not listed"):
        unlisted.to_panoptic(1)
    unpainted = Result(**{**fields, "panoptic_seg": torch.zeros_like(three.panoptic_seg)})
    with pytest.raises(ValueError, match="have no pixel"):
        unpainted.to_panoptic(1)
    void = Result(**{**fields, "panoptic_seg": three.panoptic_seg - 1})
    with pytest.raises(ValueError, match="must be 0 to"):
        void.to_panoptic(1)
    none = Result(**{**fields, "panoptic_seg": None, "segments_info": None})
    with pytest.raises(ValueError, match="task='panoptic'"):
        none.save_panoptic("nowhere")


def test_to_supervision(three: Result) -> None:
    supervision = pytest.importorskip("supervision")

    detections = three.to_supervision()
    assert isinstance(detections, supervision.Detections)
    assert np.array_equal(detections.xyxy, three.boxes.numpy())
    assert np.array_equal(np.asarray(detections.mask), three.numpy()["masks"])
    assert detections.class_id.tolist() == [0, 1, 0]
    assert detections.data["class_name"].tolist() == ["cat", "dog", "cat"]
    assert len(detections[detections.confidence > 0.6]) == 1
    assert detections[detections.class_id == 1].data["category_id"].tolist() == [90]


def test_results_need_no_heavy_import() -> None:
    code = (
        "import sys, unisolo.results, unisolo.evaluation;"
        "heavy = {'hotcoco', 'pycocotools', 'supervision', 'matplotlib', 'panopticapi'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_repr_is_short(three: Result) -> None:
    assert repr(three) == "Result(3 instances, masks, 2 panoptic segments, image 11 x 13)"
