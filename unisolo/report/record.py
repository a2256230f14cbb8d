"""What an evaluation notes beside its numbers, so that a report can be made of it later."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from unisolo.config import Config, config_to_dict
from unisolo.files import write_json
from unisolo.reading import file_problem, parse_json

__all__ = [
    "TrainingFacts",
    "environment",
    "make_record",
    "noted_warnings",
    "read_record",
    "write_record",
]

_FILE = "evaluation.json"
"""Lies beside `metrics.json`."""

_PACKAGES = ("unisolo", "torch", "torchvision", "timm", "numpy", "hotcoco", "pycocotools")
_MOST_WARNINGS = 50
_LONGEST = 2000
"""Letters kept of a warning."""


@dataclass(frozen=True)
class TrainingFacts:
    """What a report says of a training.

    Attributes:
        steps: Done so far.
        total_steps: Of the whole run.
        seconds: Wall-clock of the steps.
        skipped: Steps left out because they were not finite.
        warnings: Sentences that the run gave since it was started or resumed.
    """

    steps: int
    total_steps: int
    seconds: float
    skipped: int
    warnings: Sequence[str] = ()


def make_record(
    config: Config,
    *,
    device: torch.device,
    processes: int,
    images: int,
    seconds: float,
    backend: str,
    warnings: Sequence[str] = (),
    training: TrainingFacts | None = None,
) -> dict[str, Any]:
    """Return what is to be known of an evaluation, as plain values for `evaluation.json`.

    Args:
        config: Of the model; `data` says what it was evaluated on.
        device: Where the model ran.
        processes: How many shared the work.
        images: Images evaluated, over all processes.
        seconds: Wall-clock of the evaluation.
        backend: Of the evaluators.
        warnings: Sentences that the evaluation gave.
        training: Of the training that led here, its warnings come first; None = there is none.
    """
    root = config.data.root
    return {
        "config": config_to_dict(config),
        # The configuration keeps the path as it was typed, which only works from one folder.
        "root": None if root is None else os.path.abspath(root),
        "images": images,
        "seconds": seconds,
        "backend": backend,
        "processes": processes,
        "training": None if training is None else asdict(training),
        "warnings": list(dict.fromkeys([*(training.warnings if training else ()), *warnings])),
        "environment": environment(device),
    }


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write `evaluation.json`.

    Raises:
        OSError: If it cannot be written.
    """
    write_json(folder / _FILE, dict(record), indent=2)


def read_record(folder: Path) -> dict[str, Any] | None:
    """Read `evaluation.json`; None where there is none (a folder of an older version).

    Raises:
        ValueError: If it is damaged.
    """
    path = folder / _FILE
    if not path.exists():
        return None
    problem = file_problem(path, "record of an evaluation")
    if problem is not None:
        raise ValueError(f"{path}: {problem}")
    try:
        record = parse_json(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: no JSON ({error}); evaluate again") from None
    kinds = {"config": dict, "environment": dict, "warnings": list}
    if not isinstance(record, dict) or not all(
        isinstance(record.get(key), kind) for key, kind in kinds.items()
    ):
        raise ValueError(f"{path}: no record of an evaluation; evaluate again")
    return record


def environment(device: torch.device) -> dict[str, str]:
    """Return where and how this process runs: names and values to be shown to people."""
    facts = {
        "command": shlex.join(sys.argv),
        "folder": os.getcwd(),
        "finished": datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds"),
        "device": _device_name(device),
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "Python": platform.python_version(),
    }
    for package in _PACKAGES:
        try:
            facts[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:  # run from a source folder
            continue
    if device.type == "cuda":
        facts["CUDA"] = str(torch.version.cuda)
    commit = _git_state()
    if commit is not None:
        facts["git"] = commit
    return facts


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({os.cpu_count()} cores)" if device.type == "cpu" else str(device)


def _git_state() -> str | None:
    """Commit of the folder worked in, and whether files differ from it; None outside of git."""

    def ask(*words: str) -> str:
        done = subprocess.run(
            ["git", *words], capture_output=True, text=True, timeout=10, check=True
        )
        return done.stdout.strip()

    try:
        commit = ask("rev-parse", "HEAD")
        changed = ask("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):  # no git, or no repository
        return None
    return f"{commit[:12]}, with changes" if changed else commit[:12]


@contextmanager
def noted_warnings() -> Iterator[list[str]]:
    """Keep the text of Python warnings that are shown meanwhile; they are shown all the same.

    Yields:
        The sentences so far, each once; the caller may add its own.
    """
    noted: list[str] = []
    shown = warnings.showwarning

    def note(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        text = str(message)[:_LONGEST]
        if text not in noted and len(noted) < _MOST_WARNINGS:
            noted.append(text)
        shown(message, category, *place, **more)

    warnings.showwarning = note
    try:
        yield noted
    finally:
        warnings.showwarning = shown
