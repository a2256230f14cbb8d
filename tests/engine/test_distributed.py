"""Two processes train and score as one, whatever the images hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from train_process import rows, run, torchrun

from unisolo.data.shapes import generate_shapes

# Without batch statistics a batch may be split in any way. Plain SGD, because Adam divides
# gradients that are nearly zero by themselves and so enlarges the rounding of sums. 128 pixels,
# because at 64 the coarsest level is one feature: a group norm over it divides by almost nothing.
# A low rate: gradients of one step agree to 1e-5, and a young network enlarges what the weights
# differ by (at 0.001 losses part by 1e-3 within 20 steps).
SIDE = 128
SETTINGS = (
    "train.steps=20",
    "train.batch_size=4",
    "train.lr_batch_size=4",
    "model.fpn_norm=group",
    "model.frozen_bn=true",
    "train.optimizer=momentum",
    "train.lr=0.0001",
    "data.image_size=128",
    "data.max_size=128",
    "model.grid_sizes=[16,12,8,4,4]",
    "data.augment.color=0.5",
    "data.workers=1",
)


def almost_empty(root: Path) -> Path:
    """5 images of which one holds objects: most shares of a batch, and many batches, hold none."""
    rng = np.random.default_rng(0)
    for split, count in (("train2017", 5), ("val2017", 3)):
        (root / split).mkdir(parents=True)
        images, annotations = [], []
        for image_id in range(1, count + 1):
            pixels = rng.integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / split / f"{image_id}.png")
            entry = {"id": image_id, "file_name": f"{image_id}.png", "height": SIDE, "width": SIDE}
            images.append(entry)
        for number, (left, top) in enumerate([(4, 4), (60, 16), (20, 72)], start=1):
            polygon = [left, top, left + 40, top, left + 40, top + 32, left, top + 32]
            annotations.append(
                {
                    "id": number,
                    "image_id": 2,
                    "category_id": 5,
                    "iscrowd": int(number == 3),
                    "bbox": [left, top, 40, 32],
                    "area": 1280,
                    "segmentation": [polygon],
                }
            )
        content = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": 5, "name": "thing"}],
        }
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


def column(out: Path, start: str) -> np.ndarray[Any, Any]:
    names = [name for name in rows(out)[0] if name.startswith(start)]
    return np.array([[row[name] for name in names] for row in rows(out) if "loss" in row])


def check_equal(first: Path, second: Path) -> None:
    """Losses of every step to 1e-5, metrics equal."""
    expected, found = column(first, "loss"), column(second, "loss")
    assert len(expected) == 20
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    # At the first step the weights are the same; later their rounding moves some ReLU's kink.
    expected, found = column(first, "grad_norm"), column(second, "grad_norm")
    np.testing.assert_allclose(found[:1], expected[:1], rtol=1e-5)
    np.testing.assert_allclose(found, expected, rtol=0.05)
    mine, other = (
        json.loads((out / "evaluation" / "metrics.json").read_text()) for out in (first, second)
    )
    assert mine == other


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shapes")
    # 27: image 5 holds no object, image 3 a crowd; 7 is not a multiple of 2 x anything.
    return generate_shapes(root, num_train=7, num_val=5, image_size=(SIDE, SIDE), seed=5)


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("kind", ["shapes", "almost empty"])
def test_two_processes_are_one(kind: str, accumulate: int, shapes: Path, tmp_path: Path) -> None:
    data = shapes if kind == "shapes" else almost_empty(tmp_path / "data")
    task = ("--task", "panoptic" if kind == "shapes" else "instance")
    run(tmp_path / "one", data, *task, *SETTINGS)
    split = f"train.accumulate={accumulate}"
    run(tmp_path / "two", data, *task, *SETTINGS, split, launcher=torchrun(2))
    check_equal(tmp_path / "one", tmp_path / "two")


def test_accumulated_parts_are_one_batch(tmp_path: Path) -> None:
    """In one process, where the default suite can afford it; parts without objects included."""
    data = almost_empty(tmp_path / "data")
    run(tmp_path / "one", data, "--task", "instance", *SETTINGS)
    run(tmp_path / "parts", data, "--task", "instance", *SETTINGS, "train.accumulate=4")
    check_equal(tmp_path / "one", tmp_path / "parts")


def test_more_processes_than_images_to_evaluate(tmp_path: Path) -> None:
    data = almost_empty(tmp_path / "data")
    path = data / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text())
    content["images"] = content["images"][1:2]
    path.write_text(json.dumps(content))
    settings = ("--task", "instance", "train.steps=1", "train.batch_size=2")
    text = run(tmp_path / "out", data, *settings, launcher=torchrun(2))
    assert "2 x cpu" in text
    assert "segm/AP" in (tmp_path / "out" / "evaluation" / "metrics.json").read_text()
