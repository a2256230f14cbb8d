"""How long an image takes: every engine on the same input, each thread count in its own process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from unisolo.benchmark.engines import ENGINES, Subject
from unisolo.benchmark.machine import describe_machine
from unisolo.benchmark.timing import Timing, time_in_turns
from unisolo.config import load_config

__all__ = ["BASE_ENGINE", "LatencyReport", "LatencyRow", "measure_latency"]

BASE_ENGINE = "eager"


@dataclass(frozen=True)
class LatencyRow:
    """One engine on one model, size and thread count.

    Attributes:
        model: Name of the configuration file, without its ending.
        size: (H, W) of the input.
        threads: Threads.
        engine: A key of `ENGINES`.
        instances: How many came out.
        ready_seconds: Time of opening, or compiling, and the first run; not of exporting.
        timing: In milliseconds.
        speedup: Eager's median over this one, measured in the same process; None where eager was
            not measured.
        cpu_speedup: The same of processor time.
    """

    model: str
    size: tuple[int, int]
    threads: int
    engine: str
    instances: int
    ready_seconds: float
    timing: Timing
    speedup: float | None
    cpu_speedup: float | None


@dataclass(frozen=True)
class LatencyReport:
    """All rows and what they were measured on.

    Attributes:
        machine: See `describe_machine`.
        fixed: Whether graphs were made for one size.
        rows: In the order they were measured.
    """

    machine: dict[str, Any]
    fixed: bool
    rows: tuple[LatencyRow, ...]

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return asdict(self)


def measure_latency(
    configs: Sequence[Path],
    *,
    engines: Sequence[str] = tuple(ENGINES),
    threads: Sequence[int] = (1, 2),
    repeat: int = 20,
    size: tuple[int, int] | None = None,
    fixed: bool = False,
    graphs: Path | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> LatencyReport:
    """Measure models with random weights from the image tensor to the instances.

    Args:
        configs: Configuration files of the models.
        engines: Keys of `ENGINES`; ratios need "eager" among them.
        threads: Thread counts.
        repeat: Timed runs of each engine.
        size: (H, W) of the input, multiples of 32; None = the configuration's `data.image_size`,
            square.
        fixed: Export graphs for this size and one image alone, instead of for any.
        graphs: Folder for exported graphs; those it holds are used again. None = a temporary one.
        tell: Gets one line per step.

    Returns:
        The report.

    Raises:
        ValueError: If an engine is unknown or a number out of range.
        RuntimeError: If a measuring process fails.
    """
    unknown = [name for name in engines if name not in ENGINES]
    if unknown or not engines:
        raise ValueError(
            f"unknown engine {', '.join(unknown) or '(none)'}; choose from {', '.join(ENGINES)}"
        )
    if any(count < 1 for count in threads) or not threads:
        raise ValueError(f"thread counts must be at least 1, got {list(threads)}")
    if repeat < 1:
        raise ValueError(f"the number of timed runs must be at least 1, got {repeat}")
    rows: list[LatencyRow] = []
    with tempfile.TemporaryDirectory(prefix="unisolo-benchmark-") as temporary:
        folder = graphs or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for config in configs:
            side = load_config(config).data.image_size
            subject = Subject(config.resolve(), size or (side, side), fixed, folder.resolve())
            for name in dict.fromkeys(engines):
                tell(f"{config.stem}: preparing {name}")
                ENGINES[name].prepare(subject)
            for count in threads:
                tell(f"{config.stem}: measuring with {count} thread{'s' * (count > 1)}")
                rows += _in_own_process(subject, engines, count, repeat)
    return LatencyReport(describe_machine(), fixed, tuple(rows))


def _in_own_process(
    subject: Subject, engines: Sequence[str], threads: int, repeat: int
) -> list[LatencyRow]:
    """Measure in a process that never had another number of threads."""
    job = {
        "config": str(subject.config),
        "size": subject.size,
        "fixed": subject.fixed,
        "folder": str(subject.folder),
        "engines": list(dict.fromkeys(engines)),
        "threads": threads,
        "repeat": repeat,
    }
    # Threads that spin while they wait take time from the engine whose turn it is.
    wanted = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(
        [sys.executable, "-m", "unisolo.benchmark.worker"],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        env={**os.environ, **wanted},
        check=False,
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(
            f"measuring {subject.config.stem} with {threads} threads failed with exit code "
            f"{done.returncode}: {last}"
        )
    found = json.loads(done.stdout.strip().splitlines()[-1])
    base = next((row["timing"] for row in found if row["engine"] == BASE_ENGINE), None)
    return [
        LatencyRow(
            model=subject.config.stem,
            size=subject.size,
            threads=threads,
            engine=row["engine"],
            instances=row["instances"],
            ready_seconds=row["ready_seconds"],
            timing=Timing(**row["timing"]),
            speedup=None if base is None else base["median"] / row["timing"]["median"],
            cpu_speedup=None if base is None else base["cpu"] / row["timing"]["cpu"],
        )
        for row in found
    ]


def measure_here(job: dict[str, Any]) -> list[dict[str, Any]]:
    """Measure the engines of one model in this process, in turns; see `unisolo.benchmark.worker`.

    Args:
        job: What `measure_latency` sends.

    Returns:
        For each engine: engine, instances, ready_seconds, timing.
    """
    import time

    import torch

    from unisolo.benchmark.models import input_image

    torch.set_num_threads(job["threads"])
    size = (job["size"][0], job["size"][1])
    subject = Subject(Path(job["config"]), size, job["fixed"], Path(job["folder"]))
    subject.build()  # before the clock of the first engine starts
    images, image_sizes = input_image(size), torch.tensor([size])
    calls, rows = {}, []
    for name in job["engines"]:
        start = time.perf_counter()
        call = ENGINES[name].open(subject, job["threads"])
        instances = call(images, image_sizes)
        seconds = time.perf_counter() - start
        rows.append({"engine": name, "instances": instances, "ready_seconds": seconds})
        calls[name] = lambda call=call: call(images, image_sizes)
    timings = time_in_turns(calls, job["repeat"])
    return [{**row, "timing": asdict(timings[row["engine"]])} for row in rows]
