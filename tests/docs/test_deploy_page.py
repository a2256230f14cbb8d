"""docs/deploy.md: its table and what its code prints are those of the package."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from pages import DOCS, blocks, run_page
from PIL import Image
from tiny_model import lively_model

from unisolo.cli import app
from unisolo.data.images import read_image, to_rgb_array
from unisolo.data.loader import collate
from unisolo.export import ExportGraph
from unisolo.export.command import image_samples, verification_images
from unisolo.export.verify import named_result
from unisolo.graphs import open_graph
from unisolo.graphs.facts import Size

PAGE_FILE = DOCS / "deploy.md"
PAGE = PAGE_FILE.read_text()


def table(heading: str) -> list[list[str]]:
    """Rows of the first table under a heading, without the header."""
    lines = PAGE.split(heading, 1)[1].split("\n#", 1)[0].splitlines()
    rows = [line for line in lines if line.startswith("|")][2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def test_options_of_the_table_exist() -> None:
    words = [re.search(r"`(.*?)`", row[0])[1] for row in table("# Deploy")]  # type: ignore[index]
    command = typer.main.get_command(app).commands["export"]  # type: ignore[attr-defined]
    assert "--task instance" in words
    for word in words:
        command.make_context("export", ["model.safetensors", "--out", "m.onnx", *word.split()])


@pytest.fixture(scope="module")
def outputs() -> dict[tuple[str, str], dict[str, torch.Tensor]]:
    """Every kind of graph's outputs, by task and size."""
    model = lively_model("inference.max_instances=7", "inference.score_threshold=0.9")
    assert model.config is not None
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    sizes = torch.tensor([[60, 90], [64, 96]])
    found = {}
    every: list[tuple[str, Size]] = [("stride4", "stride4"), ("input", "input"), ("HxW", (50, 40))]
    for task in ("panoptic", "instance", "detection"):
        for name, size in every:
            graph = ExportGraph(model, task, size, model.config.inference).eval()
            with torch.inference_mode():
                found[task, name] = dict(zip(graph.names, graph(images, sizes), strict=True))
    return found


def documented(task: str, size: str) -> dict[str, tuple[str, str]]:
    """Shape and type of each output that the page gives a graph."""
    found = {}
    for names, shapes, types, where, _ in table("There are K"):
        wanted = [name for name in ("stride4", "input", "HxW") if f"`{name}`" in where]
        has_task = f"not {task}" not in where and (task == "panoptic" or "panoptic" not in where)
        if has_task and (not wanted or size in wanted):
            parts = zip(
                re.findall(r"`(\w+)`", names),
                _repeated(re.findall(r"\[.*?\]", shapes)),
                _repeated(types.split(", ")),
                strict=False,
            )
            found.update({name: (shape, kind) for name, shape, kind in parts})
    return found


def _repeated(values: list[str]) -> list[str]:
    return values * 3 if len(values) == 1 else values


@pytest.mark.parametrize("size", ["stride4", "input", "HxW"])
@pytest.mark.parametrize("task", ["panoptic", "instance", "detection"])
def test_the_table_of_outputs(outputs: dict[Any, Any], task: str, size: str) -> None:
    expected = documented(task, size)
    named = outputs[task, size]
    assert set(named) == set(expected)
    height, width = {"stride4": (16, 24), "input": (64, 96), "HxW": (50, 40)}[size]
    sizes = {"B": 2, "K": 7, "S": 2, "H": 64, "W": 96, "h": height, "w": width}
    for name, tensor in named.items():
        shape, kind = expected[name]
        assert str(tensor.dtype) == f"torch.{kind}", name
        words = [re.sub(r"/", "//", word) for word in shape[1:-1].split(", ")]
        assert list(tensor.shape) == [eval(word, {}, sizes) for word in words], name


@pytest.mark.slow
def test_the_code_of_the_page_prints_what_the_package_finds(scratch: Path) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime", "openvino"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    by_predictor, by_onnx, by_openvino = run_page(PAGE_FILE, scratch)
    graph = open_graph("masks.onnx", device="cpu", threads=1)
    image = read_image("street.jpg")
    batch = collate(image_samples([image], graph.config))
    named = graph.run(batch.images, batch.image_sizes)
    result = named_result(named, 0, graph.categories, image.shape[:2])
    result = result[result.scores >= 0.4]
    assert len(result) > 3
    masks = result.masks
    assert masks is not None
    expected = [
        f"{graph.categories[label].name} {score:.3f} {box} {area}"
        for label, score, box, area in zip(
            result.labels.tolist(),
            result.scores.tolist(),
            result.boxes.tolist(),
            masks.sum((1, 2)).tolist(),
            strict=True,
        )
    ]
    assert by_predictor
    assert by_onnx.splitlines() == expected
    # Another runtime: the last digit of a score and single pixels of a mask may differ.
    for line, other in zip(by_openvino.splitlines(), expected, strict=True):
        *name, score, x1, y1, x2, y2, area = line.split()
        *other_name, other_score, a1, b1, a2, b2, other_area = other.split()
        assert (name, x1, y1, x2, y2) == (other_name, a1, b1, a2, b2)
        assert float(score) == pytest.approx(float(other_score), abs=2e-3)
        assert int(area) == pytest.approx(int(other_area), abs=3)


def test_the_snippet_prepares_images_as_the_package() -> None:
    """Its functions alone: no graph is opened."""
    snippet = [block.text for block in blocks(PAGE_FILE) if block.language == "python"][1]
    functions = snippet.split("session =")[0].replace("import onnxruntime\n", "")
    names: dict[str, Any] = {}
    exec(compile(functions, "deploy.md", "exec"), names)
    for data in ({"image_size": 64, "max_size": 96}, {"image_size": 300, "max_size": 400}):
        model = lively_model(*(f"data.{name}={value}" for name, value in data.items()))
        assert model.config is not None
        facts = {"config": {"data": data}, "image_size": None}
        for image in verification_images():
            pixels = to_rgb_array(image)
            batch = collate(image_samples([pixels], model.config))
            found = names["prepare"](Image.fromarray(pixels), facts)
            assert found["images"].shape == tuple(batch.images.shape)
            assert found["images"].dtype == "uint8"
            assert found["image_sizes"].tolist() == batch.image_sizes.tolist()
            apart = abs(found["images"].astype(int) - batch.images.numpy().astype(int))
            assert apart.max() <= 1
            assert (apart > 0).mean() < 0.01
