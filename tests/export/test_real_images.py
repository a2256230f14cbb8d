"""A whole R18 model on real photographs: each format, task and size, alone and in fours.

The model holds the reference recipe's weights under official names, converted, with a stuff branch
drawn at random beside them, for COCO's 133 categories.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import official_names
import pytest
import torch

from unisolo import Categories, UniSolo, build_model, load_config
from unisolo.config import config_to_dict
from unisolo.convert import convert_weights
from unisolo.export import convert_graph, export_checkpoint
from unisolo.export.command import image_samples
from unisolo.export.verify import LIMITS, verify
from unisolo.graphs import open_graph
from unisolo.reading import parse_json

pytestmark = pytest.mark.slow
pytest.importorskip("onnxruntime", reason="the export extra is not installed")
pytest.importorskip("openvino", reason="the export extra is not installed")

NUM_IMAGES = 20
SIZES = ((320, 512), (448, 768))  # short and long side
SETTINGS = ("inference.panoptic_score_threshold=0.2", "inference.stuff_area_threshold=256")


@pytest.fixture(scope="module")
def converted(golden: Any, shared_data: Any) -> UniSolo:
    weights = official_names.recipe_weights(golden("full_r18_light")["meta"])
    instance = convert_weights({name: torch.as_tensor(value) for name, value in weights.items()})
    assert instance.config is not None
    tree = parse_json(
        (shared_data("coco-mini") / "annotations" / "panoptic_val2017.json").read_bytes()
    )
    values = {**config_to_dict(instance.config), "task": "panoptic"}
    torch.manual_seed(0)
    model = build_model(load_config(values=values), Categories.from_coco(tree["categories"]))
    missing = model.load_state_dict(instance.state_dict(), strict=False).missing_keys
    assert all(name.startswith("heads.stuff_logits.") for name in missing)
    return model.eval()


@pytest.fixture(scope="module")
def photographs(shared_data: Any) -> list[Path]:
    return sorted((shared_data("coco-mini") / "val2017").iterdir())[:NUM_IMAGES]


@pytest.mark.parametrize("size", ["stride4", "input"])
@pytest.mark.parametrize("task", ["instance", "detection", "panoptic"])
def test_every_format_agrees_with_the_model(
    converted: UniSolo, photographs: list[Path], tmp_path: Path, task: str, size: Any
) -> None:
    files = [tmp_path / f"model.{ending}" for ending in ("onnx", "pt2", "xml")]
    for file in files[:2]:
        export_checkpoint(converted, file, task=task, size=size, images=None, overrides=SETTINGS)
    convert_graph(files[0], files[2])
    for file in files:
        graph = open_graph(file, device="cpu")
        for short, long in SIZES:
            config = load_config(
                None,
                [f"data.image_size={short}", f"data.max_size={long}"],
                values=config_to_dict(graph.config),
            )
            difference = verify(converted, graph, image_samples(photographs, config))
            print(f"{file.suffix} {task} {size} {short}: {difference}")
            assert difference.images > NUM_IMAGES and difference.instances > 20 * NUM_IMAGES
            assert difference.within(LIMITS), f"{file.suffix} at {short}: {difference}"
