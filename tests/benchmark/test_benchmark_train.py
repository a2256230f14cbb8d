"""The training benchmark: its data, its peer's inputs, and one small measurement."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from assign_twin import make_target, rectangles
from tiny_model import VALUES

from unisolo.benchmark.mask_rcnn import build_mask_rcnn, mask_rcnn_inputs
from unisolo.benchmark.train.crowded import SIDE, CrowdedShapes
from unisolo.benchmark.train.report import PEER, TrainReport, TrainRow, train_table
from unisolo.data import CocoInstance
from unisolo.data.loader import collate
from unisolo.models import TimmBackbone
from unisolo.structures import Batch, ImageMeta, Sample

ROOT = Path(__file__).resolve().parents[2]


def test_crowded_images_are_sixteen_scenes_with_all_their_objects(tmp_path: Path) -> None:
    crowded = CrowdedShapes(tmp_path, 20, (32, 44), None)
    scenes = CocoInstance.from_root(tmp_path, "train2017")
    assert len(crowded) == 20 and crowded.categories == scenes.categories
    raw = crowded.read(7)
    assert raw.image.shape == (SIDE * 32, SIDE * 44, 3) and raw.target is not None
    objects = 0
    for place in range(SIDE * SIDE):
        scene = scenes.read((7 + 3 * place) % 20)
        assert scene.target is not None
        row, column = divmod(place, SIDE)
        window = np.s_[row * 32 : (row + 1) * 32, column * 44 : (column + 1) * 44]
        assert np.array_equal(raw.image[window], scene.image)
        assert np.array_equal(raw.target.crowd_map[window], scene.target.crowd_map)
        for number, label in enumerate(scene.target.labels):
            wanted = (scene.target.object_map == number + 1).any(0)
            found = (raw.target.object_map == objects + 1).any(0)
            assert np.array_equal(found[window], wanted) and found.sum() == wanted.sum()
            assert raw.target.labels[objects] == label
            objects += 1
    assert objects == len(raw.target.labels) == raw.target.object_map.max() > 20
    sample = crowded[7]
    assert sample.target is not None and len(sample.target) == objects


def small_batch() -> Batch:
    masks = rectangles((40, 56), [(4, 4, 30, 30), (20, 10, 50, 36)])  # overlapping: two layers
    samples = []
    for chosen in (masks, masks[:0]):
        meta = ImageMeta(len(samples), "", (40, 56), (40, 56))
        image = torch.randint(0, 256, (3, 40, 56), dtype=torch.uint8)
        samples.append(Sample(image, meta, make_target(chosen, [2, 0][: len(chosen)])))
    return collate(samples)


def test_the_peer_gets_the_same_pixels_objects_and_no_padding() -> None:
    batch = small_batch()
    assert batch.images.shape[-2:] == (64, 64)
    images, targets = mask_rcnn_inputs(batch)
    for image, padded in zip(images, batch.images, strict=True):
        assert torch.equal(image, padded[:, :40, :56].float())
    masks = rectangles((40, 56), [(4, 4, 30, 30), (20, 10, 50, 36)])
    assert np.array_equal(targets[0]["masks"].numpy(), masks.astype(np.uint8))
    assert targets[0]["labels"].tolist() == [3, 1]
    assert targets[0]["boxes"].tolist() == [[4, 4, 30, 30], [20, 10, 50, 36]]
    assert [len(values) for values in targets[1].values()] == [0, 0, 0]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_peer_trains_every_part_with_boxes_in_float32(dtype: torch.dtype) -> None:
    model = build_mask_rcnn(TimmBackbone("test_resnet"), 3, 64).train()
    # The lighter of torchvision's two: a baseline that is slow flatters us.
    assert type(model.roi_heads.box_head).__name__ == "TwoMLPHead"
    assert not any(isinstance(part, torch.nn.BatchNorm2d) for part in model.backbone.fpn.modules())
    anchors = []
    model.rpn.anchor_generator.register_forward_hook(lambda *found: anchors.append(found[-1]))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        losses = model(*mask_rcnn_inputs(small_batch()))
    assert {"loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness"} < set(losses)
    torch.stack([loss.float() for loss in losses.values()]).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert all(values.dtype == torch.float32 for values in anchors[0])


def row(model: str, ratio: float | None, peak: float | None) -> TrainRow:
    return TrainRow("small", "test", model, 64, 2, 3, 41.3, 12.34, 162.1, 0.0312, peak, ratio)


def test_the_table_says_where_it_was_and_what_waited() -> None:
    rows = (row("unisolo", 1.7, 9.26), row(PEER, None, None))
    report = TrainReport({}, "cpu", "float32", "generated crowded images", 3, True, rows)
    text = train_table(report)
    assert "the processor: no CUDA device here, float32" in text and "unisolo compiled" in text
    assert "| small | test | unisolo | 64 | 2 | 41 | 12.3 | 1.70 x | 162 | 3.1% | 9.3 |" in text
    assert f"| {PEER} | 64 | 2 | 41 | 12.3 | - | 162 | 3.1% | - |" in text
    assert report.to_json()["rows"][0]["ratio"] == 1.7


@pytest.mark.slow
@pytest.mark.parametrize("own_data", [False, True])
def test_the_command_measures_both(own_data: bool, tmp_path: Path) -> None:
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(yaml.safe_dump(VALUES))
    extra: list[object] = []
    if own_data:
        CrowdedShapes(tmp_path / "scenes", 4, (64, 64), None)
        extra = ["--data", tmp_path / "scenes", "--set", "train.precision=bf16"]
    figures = tmp_path / "figures.json"
    command = [
        sys.executable, ROOT / "tools" / "benchmark.py", "train", "--recipes", recipe, "--device",
        "cpu", "--steps", 1, "--warm-up", 0, "--workers", 1, "--json", figures, *extra,
    ]  # fmt: skip
    done = subprocess.run(
        list(map(str, command)),
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert "| waiting for data |" in done.stdout
    found = json.loads(figures.read_text())
    assert found["precision"] == ("bfloat16" if own_data else "float32")
    own, peer = found["rows"]
    assert (own["model"], peer["model"]) == ("unisolo", PEER)
    assert own["objects"] == peer["objects"] > 0
    assert own["ratio"] == pytest.approx(own["images_per_second"] / peer["images_per_second"])
    for measured in (own, peer):
        assert 0 <= measured["data_share"] <= 1 and measured["batch_size"] == 2
        assert measured["images_per_second"] == pytest.approx(2e3 / measured["step_ms"])
