"""A trained model on real photographs: each format, task and size, alone and in fours.

The quickstart's model is trained for a minute, or the panoptic checkpoint that UNISOLO_CHECKPOINT
names is taken. (Untrained weights would not do: they amplify rounding, and their scores tie.)
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from unisolo import UniSolo, load_config, load_model
from unisolo.config import config_to_dict
from unisolo.data.shapes import generate_shapes
from unisolo.engine.train import train
from unisolo.export import convert_graph, export_checkpoint
from unisolo.export.command import image_samples
from unisolo.export.verify import LIMITS, verify
from unisolo.graphs import open_graph

pytestmark = pytest.mark.slow
pytest.importorskip("onnxruntime", reason="the export extra is not installed")
pytest.importorskip("openvino", reason="the export extra is not installed")

NUM_IMAGES = 20
SIZES = ((256, 416), (384, 640))  # short and long side
SETTINGS = (  # low, so that there is much to compare
    "inference.score_threshold=0.02",
    "inference.update_threshold=0.01",
    "inference.panoptic_score_threshold=0.1",
    "inference.stuff_area_threshold=256",
)
QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> UniSolo:
    if "UNISOLO_CHECKPOINT" in os.environ:
        return load_model(os.environ["UNISOLO_CHECKPOINT"], task="panoptic")
    folder = tmp_path_factory.mktemp("trained")
    generate_shapes(folder / "data", num_train=200, num_val=4, image_size=(192, 192))
    steps = ["train.steps=150", "train.log_every=150", "train.tensorboard=false"]
    values = {"data": {"root": str(folder / "data")}, "train": {"out": str(folder / "run")}}
    summary = train(load_config(QUICKSTART, steps, values=values))
    return load_model(summary.checkpoint)


@pytest.fixture(scope="module")
def photographs(shared_data: Any) -> list[Path]:
    return sorted((shared_data("coco-mini") / "val2017").iterdir())[:NUM_IMAGES]


@pytest.mark.parametrize(
    ("task", "size"),
    # A detection graph of size "stride4" is that of instances.
    [
        ("instance", "stride4"),
        ("instance", "input"),
        ("detection", "input"),
        ("panoptic", "stride4"),
        ("panoptic", "input"),
    ],
)
def test_every_format_agrees_with_the_model(
    trained: UniSolo, photographs: list[Path], tmp_path: Path, task: str, size: Any
) -> None:
    files = [tmp_path / f"model.{ending}" for ending in ("onnx", "pt2", "xml")]
    for file in files[:2]:
        export_checkpoint(trained, file, task=task, size=size, images=None, overrides=SETTINGS)
    convert_graph(files[0], files[2])
    for file in files:
        graph = open_graph(file, device="cpu")
        for short, long in SIZES:
            config = load_config(
                None,
                [f"data.image_size={short}", f"data.max_size={long}"],
                values=config_to_dict(graph.config),
            )
            difference = verify(trained, graph, image_samples(photographs, config))
            print(f"{file.suffix} {task} {size} {short}: {difference}")
            assert difference.images > NUM_IMAGES and difference.instances > 5 * NUM_IMAGES
            assert difference.within(LIMITS), f"{file.suffix} at {short}: {difference}"
