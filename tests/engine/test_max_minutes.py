"""A budget by the clock: `train.max_minutes`."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_model import CATEGORIES, tiny_config
from train_process import rows, run, torchrun

from unisolo.data.shapes import generate_shapes
from unisolo.engine.distributed import World
from unisolo.engine.run import Run, prepare
from unisolo.engine.state import StateFolder, read_state
from unisolo.engine.train import train
from unisolo.tasks import get_task

ALONE = World(rank=0, size=1, device=torch.device("cpu"))
BASE = ("train.lr=1", "train.lr_batch_size=2", "train.warmup_ratio=0")


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shapes")
    return generate_shapes(root, num_train=4, num_val=2, image_size=(64, 64), seed=5)


def run_of(*overrides: str) -> Run:
    config = tiny_config(*BASE, *overrides, task="instance")
    return prepare(config, ALONE, get_task("instance")(CATEGORIES), 8, load_backbone=False)


def rates(run: Run, seconds: list[float]) -> list[float]:
    """The learning rate at each step of a run whose steps take this long, until it is over."""
    found = []
    for each in seconds:
        if run.is_over:
            break
        found.append(run.optimizer.param_groups[-1]["lr"])
        run.advance(each)
    return found


@pytest.mark.parametrize("schedule", ["cosine", "multistep"])
def test_the_clock_gives_the_rates_that_as_many_steps_would(schedule: str) -> None:
    settings = (
        f"train.schedule={schedule}", "train.warmup_share=0.2", "train.milestones=[0.5, 0.8]"
    )  # fmt: skip
    by_steps = rates(run_of(*settings, "train.steps=10"), [7.0] * 20)
    # Steps of 6 seconds, one minute: 10 of them, although 1000 would be allowed.
    by_clock = rates(run_of(*settings, "train.steps=1000", "train.max_minutes=1"), [6.0] * 20)
    assert len(by_clock) == len(by_steps) == 10
    assert by_clock == pytest.approx(by_steps, rel=1e-6)
    assert by_clock[:2] == by_steps[:2] == [0, 0.5]


def test_a_clock_that_does_not_run_out_changes_nothing() -> None:
    plain = rates(run_of("train.steps=30"), [1.0] * 40)
    assert rates(run_of("train.steps=30", "train.max_minutes=1"), [1.0] * 40) == plain
    assert len(plain) == 30


@functools.cache
def timed_run(steps: int) -> Run:
    return run_of(f"train.steps={steps}", "train.max_minutes=1")


@given(st.lists(st.floats(0, 30), min_size=1, max_size=30), st.integers(1, 20))
def test_whichever_is_first_ends_it_and_the_rate_never_goes_back(
    seconds: list[float], steps: int
) -> None:
    run = timed_run(steps)
    run.step, run.seconds = 0, 0.0
    done = []
    for each in seconds:
        if run.is_over:
            break
        run.advance(each)
        done.append(run.done)
        share = max(run.step / steps, run.seconds / 60)
        assert run.is_over == (run.step >= steps or run.seconds >= 60)
        assert run.done == pytest.approx(min(share, 1) * steps)
    assert done == sorted(done) and done[-1] <= steps


def test_warm_up_as_a_share_of_the_steps() -> None:
    found = rates(
        run_of("train.steps=10", "train.warmup_share=0.4", "train.warmup_steps=0"), [1] * 9
    )
    assert found[:4] == pytest.approx([0, 0.25, 0.5, 0.75])
    assert run_of("train.warmup_share=0").optimizer.param_groups[-1]["lr"] == 1


# Whole runs


def settings_for(shapes: Path, out: Path, *overrides: str):
    return tiny_config(f"data.root={shapes}", f"train.out={out}", *overrides, task="instance")


def test_a_run_that_the_clock_ends(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = train(settings_for(shapes, tmp_path, "train.steps=50", "train.max_minutes=0.000001"))
    assert summary.steps == 1 and "segm/AP" in summary.metrics
    said = capsys.readouterr().out
    assert "train.max_minutes=1e-06: the run ends after as many minutes" in said
    assert "ended by train.max_minutes=1e-06 after step 1 of 50" in said
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 1]
    assert rows[0]["seconds_left"] == 0
    assert rows[0]["lr"] == pytest.approx(0.002 * 0.01)  # the end of the cosine


@pytest.mark.slow
def test_steps_come_first_where_time_is_left(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(settings_for(shapes, tmp_path / "plain", "train.steps=2"))
    capsys.readouterr()
    train(settings_for(shapes, tmp_path / "clock", "train.steps=2", "train.max_minutes=60"))
    assert "ended after its 2 steps" in capsys.readouterr().out
    plain, clock = (
        read_state(StateFolder(tmp_path / name).paths()[0])["model"] for name in ("plain", "clock")
    )
    for name, tensor in plain.items():
        assert torch.equal(tensor, clock[name]), name


def test_time_goes_on_where_a_resumed_run_stopped(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ("train.steps=3", "train.checkpoint_every=1", "train.keep_checkpoints=3")
    config = settings_for(shapes, tmp_path, *settings, "train.max_minutes=60")
    train(config)
    first = StateFolder(tmp_path, keep=3).paths()[-1]
    for later in StateFolder(tmp_path, keep=3).paths()[:-1]:
        later.unlink()
    # As if the first step had taken an hour.
    torch.save({**read_state(first), "seconds": 3600.0}, first)
    capsys.readouterr()
    assert train(config, resume=True).steps == 1
    assert "ended by train.max_minutes=60 after step 1 of 3" in capsys.readouterr().out


@pytest.mark.slow
def test_two_processes_end_together(shapes: Path, tmp_path: Path) -> None:
    """Their clocks differ; a process that took another step would wait for the other for ever."""
    settings = ("--task", "instance", "train.steps=100000", "train.max_minutes=0.05")
    text = run(tmp_path, shapes, *settings, "data.augment.copy_paste=0.5", launcher=torchrun(2))
    assert "ended by train.max_minutes=0.05 after step" in text
    logged = [row for row in rows(tmp_path) if "loss" in row]
    assert read_state(StateFolder(tmp_path).paths()[0])["step"] == logged[-1]["step"]
    assert logged[-1]["lr"] == pytest.approx(0.002 * 0.01)
