"""What the post-process is meant to reach, and which checks must hold whatever it takes."""

from __future__ import annotations

from collections.abc import Iterator

from unisolo.benchmark.goals import Goal
from unisolo.benchmark.postprocess.report import PostprocessReport, PostprocessRow

__all__ = ["OURS", "failed_checks", "postprocess_goals"]

OURS = {"cuda": "ours, Triton", "cpu": "ours, CPU"}
"""Name of this package's way, by device."""

SIZES = {"cuda": (800, 1333), "cpu": (608, 800)}
CANDIDATES = {"cuda": (500,), "cpu": (100, 300)}
"""What goals are stated for."""

EAGER, FLOOR, OVERLAPS = 6.0, 2.8, 20.0
"""On a GPU: speedup launched eagerly, multiple of the floor, microseconds of all intersections."""
GRAPH = {"coco": 30.0, "crowd": 15.0, "dense": 15.0, "noise": 15.0}
"""Speedup from a CUDA graph, by scene."""
PROCESSOR = 3.0
"""Speedup of processor time."""
SCORES, PIXELS = 1e-3, 1e-5
"""How far scores, and which share of pixels, may be from the reference's in float32."""


def postprocess_goals(report: PostprocessReport) -> list[Goal]:
    """Return the goals that a report answers: those of its device at the size they are stated for.

    Args:
        report: Of any run.

    Returns:
        Goals in the order of the report's rows; none for other sizes.
    """
    device = report.device
    if report.image_size != SIZES[device]:
        return []
    goals: list[Goal] = []
    stated = [
        row
        for row in report.rows
        if row.candidates in CANDIDATES[device] and row.start == "candidates"
    ]
    for row in stated:
        if row.way == OURS[device]:
            goals += _of_gpu(row) if device == "cuda" else _of_cpu(row)
    if stated and not any(row.way == OURS[device] for row in stated):
        # Left out, a machine whose kernels cannot run would look like one without goals.
        return [Goal(f"{OURS[device]}: not run on this machine", None, 1, True, " x")]
    goals += [
        Goal(
            f"{row.scene}, {row.candidates}: intersections, {row.mode}",
            1e3 * row.timing.median,
            OVERLAPS,
            unit=" us",
        )
        for row in report.stages
        if row.stage == "intersections" and row.mode == "graph" and row.candidates == 500
    ]
    if goals:
        wrong = sum(report.wrong_intersections.values())
        goals.append(Goal("intersections that are not exact", wrong, 0))
    return goals


def failed_checks(report: PostprocessReport) -> list[str]:
    """Return a sentence for every answer of this package that is wrong, however fast it came.

    Args:
        report: Of any run.

    Returns:
        Sentences; none where every count is exact and every kept set is the reference's.
    """
    failed = [
        f"{name} candidates: {count} intersections are not what 64-bit counting gives"
        for name, count in report.wrong_intersections.items()
        if count
    ]
    failed += [
        f"{row.scene}, {row.candidates} candidates, from {row.start}: {row.way} keeps other "
        "instances than the reference-style chain does in float32"
        for row in report.rows
        if row.way.startswith("ours") and row.mode == "eager" and not row.agreement.same_set
    ]
    return failed


def _of_gpu(row: PostprocessRow) -> Iterator[Goal]:
    name = f"{row.scene}, {row.candidates}"
    if row.mode == "graph":
        yield Goal(f"{name}: graph over reference", row.speedup, GRAPH[row.scene], True, " x")
        if row.scene == "coco":
            yield Goal(f"{name}: graph, multiple of the floor", row.of_floor, FLOOR)
        return
    if row.scene == "coco":
        yield Goal(f"{name}: eager over reference, eager", row.speedup, EAGER, True, " x")
    yield from _same_answer(name, row)


def _of_cpu(row: PostprocessRow) -> Iterator[Goal]:
    name = f"{row.scene}, {row.candidates}"
    if row.scene == "coco":
        what = f"{name}: processor time, reference over ours"
        yield Goal(what, row.cpu_speedup, PROCESSOR, True, " x")
    yield from _same_answer(name, row)


def _same_answer(name: str, row: PostprocessRow) -> Iterator[Goal]:
    found = row.agreement
    yield Goal(f"{name}: largest difference of a score", found.score_difference, SCORES)
    pixels = found.different_pixels
    share = None if pixels is None else pixels / max(1, found.pixels)
    yield Goal(f"{name}: share of pixels that differ", share, PIXELS)
