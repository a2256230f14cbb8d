"""Figures that this package is meant to reach, printed beside what a run measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Goal", "goals_table"]


@dataclass(frozen=True)
class Goal:
    """One measured figure and its bound, inclusive.

    Attributes:
        what: What was measured.
        value: The figure; None where it could not be found out.
        bound: What it should be at most, or at least.
        at_least: Which of them.
        unit: Behind both, e.g. " x" or " us".
    """

    what: str
    value: float | None
    bound: float
    at_least: bool = False
    unit: str = ""

    @property
    def met(self) -> bool:
        """Whether the figure is within its bound; not finite, or unknown, is not."""
        if self.value is None:
            return False
        return self.value >= self.bound if self.at_least else self.value <= self.bound


def goals_table(goals: Sequence[Goal]) -> str:
    """Make one table of all goals; a sentence where a run had none.

    Args:
        goals: Those that the run can answer.
    """
    if not goals:
        return "Goals are stated for other sizes or another device: this run answers none."
    lines = ["| goal | measured | bound | met |", "|" + "---|" * 4]
    for goal in goals:
        found = "unknown" if goal.value is None else f"{goal.value:.3g}{goal.unit}"
        sign = ">=" if goal.at_least else "<="
        met = "yes" if goal.met else "NO"
        lines.append(f"| {goal.what} | {found} | {sign} {goal.bound:g}{goal.unit} | {met} |")
    return "\n".join(lines)
