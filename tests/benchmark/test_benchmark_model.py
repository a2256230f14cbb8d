"""`benchmark model` on one small image. Times are not judged, what is measured is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from tiny_model import VALUES
from typer.testing import CliRunner

from unisolo.benchmark.model.measure import measure_models
from unisolo.benchmark.model.report import FLOOR, MASK_RCNN, model_table
from unisolo.cli import app


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump({"task": "instance", **VALUES}))
    return path


def test_every_form_is_timed(config: Path) -> None:
    report = measure_models(
        [config],
        size=(60, 84),
        batches=[2],
        dtype=torch.float32,
        device=torch.device("cpu"),
        repeat=1,
        compile=False,
        peers=False,
    )
    assert [row.part for row in report.rows] == [
        "backbone alone",
        "network",
        "network and post-process",
        "backbone alone, prepared",
        "network, prepared",
        "network and post-process, prepared",
    ]
    assert {(row.model, row.batch, row.mode) for row in report.rows} == {("tiny", 2, "eager")}
    assert all(row.of_floor is None and row.over_mask_rcnn is None for row in report.rows)
    assert report.instances["tiny"] > 0
    table = model_table(report)
    assert table.count("\n| tiny | 2 |") == 6
    assert "60 x 84" in table and "CPU" in table
    assert json.loads(json.dumps(report.to_json()))["size"] == [60, 84]


@pytest.mark.slow
def test_ratios_are_of_the_same_run(config: Path) -> None:
    done = CliRunner().invoke(
        app,
        ["benchmark", "model", "--models", str(config), "--size", "64x96", "--repeat", "1",
         "--device", "cpu", "--json", "-"],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    figures = json.loads(done.stdout)
    rows = {row["part"]: row for row in figures["rows"]}
    base = rows[MASK_RCNN]["timing"]["median"]
    assert figures["instances"][f"{MASK_RCNN}, float32"] > 20
    assert rows[FLOOR]["of_floor"] == 1
    network = rows["network, compiled"]
    assert network["over_mask_rcnn"] == pytest.approx(base / network["timing"]["median"])
    floor = rows[FLOOR]["timing"]["median"]
    assert network["of_floor"] == pytest.approx(network["timing"]["median"] / floor)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--precision", "int8"], "fp32, bf16, fp16"),
        (["--size", "1"], "--size"),
        (["--repeat", "0"], "at least 1"),
        (["--models", "nowhere.yaml"], "nowhere.yaml: no such configuration"),
    ],
)
def test_wrong_arguments_are_refused(arguments: list[str], reason: str, config: Path) -> None:
    done = CliRunner().invoke(
        app, ["benchmark", "model", "--device", "cpu", "--models", str(config), *arguments]
    )
    assert done.exit_code != 0
    assert reason in done.output
    assert "models of others" not in done.output, "nothing is measured before"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_graphs_are_timed_on_a_gpu(config: Path) -> None:
    report = measure_models(
        [config],
        size=(60, 84),
        batches=[1, 2],
        dtype=torch.bfloat16,
        device=torch.device("cuda"),
        repeat=2,
    )
    modes = {(row.part, row.mode) for row in report.rows}
    assert ("network and post-process, compiled", "graph") in modes
    assert (FLOOR, "graph") in modes and (MASK_RCNN, "eager") in modes
