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
        calls: How many were timed.
    """

    median: float
    least: float
    most: float
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
    times: dict[str, list[float]] = {name: [] for name in calls}
    for start in range(0, repeat, TURN):
        for name, call in calls.items():
            call()
            times[name] += [_milliseconds(call) for _ in range(min(TURN, repeat - start))]
    return {
        name: Timing(statistics.median(found), min(found), max(found), len(found))
        for name, found in times.items()
    }


def _milliseconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - start)
