"""`tools/benchmark.py` as people run it, on a model of seconds. Times are not judged."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny_model import VALUES
from typer.testing import CliRunner

from unisolo.benchmark.models import NUM_THINGS, input_image, random_model
from unisolo.benchmark.timing import time_in_turns
from unisolo.graphs import select

ROOT = Path(__file__).resolve().parents[2]
FLOAT = ("eager", "onnxruntime", "openvino")
ENGINES = (*FLOAT, "onnxruntime-int8", "openvino-int8")
INSTANCES = 20


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / "benchmark.py"), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    values = {
        "model": {**VALUES["model"], "scale_ranges": "auto"},
        "data": VALUES["data"],
        "inference": {"max_candidates": 50, "max_instances": INSTANCES},
    }
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


Measured = tuple[str, Any, Path, tuple[str, ...]]


# Quantising takes most of the time.
@pytest.fixture(
    scope="module",
    params=[FLOAT, pytest.param(ENGINES, marks=pytest.mark.slow)],
    ids=["float", "int8 too"],
)
def measured(
    request: pytest.FixtureRequest, config: Path, tmp_path_factory: pytest.TempPathFactory
) -> Measured:
    engines: tuple[str, ...] = request.param
    folder = tmp_path_factory.mktemp("benchmark")
    arguments: list[object] = [
        "latency",
        "--models",
        config,
        "--repeat",
        2,
        "--size",
        "64x96",
        "--fixed",
    ]
    for engine in engines:
        arguments += ["--engines", engine]
    for threads in (1, 2):
        arguments += ["--threads", threads]
    figures = folder / "figures.json"
    done = run(*arguments, "--graphs", folder / "graphs", "--json", figures)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(figures.read_text()), folder, engines


def test_figures_have_every_engine_and_thread_count(measured: Measured) -> None:
    rows = measured[1]["rows"]
    assert [(row["threads"], row["engine"]) for row in rows] == [
        (threads, engine) for threads in (1, 2) for engine in measured[3]
    ]
    for row in rows:
        timing = row["timing"]
        assert row["model"] == "tiny"
        assert row["size"] == [64, 96]
        assert timing["calls"] == 2
        assert 0 < timing["least"] <= timing["median"] <= timing["most"]
        assert row["ready_seconds"] > 0
        base = next(r for r in rows if r["engine"] == "eager" and r["threads"] == row["threads"])
        assert row["speedup"] == pytest.approx(base["timing"]["median"] / timing["median"])
        assert row["cpu_speedup"] == pytest.approx(base["timing"]["cpu"] / timing["cpu"])


def test_every_engine_fills_every_place(measured: Measured) -> None:
    assert {row["instances"] for row in measured[1]["rows"]} == {INSTANCES}


def test_machine_and_table_are_told(measured: Measured) -> None:
    text, figures, _, engines = measured
    machine = figures["machine"]
    assert machine["cores"] >= 1
    assert machine["versions"]["torch"] == torch.__version__.split("+")[0]
    assert {"python", "onnxruntime", "openvino"} <= set(machine["versions"])
    assert set(engines) == {row["engine"] for row in figures["rows"]}
    assert machine["cpu"] in text
    table = [line for line in text.splitlines() if line.startswith("| tiny ")]
    assert len(table) == len(figures["rows"])
    for line, row in zip(table, figures["rows"], strict=True):
        assert f"| {row['threads']} | {row['engine']} | {row['timing']['median']:.0f} |" in line
        assert f"{row['speedup']:.2f} x" in line


def test_the_files_have_the_precision_of_their_names(measured: Measured) -> None:
    from unisolo.graphs import open_graph

    folder = measured[2] / "graphs"
    precisions = {path.name: open_graph(path).facts.precision for path in folder.glob("*.[ox]*")}
    expected = {"tiny-64x96.onnx": "fp32", "tiny-64x96.xml": "fp32"}
    if measured[3] == ENGINES:
        expected |= {"tiny-64x96-int8.onnx": "int8", "tiny-64x96-int8.xml": "int8"}
    assert precisions == expected


@pytest.mark.slow
def test_compiled_and_fixed(config: Path, tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    done = run(
        *("latency", "--models", config, "--repeat", 1, "--threads", 1, "--fixed"),
        *("--engines", "compiled", "--engines", "onnxruntime", "--engines", "compiled"),
        *("--json", figures),
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(figures.read_text())
    assert found["fixed"] is True
    assert [row["engine"] for row in found["rows"]] == ["compiled", "onnxruntime"]
    for row in found["rows"]:
        assert row["size"] == [64, 64]  # data.image_size
        assert row["instances"] == INSTANCES
        assert row["speedup"] is None  # no eager to compare with
    assert done.stdout.count("| - |") == 4  # wall clock and processor time


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--engines", "tensorflow"], "unknown engine tensorflow; choose from eager"),
        (["--threads", "0"], "thread counts must be at least 1"),
        (["--repeat", "0"], "timed runs must be at least 1"),
        (["--size", "64"], "--size must be HxW"),
        (["--size", "64x70"], "multiples of 32"),
        (["--models", "missing.yaml"], "missing.yaml"),
    ],
)
def test_wrong_options_are_named(config: Path, arguments: list[str], message: str) -> None:
    models = [] if "--models" in arguments else ["--models", str(config)]
    engine = [] if "--engines" in arguments else ["--engines", "eager"]
    # In this process: each start of the tool takes seconds.
    spec = importlib.util.spec_from_file_location("benchmark", ROOT / "tools" / "benchmark.py")
    assert spec is not None and spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    done = CliRunner().invoke(tool.app, ["latency", *models, *engine, *arguments])
    assert done.exit_code == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_random_model_is_the_same_and_full_at_every_call(config: Path) -> None:
    state = torch.get_rng_state()
    first, second = random_model(config), random_model(config)
    assert torch.equal(state, torch.get_rng_state())
    weights = second.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in first.state_dict().items())
    assert first.categories is not None and first.categories.num_things == NUM_THINGS
    assert first.config is not None
    with torch.inference_mode():
        outputs = first(input_image((64, 64)))
        found = select(outputs, first.grid, first.config.inference).instances
    # Every step is as full as it can be.
    assert found.stage_counts[0, 1:5].tolist() == [50, 50, 50, 50]
    assert found.stage_counts[0, 0] > 50


def test_calls_take_turns() -> None:
    order: list[str] = []
    timings = time_in_turns(
        {name: lambda name=name: order.append(name) for name in "ab"}, 7, warm_up=1
    )
    # Warm-up, then turns of five and two, each after one that is not timed.
    assert "".join(order) == "ab" + "a" * 6 + "b" * 6 + "a" * 3 + "b" * 3
    assert {timing.calls for timing in timings.values()} == {7}


def test_processor_time_leaves_waiting_out() -> None:
    timings = time_in_turns({"sleep": lambda: time.sleep(0.05)}, 3, warm_up=0)
    assert timings["sleep"].median >= 50
    assert timings["sleep"].cpu < 25
