"""Timing several ways to do one thing, in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

__all__ = ["Timing", "time_in_turns"]

TURN = 5
"""Timed calls in a row. Long enough to be in the steady state, short enough that a machine that
slows down slows all of them."""


@dataclass(frozen=True)
class Timing:
    """Times of one thing, in milliseconds.

    Attributes:
        median: Of all timed calls.
        least: The fastest.
        most: The slowest.
        cpu: Processor time of all threads, median. With one thread it is the time that the call
            takes on a quiet machine, even if others took the processor in between.
        calls: How many were timed.
    """

    median: float
    least: float
    most: float
    cpu: float
    calls: int


def time_in_turns(
    calls: Mapping[str, Callable[[], object]], repeat: int, *, warm_up: int = 2
) -> dict[str, Timing]:
    """Time each of some calls `repeat` times.

    They take turns of `TURN` timed calls, each turn after one that is not timed (caches and threads
    belong to whoever ran last).

    Args:
        calls: What to time, by name.
        repeat: Timed calls of each, at least 1.
        warm_up: Calls of each before anything is timed.

    Returns:
        Timings by name.
    """
    for call in calls.values():
        for _ in range(warm_up):
            call()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for start in range(0, repeat, TURN):
        for name, call in calls.items():
            call()
            times[name] += [_milliseconds(call) for _ in range(min(TURN, repeat - start))]
    return {name: _summary(found) for name, found in times.items()}


def _summary(times: list[tuple[float, float]]) -> Timing:
    walls, cpus = zip(*times, strict=True)
    return Timing(
        median=statistics.median(walls),
        least=min(walls),
        most=max(walls),
        cpu=statistics.median(cpus),
        calls=len(walls),
    )


def _milliseconds(call: Callable[[], object]) -> tuple[float, float]:
    """Time passed, and processor time."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return 1e3 * (time.perf_counter() - wall), 1e3 * (time.process_time() - cpu)
