"""How long scoring takes: the evaluators' two back ends on the same generated results."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from unisolo.benchmark.generated_results import GeneratedResults, generate_results
from unisolo.benchmark.goals import Goal
from unisolo.benchmark.machine import describe_machine
from unisolo.evaluation.coco import CocoEvaluator
from unisolo.evaluation.panoptic import PanopticEvaluator

__all__ = [
    "EvaluateReport",
    "EvaluateRow",
    "evaluate_goals",
    "evaluate_table",
    "failed_checks",
    "measure_evaluation",
]

PARTS = ("bbox", "segm", "panoptic")

IMAGES, PREDICTIONS, SPEEDUP = 5000, 50, 10.0
"""What the goal is stated for, and how many times as fast as the official tools it is."""

DIFFERENCE = 1e-4
"""Percent points: metrics equal to 6 digits, as a share of 1."""


@dataclass(frozen=True)
class EvaluateRow:
    """One part of an evaluation.

    Attributes:
        part: "bbox", "segm", "panoptic", or "all" (their sum).
        official_seconds: pycocotools or panopticapi, each in one process, as they come.
        seconds: The evaluators' default back end.
        official_cpu_seconds: Processor time of the former, all threads.
        cpu_seconds: Processor time of the latter.
        difference: Largest difference of a metric between the two, in percent points.
    """

    part: str
    official_seconds: float
    seconds: float
    official_cpu_seconds: float
    cpu_seconds: float
    difference: float

    @property
    def speedup(self) -> float:
        """Official time over ours."""
        return self.official_seconds / self.seconds


@dataclass(frozen=True)
class EvaluateReport:
    """What was measured, and on what.

    Attributes:
        machine: See `describe_machine`.
        images: Number of images.
        predictions: Detections of each.
        rows: One a part, then their sum.
        metrics: Of the default back end, in percent.
    """

    machine: dict[str, Any]
    images: int
    predictions: int
    rows: tuple[EvaluateRow, ...]
    metrics: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        values = asdict(self)
        for row, entry in zip(self.rows, values["rows"], strict=True):
            entry["speedup"] = row.speedup
        return values


def measure_evaluation(
    *,
    images: int = 5000,
    predictions: int = 50,
    seed: int = 0,
    tell: Callable[[str], None] = lambda text: None,
) -> EvaluateReport:
    """Time AP of boxes and masks and PQ from predictions in memory to the metrics.

    Each back end gets fresh evaluators that hold the same predictions (RLE, PNG); what is timed is
    `compute`. It runs once: the work takes minutes, and differences of a few percent say nothing.

    Args:
        images: Generated images.
        predictions: Detections of each.
        seed: Of the generated scenes.
        tell: Gets one line per step.

    Returns:
        The report.

    Raises:
        ImportError: If panopticapi is not installed.
        ValueError: If a number is below 1.
    """
    with tempfile.TemporaryDirectory(prefix="unisolo-benchmark-") as folder:
        tell(f"generating {images} images with {predictions} predictions each")
        generated = generate_results(
            Path(folder), images=images, predictions=predictions, seed=seed
        )
        found = {}
        for backend in ("hotcoco", "official"):
            for part in PARTS:
                tell(f"{part}: {backend}")
                found[backend, part] = _timed(_computation(generated, part, backend))
    rows = []
    for part in PARTS:
        ours, official = found["hotcoco", part], found["official", part]
        difference = max(_distance(value, official[0][name]) for name, value in ours[0].items())
        rows.append(EvaluateRow(part, official[1], ours[1], official[2], ours[2], difference))
    rows.append(
        EvaluateRow(
            "all",
            sum(row.official_seconds for row in rows),
            sum(row.seconds for row in rows),
            sum(row.official_cpu_seconds for row in rows),
            sum(row.cpu_seconds for row in rows),
            max(row.difference for row in rows),
        )
    )
    metrics = {name: value for part in PARTS for name, value in found["hotcoco", part][0].items()}
    return EvaluateReport(describe_machine(), images, predictions, tuple(rows), metrics)


def evaluate_table(report: EvaluateReport) -> str:
    """Make one table of all rows, and a line of metrics."""
    lines = [
        f"{report.images} generated images, {report.predictions} predictions each",
        "",
        "| part | official s | ours s | ratio | official CPU s | ours CPU s | largest difference |",
        "|" + "---|" * 7,
    ]
    lines += [
        f"| {row.part} | {row.official_seconds:.1f} | {row.seconds:.2f} | {row.speedup:.1f} x | "
        f"{row.official_cpu_seconds:.1f} | {row.cpu_seconds:.2f} | {row.difference:.0e} |"
        for row in report.rows
    ]
    shown = ("bbox/AP", "segm/AP", "panoptic/PQ")
    figures = ", ".join(f"{name} {report.metrics[name]:.4f}" for name in shown)
    return "\n".join([*lines, "", figures])


def evaluate_goals(report: EvaluateReport) -> list[Goal]:
    """Return what the goal for evaluation asks of a report; nothing of smaller ones.

    Args:
        report: Of any run.
    """
    if report.images < IMAGES or report.predictions < PREDICTIONS:
        return []
    whole = report.rows[-1]
    return [
        Goal("all parts: official time over ours", whole.speedup, SPEEDUP, True, " x"),
        Goal("largest difference of a metric, percent points", whole.difference, DIFFERENCE),
    ]


def failed_checks(report: EvaluateReport) -> list[str]:
    """Return a sentence for every part whose metrics are not the official ones.

    Args:
        report: Of any run.
    """
    return [
        f"{row.part}: a metric differs by {row.difference:.1e} percent points from the official one"
        for row in report.rows
        if row.part in PARTS and not row.difference <= DIFFERENCE
    ]


def _computation(
    generated: GeneratedResults, part: str, backend: str
) -> Callable[[], dict[str, float]]:
    """Fill an evaluator; what it returns is left to be timed."""
    if part == "panoptic":
        panoptic = PanopticEvaluator(
            generated.panoptic, generated.panoptic_dir, generated.categories, backend
        )
        panoptic.merge([generated.maps])
        return panoptic.compute
    coco = CocoEvaluator(generated.instances, generated.categories, (part,), backend)
    coco.merge([generated.detections])
    return coco.compute


def _timed(compute: Callable[[], dict[str, float]]) -> tuple[dict[str, float], float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    metrics = compute()
    return metrics, time.perf_counter() - wall, time.process_time() - cpu


def _distance(one: float, other: float) -> float:
    if math.isnan(one) or math.isnan(other):  # a maximum would lose it
        return 0.0 if math.isnan(one) and math.isnan(other) else math.inf
    return abs(one - other)
