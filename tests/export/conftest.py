from __future__ import annotations

from pathlib import Path

import pytest
from tiny_model import lively_model

from unisolo import UniSolo
from unisolo.data.shapes import generate_shapes
from unisolo.export import convert_graph, export_checkpoint
from unisolo.export.command import image_samples
from unisolo.structures import Sample


@pytest.fixture(scope="module")
def model() -> UniSolo:
    return lively_model()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Wide, square and tall scenes: their padded sizes differ, so do their paddings."""
    found = []
    for seed, size in enumerate([(60, 90), (64, 64), (100, 66)]):
        root = generate_shapes(
            tmp_path_factory.mktemp("scenes") / "a",
            num_train=1,
            num_val=2,
            image_size=size,
            seed=seed,
        )
        found += sorted((root / "val2017").iterdir())
    return found


@pytest.fixture(scope="module")
def samples(model: UniSolo, pictures: list[Path]) -> list[Sample]:
    """The pictures as the model gets them."""
    assert model.config is not None
    return image_samples(pictures, model.config)


SETTINGS = ("inference.max_instances=8", "inference.panoptic_score_threshold=0.2")


@pytest.fixture(scope="session")
def free_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A panoptic graph of size "stride4", sizes and batch free, of `lively_model`."""
    out = tmp_path_factory.mktemp("onnx") / "model.onnx"
    export_checkpoint(lively_model(), out, overrides=SETTINGS, images=None)
    return out


@pytest.fixture(scope="session")
def free_graphs(free_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same in every format."""
    pt2 = tmp_path_factory.mktemp("pt2") / "model.pt2"
    export_checkpoint(lively_model(), pt2, overrides=SETTINGS, images=None)
    xml = tmp_path_factory.mktemp("xml") / "model.xml"
    convert_graph(free_onnx, xml)
    return {"onnx": free_onnx, "pt2": pt2, "xml": xml}
