"""The C++ example of docs/deploy.md: built with cmake, and held to what Python says."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_model import lively_model

from unisolo.data.images import read_image
from unisolo.data.loader import collate
from unisolo.export import export_checkpoint
from unisolo.export.command import image_samples
from unisolo.export.verify import named_result
from unisolo.graphs import open_graph
from unisolo.results import Result

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "docs" / "deploy_cpp"
COCO_MINI = ROOT.parent / "shared" / "data" / "coco-mini" / "val2017"


@dataclass(frozen=True)
class Found:
    """What the program printed and wrote."""

    names: list[str]
    scores: list[float]
    boxes: list[list[float]]
    areas: list[int]
    drawn: np.ndarray


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built example."""
    openvino_utils = pytest.importorskip("openvino.utils", reason="openvino is not installed")
    if shutil.which("cmake") is None:
        pytest.skip("cmake is not on this machine")
    if shutil.which("c++") is None and shutil.which("g++") is None:
        pytest.skip("no C++ compiler is on this machine")
    build = tmp_path_factory.mktemp("build")
    where = f"-DOpenVINO_DIR={openvino_utils.get_cmake_path()}"
    for command in (
        ["cmake", "-S", str(SOURCE), "-B", str(build), "-DCMAKE_BUILD_TYPE=Release", where],
        ["cmake", "--build", str(build)],
    ):
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "warning:" not in done.stderr, done.stderr
    return build / "unisolo_deploy"


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported model that finds many things."""
    path = tmp_path_factory.mktemp("graph") / "model.xml"
    model = lively_model("task=instance")
    overrides = ["inference.max_instances=20"]
    export_checkpoint(model, path, size="input", overrides=overrides, images=None)
    return path


def with_facts(graph: Path, folder: Path, *changes: tuple[str, str, str]) -> Path:
    """A copy of a graph whose facts say something else: (name, old value, new value)."""
    text = graph.read_text()
    for name, old, new in changes:
        text, count = re.subn(rf"(&quot;{name}&quot;: ){re.escape(old)}\b", rf"\g<1>{new}", text)
        assert count
    changed = folder / f"{graph.stem}-changed.xml"
    changed.write_text(text)
    shutil.copy(graph.with_suffix(".bin"), changed.with_suffix(".bin"))
    return changed


def photograph() -> np.ndarray:
    """A real image, or noise where there is none."""
    if COCO_MINI.is_dir():
        return read_image(min(COCO_MINI.iterdir()))
    return np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)


def unresized(graph: Path) -> np.ndarray:
    """A real image at the size that the graph sees: nothing is left to resize."""
    (sample,) = image_samples([photograph()], open_graph(graph).config)
    return sample.image.permute(1, 2, 0).contiguous().numpy()


def run(program: Path, graph: Path, image: np.ndarray, score: float) -> Found:
    """Run the program on an image."""
    ppm, pgm = graph.with_name("image.ppm"), graph.with_name("masks.pgm")
    Image.fromarray(image).save(ppm)
    done = start(program, graph, ppm, pgm, score)
    assert done.returncode == 0, done.stderr
    lines = [line.rsplit(" ", 6) for line in done.stdout.splitlines()]
    return Found(
        # Names are printed as the file's JSON holds them.
        names=[json.loads(f'"{line[0]}"') for line in lines],
        scores=[float(line[1]) for line in lines],
        boxes=[[float(side) for side in line[2:6]] for line in lines],
        areas=[int(line[6]) for line in lines],
        drawn=np.array(Image.open(pgm)),
    )


def start(program: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    words = [str(program), *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, timeout=120)


def python(graph: Path, image: np.ndarray, score: float) -> Result:
    """What the same graph says in Python."""
    opened = open_graph(graph, device="cpu", threads=1)
    batch = collate(image_samples([image], opened.config))
    height, width = batch.image_sizes[0].tolist()
    named = opened.run(batch.images, batch.image_sizes)
    result = named_result(named, 0, opened.categories, (height, width))
    return result[result.scores >= score]


def check_equal(found: Found, expected: Result) -> None:
    assert found.names == [expected.categories[label].name for label in expected.labels.tolist()]
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)
    assert found.boxes == expected.boxes.tolist()
    masks = expected.masks
    assert masks is not None
    assert found.areas == masks.sum((1, 2)).tolist()
    # The number of the line, and the best instance keeps a pixel.
    order = torch.arange(len(expected), 0, -1)[:, None, None]
    best = (masks * order).sum(0) if len(expected) == 0 else (masks * order).amax(0)
    drawn = torch.where(best > 0, len(expected) + 1 - best, 0)
    np.testing.assert_array_equal(found.drawn, drawn)


def test_it_is_short() -> None:
    assert len((SOURCE / "main.cpp").read_text().splitlines()) < 100


def test_it_finds_what_python_finds(program: Path, graph: Path) -> None:
    image = unresized(graph)
    expected = python(graph, image, 0.1)
    assert len(expected) > 5
    assert len(set(expected.labels.tolist())) == 2
    check_equal(run(program, graph, image, 0.1), expected)


def test_nothing_found_is_normal(program: Path, tmp_path: Path) -> None:
    graph = tmp_path / "model.xml"
    export_checkpoint(
        lively_model("task=instance"),
        graph,
        size="input",
        batch=1,
        image_size=(64, 96),
        overrides=["inference.score_threshold=0.9999", "inference.max_instances=5"],
        images=None,
    )
    image = unresized(graph)
    assert len(python(graph, image, 0)) == 0
    found = run(program, graph, image, 0)
    assert found.names == []
    assert not found.drawn.any()
    assert found.drawn.shape == image.shape[:2]


def test_an_image_is_padded_to_the_size_of_a_fixed_graph(
    program: Path, graph: Path, tmp_path: Path
) -> None:
    openvino = pytest.importorskip("openvino")
    model = openvino.Core().read_model(str(graph))
    model.reshape({"images": [1, 3, 96, 128], "image_sizes": [1, 2]})
    fixed = tmp_path / "fixed.xml"
    openvino.save_model(model, str(fixed), compress_to_fp16=False)
    fixed = with_facts(fixed, tmp_path, ("image_size", "null", "[96, 128]"))
    image = unresized(graph)
    expected = python(fixed, image, 0.1)
    assert len(expected) > 5
    check_equal(run(program, fixed, image, 0.1), expected)
    larger = with_facts(fixed, tmp_path, ("image_size", "64", "128"), ("max_size", "96", "256"))
    done = start(program, larger, fixed.with_name("image.ppm"), tmp_path / "out.pgm")
    assert done.returncode == 2
    assert "larger than the graph's fixed size" in done.stderr


@pytest.mark.parametrize("resize", ["torch", "opencv"])
def test_an_image_is_resized_as_in_python(
    program: Path, graph: Path, tmp_path: Path, resize: str
) -> None:
    """On an image whose halved pixels need no rounding; otherwise some differ by one."""
    changed = with_facts(graph, tmp_path, ("resize", "&quot;torch", f"&quot;{resize}"))
    blocks = np.random.default_rng(0).integers(0, 4, (16, 24, 3)) * 64
    blocks[0], blocks[-1], blocks[:, 0], blocks[:, -1] = 128, 128, 128, 128
    image = blocks.repeat(8, 0).repeat(8, 1).astype(np.uint8)
    expected = python(changed, image, 0.1)
    assert expected.image_size == (64, 96)
    assert len(expected) > 5
    check_equal(run(program, changed, image, 0.1), expected)


@pytest.mark.parametrize("size", [(200, 301), (301, 200), (1000, 21), (9, 9)])
def test_the_ratio_is_kept_as_in_python(program: Path, graph: Path, size: tuple[int, int]) -> None:
    image = np.full((*size, 3), 90, dtype=np.uint8)
    found, expected = run(program, graph, image, 0.1), python(graph, image, 0.1)
    assert found.drawn.shape == expected.image_size


def test_what_cannot_be_used_is_an_error(program: Path, graph: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.ppm"
    for content, message in [
        (b"P5 2 2 255 1234", "not a binary PPM"),
        (b"P6 2 2 65535 " + bytes(24), "not a binary PPM"),
        (b"P6 0 2 255 ", "not a binary PPM"),
        (b"P6 -1 2 255 ", "not a binary PPM"),
        (b"P6 9 9 255 " + bytes(9), "cut off"),
        (b"", "not a binary PPM"),
    ]:
        bad.write_bytes(content)
        done = start(program, graph, bad, tmp_path / "out.pgm")
        assert done.returncode == 2
        assert message in done.stderr
    assert "usage" in start(program).stderr
    bad.write_bytes(b"P6 # made by hand\n2 2\n# comment\n255\n" + bytes(12))
    assert start(program, graph, bad, tmp_path / "out.pgm").returncode == 0
    assert start(program, graph, bad, tmp_path / "absent" / "out.pgm").returncode == 2
    assert start(program, tmp_path / "absent.xml", bad, tmp_path / "out.pgm").returncode == 2
