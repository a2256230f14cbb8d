"""docs/deploy.md says what the package does: its lines are run, its table is compared."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from PIL import Image
from tiny_model import lively_model
from typer.testing import CliRunner

from unisolo import save_model
from unisolo.cli import app
from unisolo.data.images import read_image, to_rgb_array
from unisolo.data.loader import collate
from unisolo.data.shapes import generate_shapes
from unisolo.export import ExportGraph
from unisolo.export.command import image_samples, verification_images
from unisolo.export.verify import named_result
from unisolo.graphs import open_graph
from unisolo.graphs.facts import Size

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "deploy.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)


def commands() -> list[list[str]]:
    """The page's `unisolo` lines, in words."""
    lines = "\n".join(blocks("sh")).replace("\\\n", " ").splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith("unisolo ")]


def table(heading: str) -> list[list[str]]:
    """Rows of the first table under a heading, without the header."""
    lines = PAGE.split(heading, 1)[1].split("\n#", 1)[0].splitlines()
    rows = [line for line in lines if line.startswith("|")][2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def test_the_page_has_lines_to_run() -> None:
    assert len(commands()) == 7
    assert len(blocks("python")) == 3


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_commands_exist_with_their_options(words: list[str], tmp_path: Path) -> None:
    command = typer.main.get_command(app).commands[words[0]]  # type: ignore[attr-defined]
    command.make_context(words[0], words[1:])


def test_options_of_the_table_exist() -> None:
    words = [re.search(r"`(.*?)`", row[0])[1] for row in table("# Deploy")]  # type: ignore[index]
    command = typer.main.get_command(app).commands["export"]  # type: ignore[attr-defined]
    assert "--task instance" in words
    for word in words:
        command.make_context("export", ["model.safetensors", "--out", "m.onnx", *word.split()])


def test_links_lead_somewhere() -> None:
    links = [link for link in re.findall(r"\]\((.*?)\)", PAGE) if "://" not in link]
    assert links
    for link in links:
        assert (DOCS / link).exists(), link


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
def test_every_line_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime", "openvino"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    monkeypatch.chdir(tmp_path)
    save_model(
        lively_model("task=instance", "inference.max_instances=15"), Path("model.safetensors")
    )
    # Of the size that the model sees: Pillow and torchvision differ in the rounding of few pixels.
    scene = to_rgb_array(verification_images()[0])[:64, :96]
    Image.fromarray(scene).save("street.jpg", quality=95)
    generate_shapes(Path("data"), num_train=2, num_val=1, image_size=(64, 96))
    for words in commands():
        if words[0] == "quantize":
            # The scenes' categories are not the model's: tests/export/test_quantize.py evaluates.
            assert words[-2:] == ["--data", "data"]
            words = words[:-2]
        else:
            words = [*words, "--no-verify"]
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, done.output
    graph = open_graph("masks.onnx", device="cpu", threads=1)
    batch = collate(image_samples([read_image("street.jpg")], graph.config))
    named = graph.run(batch.images, batch.image_sizes)
    result = named_result(named, 0, graph.categories, (64, 96))
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
    names: dict[str, Any] = {}
    printed = []
    for block in blocks("python"):
        capsys.readouterr()
        exec(compile(block, "deploy.md", "exec"), names)
        printed.append(capsys.readouterr().out.splitlines())
    assert printed[0]
    assert printed[1] == expected
    # Another runtime: the last digit of a score and single pixels of a mask may differ.
    for line, other in zip(printed[2], expected, strict=True):
        name, score, *box, area = line.split()
        assert [name, *box] == [other.split()[0], *other.split()[2:-1]]
        assert float(score) == pytest.approx(float(other.split()[1]), abs=2e-3)
        assert int(area) == pytest.approx(int(other.split()[-1]), abs=3)


def test_the_snippet_prepares_images_as_the_package() -> None:
    """Its functions alone: no graph is opened."""
    functions = blocks("python")[1].split("session =")[0].replace("import onnxruntime\n", "")
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
