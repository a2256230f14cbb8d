"""Runs that are stopped, killed and resumed, as real processes."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest
from train_process import (
    children,
    differences,
    kill_all,
    lasting,
    newest,
    rows,
    run,
    start,
    torchrun,
    wait_for_step,
)

from unisolo import load_model
from unisolo.data.shapes import generate_shapes
from unisolo.engine.state import StateFolder, read_state

SETTINGS = (
    "train.deterministic=true",
    "train.ema_decay=0.9",
    "train.checkpoint_every=3",
    "train.keep_checkpoints=2",
    "data.workers=2",
    "data.augment.scale_jitter=[0.7, 1.3]",
    "data.augment.crop=[64, 64]",
    "data.augment.color=0.5",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    return generate_shapes(root, num_train=7, num_val=3, image_size=(64, 64), seed=5)


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGTERM, 75),
        pytest.param(signal.SIGUSR1, 75, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
    ],
)
def test_a_signal_ends_the_run_with_its_state_saved(
    number: signal.Signals, code: int, data: Path, tmp_path: Path
) -> None:
    settings = ("train.steps=80", "train.checkpoint_every=1000", "data.workers=1")
    process = start(tmp_path / "run", data, *settings)
    wait_for_step(tmp_path / "run", 3, process)
    kill_all(process, number)  # loaders too, as a terminal or a scheduler does
    text, _ = process.communicate(timeout=60)
    assert process.returncode == code, text
    assert f"stopped by {number.name} after step" in text
    assert "--resume" in text
    last = rows(tmp_path / "run")[-1]["step"]
    assert newest(tmp_path / "run")["step"] == last < 80
    resumed = run(tmp_path / "run", data, *settings[:2], "--resume", "train.log_every=20")
    assert "resuming from" in resumed
    assert [row["step"] for row in rows(tmp_path / "run") if "loss" in row][last:] == [
        step for step in range(last + 1, 81) if step % 20 == 0
    ]


def test_ctrl_c_twice_quits_at_once(data: Path, tmp_path: Path) -> None:
    process = start(tmp_path / "run", data, "train.steps=400", "train.checkpoint_every=1000")
    wait_for_step(tmp_path / "run", 2, process)
    # In the middle of a step that takes ten seconds: stopped, so that both arrive together.
    os.kill(process.pid, signal.SIGSTOP)
    os.kill(process.pid, signal.SIGINT)
    os.kill(process.pid, signal.SIGCONT)
    text = ""
    while "Ctrl-C again quits at once" not in text:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, "ended without the hint"
        text += line
    os.kill(process.pid, signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_kill_9_at_random_moments_changes_nothing(
    processes: int, data: Path, tmp_path: Path
) -> None:
    """20 kills; then the finished run equals one that was never disturbed, bit for bit."""
    settings = (*SETTINGS, "train.steps=90", "train.eval_every=30")
    launcher = torchrun(2) if processes == 2 else ()
    run(tmp_path / "whole", data, *settings, launcher=launcher)

    out = tmp_path / "killed"
    chance = random.Random(processes)
    kills = 0
    while kills < 20:
        launcher = torchrun(2) if processes == 2 else ()
        process = start(out, data, *settings, "--auto-resume", launcher=launcher)
        before = len(rows(out))
        if kills % 5 == 4:  # also before there is a step to lose
            time.sleep(chance.uniform(0, 6))
        else:
            end = time.monotonic() + 120
            while len(rows(out)) <= before and process.poll() is None and time.monotonic() < end:
                time.sleep(0.005)
            time.sleep(chance.uniform(0, 0.25))
        if process.poll() is not None:
            break
        kill_all(process)
        process.communicate()  # returns when all that hold its output are gone
        kills += 1
        states = StateFolder(out).paths()
        logged = max((row["step"] for row in rows(out)), default=0)
        if states:
            step = read_state(states[0])["step"]  # the newest is whole, whatever the moment
            assert logged - step <= 3
        else:
            assert logged <= 3
        if (out / "model.safetensors").exists():
            load_model(out / "model.safetensors")
    assert kills == 20, "the run ended before it was killed 20 times: make it longer"
    launcher = torchrun(2) if processes == 2 else ()
    run(out, data, *settings, "--auto-resume", launcher=launcher)
    assert differences(newest(tmp_path / "whole"), newest(out)) == []
    assert lasting(out) == lasting(tmp_path / "whole")
    assert not list((out / "checkpoints").glob(".step_*"))


def test_a_resumed_run_is_the_run_that_was_never_stopped(data: Path, tmp_path: Path) -> None:
    """One kill -9 in the default suite; 20 and two processes in the slow one."""
    settings = (*SETTINGS, "train.steps=8", "train.eval_every=4")
    run(tmp_path / "whole", data, *settings)
    process = start(tmp_path / "killed", data, *settings)
    wait_for_step(tmp_path / "killed", 5, process)
    kill_all(process)
    process.communicate()
    run(tmp_path / "killed", data, *settings, "--resume")
    assert differences(newest(tmp_path / "whole"), newest(tmp_path / "killed")) == []
    assert lasting(tmp_path / "killed") == lasting(tmp_path / "whole")


@pytest.mark.slow
def test_torchrun_restarts_go_on_by_themselves(data: Path, tmp_path: Path) -> None:
    settings = (*SETTINGS, "train.steps=40")
    run(tmp_path / "whole", data, *settings, launcher=torchrun(2))
    out = tmp_path / "restarted"
    launcher = torchrun(2, "--max-restarts", "2")
    process = start(out, data, *settings, launcher=launcher)
    wait_for_step(out, 7, process)
    # One training process dies as of the kernel's memory killer; the launcher starts both anew.
    os.kill(children(process.pid)[-1], signal.SIGKILL)
    text, _ = process.communicate(timeout=280)
    assert process.returncode == 0, text
    assert "resuming from" in text
    assert differences(newest(tmp_path / "whole"), newest(out)) == []
    assert lasting(out) == lasting(tmp_path / "whole")


@pytest.mark.slow
def test_a_signal_to_torchrun_saves_as_well(data: Path, tmp_path: Path) -> None:
    settings = (*SETTINGS, "train.steps=400", "train.checkpoint_every=1000")
    out = tmp_path / "run"
    process = start(out, data, *settings, launcher=torchrun(2))
    wait_for_step(out, 3, process)
    process.send_signal(signal.SIGTERM)
    text, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "stopped by SIGTERM after step" in text
    assert newest(out)["step"] == rows(out)[-1]["step"] < 400
