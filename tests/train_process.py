"""Training as people run it: real processes of `tools/train.py`, also under torchrun."""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from tiny_model import VALUES

from unisolo.engine.state import StateFolder, read_state

ROOT = Path(__file__).resolve().parents[1]

TIMES = {
    "images_per_second", "data_share", "data_time", "step_time", "memory_gib", "seconds_left"
}  # fmt: skip
"""Fields of a log row that differ from run to run."""


def torchrun(processes: int, *options: str) -> tuple[str, ...]:
    """The launcher's arguments; it finds a free port itself, so tests can run side by side."""
    return (
        "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), *options
    )  # fmt: skip


def start(
    out: Path,
    data: Path,
    *arguments: str,
    launcher: Sequence[str] = (),
    before: Callable[[], None] | None = None,
) -> subprocess.Popen[str]:
    """Start a training of the tiny model; arguments are options, then key=value settings."""
    command = [
        sys.executable, *launcher, str(ROOT / "tools" / "train.py"), "--config", str(_recipe()),
        "--data", str(data), "--out", str(out), *arguments,
    ]  # fmt: skip
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=before,
    )


@functools.cache
def _recipe() -> Path:
    path = Path(tempfile.mkdtemp()) / "recipe.yaml"
    path.write_text(yaml.safe_dump(VALUES))
    atexit.register(shutil.rmtree, path.parent)
    return path


def run(
    out: Path,
    data: Path,
    *arguments: str,
    launcher: Sequence[str] = (),
    before: Callable[[], None] | None = None,
    code: int = 0,
) -> str:
    """Run a training to its end; return what it printed."""
    process = start(out, data, *arguments, launcher=launcher, before=before)
    text, _ = process.communicate(timeout=280)
    assert process.returncode == code, text
    return text


def kill_all(process: subprocess.Popen[str], number: int = signal.SIGKILL) -> None:
    """Send a signal to the process and to all it has started: a machine that fails spares none."""
    for pid in [process.pid, *descendants(process.pid)]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def children(pid: int) -> list[int]:
    """Process ids of the children, oldest first."""
    try:
        return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def descendants(pid: int) -> list[int]:
    """Process ids of the children, their children, and so on (torchrun's have other groups)."""
    return [n for child in children(pid) for n in (child, *descendants(child))]


def wait_for_step(out: Path, step: int, process: subprocess.Popen[str], limit: float = 120) -> None:
    """Wait until a step is logged."""
    end = time.monotonic() + limit
    while time.monotonic() < end:
        if any(row["step"] >= step for row in rows(out)):
            return
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    raise AssertionError(f"step {step} was not reached in {limit} s")


def rows(out: Path) -> list[dict[str, Any]]:
    """Rows of the run's log that are whole."""
    path = out / "log.jsonl"
    if not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def lasting(out: Path) -> list[dict[str, Any]]:
    """Rows without what time alone decides."""
    return [{k: v for k, v in row.items() if k not in TIMES} for row in rows(out)]


def newest(out: Path) -> dict[str, Any]:
    """The newest training state."""
    return read_state(StateFolder(out).paths()[0])


def differences(first: Any, second: Any, place: str = "") -> list[str]:
    """Where two states differ, bit for bit; times are left out."""
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        same = first.dtype == second.dtype and torch.equal(first, second)
        return [] if same else [place]
    if isinstance(first, dict) and isinstance(second, dict):
        if first.keys() != second.keys():
            return [f"{place}: keys {first.keys() ^ second.keys()}"]
        return [
            found
            for key in first
            if key not in ("seconds", "out")
            for found in differences(first[key], second[key], f"{place}.{key}")
        ]
    if isinstance(first, (list, tuple)) and isinstance(second, (list, tuple)):
        if len(first) != len(second):
            return [f"{place}: lengths {len(first)} and {len(second)}"]
        pairs = enumerate(zip(first, second, strict=True))
        return [found for n, (a, b) in pairs for found in differences(a, b, f"{place}[{n}]")]
    return [] if first == second or (first != first and second != second) else [place]
