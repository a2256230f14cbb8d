"""The tools as people run them: real processes, real files."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import Result
from PIL import Image
from tiny_model import VALUES
from typer.testing import CliRunner

from unisolo.cli import app
from unisolo.data.shapes import generate_shapes

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a data set, a recipe and a finished run."""
    folder = tmp_path_factory.mktemp("work")
    generate_shapes(folder / "data", num_train=5, num_val=3, image_size=(64, 64), seed=2)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(VALUES))
    done = tool(
        "train.py",
        "--task", "panoptic", "--config", folder / "recipe.yaml", "--data", folder / "data",
        "--out", folder / "run", "train.steps=2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "panoptic PQ" in done.stdout
    return folder


def tool(
    name: str, *arguments: object, launcher: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *launcher, str(ROOT / "tools" / name), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def command(*arguments: object) -> Result:
    """The command the tools are doors to, in this process: seconds less than a new one."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_evaluate_writes_numbers_and_predictions(work: Path) -> None:
    done = tool(
        "evaluate.py", "--checkpoint", work / "run" / "model.safetensors",
        "--data", work / "data", "--out", work / "eval",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    metrics = json.loads((work / "eval" / "metrics.json").read_text())
    assert {"panoptic/PQ", "segm/AP", "bbox/AP50"} <= set(metrics)
    trained = json.loads((work / "run" / "evaluation" / "metrics.json").read_text())
    assert metrics == trained


def test_compare_draws_three_pictures_an_image(work: Path) -> None:
    done = command(
        "compare", "--checkpoint", work / "run" / "model.safetensors",
        "--data", work / "data", "--out", work / "sheet.jpg", "--limit", 2,
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    with Image.open(work / "sheet.jpg") as sheet:
        assert sheet.size[0] > 6 * 360
        assert sheet.size[1] > 360
    wrong = command(
        "compare", "--checkpoint", work / "run" / "model.safetensors",
        "--data", work / "nowhere", "--out", work / "sheet2.jpg",
    )  # fmt: skip
    assert wrong.exit_code == 2
    assert "nowhere" in wrong.stderr
    assert not (work / "sheet2.jpg").exists()


def test_a_task_can_be_chosen_for_a_panoptic_checkpoint(work: Path) -> None:
    done = command(
        "evaluate", "--checkpoint", work / "run" / "model.safetensors",
        "--data", work / "data", "--out", work / "boxes", "--task", "detection",
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    metrics = json.loads((work / "boxes" / "metrics.json").read_text())
    assert all(name.startswith("bbox/") for name in metrics)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train.lrr=1"], "did you mean 'lr'"),
        (["--config", "nowhere.yaml"], "nowhere.yaml: no such configuration file"),
        (["--data", "nowhere"], "nowhere"),
        (["--task", "boxes"], "boxes"),
        ([], "already holds a run"),
    ],
)
def test_mistakes_get_a_sentence_and_no_trace(work: Path, arguments: list[str], words: str) -> None:
    out = work / ("new" if arguments else "run")
    given = [
        "--config", work / "recipe.yaml", "--data", work / "data", "--out", out,
    ]  # fmt: skip
    done = command("train", *given, *arguments)
    assert done.exit_code == 2
    assert words in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_a_broken_image_is_one_sentence_also_from_a_worker(work: Path) -> None:
    shutil.copytree(work / "data", work / "broken")
    victim = sorted((work / "broken" / "train2017").iterdir())[0]
    victim.write_bytes(victim.read_bytes()[:200])
    for workers in (0, 1):  # no loader process, and one
        done = tool(
            "train.py", "--config", work / "recipe.yaml", "--data", work / "broken",
            "--out", work / f"broken{workers}", f"data.workers={workers}", "train.steps=4",
        )  # fmt: skip
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        assert victim.name in done.stderr


def test_a_setting_that_changes_nothing_is_refused(work: Path) -> None:
    done = command(
        "evaluate", "--checkpoint", work / "run" / "model.safetensors",
        "--data", work / "data", "train.lr=1",
    )  # fmt: skip
    assert done.exit_code == 2
    assert "changes nothing in an evaluation" in done.stderr


def test_evaluating_a_file_that_is_none(work: Path) -> None:
    done = command("evaluate", "--checkpoint", work / "recipe.yaml", "--data", work / "data")
    assert done.exit_code == 2
    assert "recipe.yaml" in done.stderr
    assert "Traceback" not in done.stderr


def test_two_processes_train_and_evaluate_together(work: Path) -> None:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    done = tool(
        "train.py", "--config", work / "recipe.yaml", "--data", work / "data",
        "--out", work / "two", launcher=launcher,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    metrics = json.loads((work / "two" / "evaluation" / "metrics.json").read_text())
    assert metrics["panoptic/PQ"] >= 0
    assert done.stdout.count("trained 2 steps") == 1
