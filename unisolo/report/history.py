"""The numbers of a training over its steps, from `log.jsonl`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from unisolo.reading import parse_json

__all__ = ["History", "read_history"]

Curve = list[tuple[float, float]]

_MOST_POINTS = 300
"""Points of a curve; more are averaged in groups, which a line on a screen cannot tell apart."""


@dataclass
class History:
    """What was logged.

    Attributes:
        training: (step, value) of each number of the steps, by name; not finite ones left out.
        evaluations: Likewise of each metric.
        unread: Lines that are no row of a log.
        averaged: How many logged values a point of `training` stands for.
    """

    training: dict[str, Curve] = field(default_factory=dict)
    evaluations: dict[str, Curve] = field(default_factory=dict)
    unread: int = 0
    averaged: int = 1


def read_history(path: Path) -> History:
    """Read the log of a run.

    Args:
        path: A `log.jsonl`; a file that is not there gives an empty history.

    Raises:
        OSError: If it cannot be read.
    """
    history = History()
    if not path.is_file():
        return history
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = parse_json(line)
            step = float(row.pop("step"))
            numbers = {name: float(value) for name, value in row.items() if value is not None}
        except (AttributeError, KeyError, TypeError, ValueError):
            history.unread += 1
            continue
        for name, value in numbers.items():
            if math.isfinite(value) and math.isfinite(step):
                curves = history.evaluations if "/" in name else history.training
                curves.setdefault(name, []).append((step, value))
    longest = max(map(len, history.training.values()), default=0)
    history.averaged = max(1, -(-longest // _MOST_POINTS))
    history.training = {
        name: _thinned(curve, history.averaged) for name, curve in history.training.items()
    }
    return history


def _thinned(curve: Curve, group: int) -> Curve:
    """The mean of each `group` neighbours."""
    if group == 1:
        return curve
    parts = [curve[start : start + group] for start in range(0, len(curve), group)]
    return [
        (sum(step for step, _ in part) / len(part), sum(value for _, value in part) / len(part))
        for part in parts
    ]
