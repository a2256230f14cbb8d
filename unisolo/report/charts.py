"""Where the lines, dots and ticks of a chart go; `charts.html.jinja` draws them as SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from unisolo.report.figures import Calibration, PrecisionRecall
from unisolo.report.history import Curve, History

__all__ = ["Chart", "calibration_chart", "curve_charts", "number", "precision_chart"]

WIDTH, HEIGHT = 360, 200
"""Of the drawing, in its own units."""
LEFT, RIGHT, TOP, BOTTOM = 50, 350, 10, 164
"""Edges of the area of the data; the rest is for the numbers beside it."""


@dataclass(frozen=True)
class Line:
    """One line: its name, which colour, its points as SVG wants them, and dots with texts."""

    name: str
    color: int
    points: str
    dots: list[tuple[float, float, str]]


@dataclass(frozen=True)
class Chart:
    """One chart.

    Attributes:
        title: Above it.
        x_name: Under its horizontal axis.
        x_ticks: (position, text) of its numbers.
        y_ticks: Likewise.
        lines: Painted over the bars.
        bars: (left, top, width, height, text) of each.
        diagonal: Whether to draw the line from corner to corner.
    """

    title: str
    x_name: str
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    lines: list[Line]
    bars: list[tuple[float, float, float, float, str]] = field(default_factory=list)
    diagonal: bool = False


@dataclass(frozen=True)
class _Axis:
    """Puts values of low..high on start..end."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self, most: int) -> list[tuple[float, str]]:
        """At most so many round numbers, and where they are."""
        step = _round_step((self.high - self.low) / most)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [(self(n * step), number(n * step)) for n in range(first, last + 1)]


def number(value: float) -> str:
    """A number in few letters: 12k, 0.25, 2e-05."""
    if abs(value) >= 1e6:
        return f"{value / 1e6:.4g}M"
    if abs(value) >= 1e4:
        return f"{value / 1e3:.4g}k"
    return f"{value:.4g}"


def curve_charts(history: History) -> list[Chart]:
    """Return the charts of a training: loss, its parts, rate, gradient, speed, metrics.

    A curve of fewer than two points is left out: it has no course.
    """
    found = {name: curve for name, curve in history.training.items() if len(curve) > 1}
    parts = {
        name.removeprefix("loss_"): curve
        for name, curve in found.items()
        if name.startswith("loss_")
    }
    charts = []
    for title, curves in (
        ("loss (weighted sum)", {"loss": found.get("loss", [])}),
        ("parts of the loss, before weighting", parts),
        ("learning rate", {"learning rate": found.get("lr", [])}),
        ("norm of the gradient", {"norm": found.get("grad_norm", [])}),
        ("images per second", {"images per second": found.get("images_per_second", [])}),
        *(
            (title, {name: history.evaluations.get(name, []) for name in names})
            for title, names in _evaluations(history).items()
        ),
    ):
        drawn = {name: curve for name, curve in curves.items() if len(curve) > 1}
        if drawn:
            charts.append(_line_chart(title, drawn))
    return charts


_METRICS = {
    "evaluations, panoptic (percent)": ("panoptic/PQ", "panoptic/PQ_th", "panoptic/PQ_st"),
    "evaluations, AP (percent)": ("segm/AP", "bbox/AP"),
}


def _evaluations(history: History) -> dict[str, Sequence[str]]:
    """The metrics of each chart, by its title: ours, then a chart for each kind of others."""
    charts: dict[str, Sequence[str]] = dict(_METRICS)
    kinds = [name.split("/")[0] for name in history.evaluations]
    for kind in dict.fromkeys(kinds):
        if kind not in ("panoptic", "segm", "bbox"):
            charts[f"evaluations, {kind} (percent)"] = [
                name for name in history.evaluations if name.split("/")[0] == kind
            ]
    return charts


def precision_chart(curve: PrecisionRecall, *, dots: int = 20) -> Chart:
    """Return precision over recall at IoU 0.5 and 0.75.

    Args:
        curve: At 101 recalls.
        dots: Intervals between the places that tell their numbers.
    """
    across, up = _Axis(0, 1, LEFT, RIGHT), _Axis(0, 1, BOTTOM, TOP)
    lines = []
    for color, (name, values) in enumerate((("IoU 0.5", curve.at50), ("IoU 0.75", curve.at75))):
        places = [(across(n / 100), up(value)) for n, value in enumerate(values)]
        texts = [
            (*places[n], f"{name}: precision {values[n]:.2f} at recall {n / 100:.2f}")
            for n in range(0, 101, 100 // dots)
        ]
        lines.append(Line(name, color, _points(places), texts))
    return Chart(curve.name, "recall", across.ticks(6), up.ticks(5), lines)


def calibration_chart(calibration: Calibration) -> Chart:
    """Return the share of right predictions over their score, beside the line of trust."""
    across, up = _Axis(0, 1, LEFT, RIGHT), _Axis(0, 1, BOTTOM, TOP)
    bars, places, dots = [], [], []
    for entry in calibration.bins:
        if not entry.count:
            continue
        text = (
            f"scores {entry.low:.1f} to {entry.high:.1f}: {entry.right:.0%} of {entry.count} are "
            f"right, mean score {entry.score:.2f}"
        )
        left, top = across(entry.low), up(entry.right)
        width = round(across(entry.high) - left - 1, 1)
        bars.append((left, top, width, round(BOTTOM - top, 1), text))
        places.append((across(entry.score), up(entry.right)))
        dots.append((*places[-1], text))
    line = Line("share that is right, at the mean score", 1, _points(places), dots)
    return Chart(
        "share that is right", "score", across.ticks(6), up.ticks(5), [line], bars, diagonal=True
    )


def _line_chart(title: str, curves: dict[str, Curve]) -> Chart:
    steps = [step for curve in curves.values() for step, _ in curve]
    values = [value for curve in curves.values() for _, value in curve]
    low, high = min(0.0, min(values)), max(0.0, max(values))
    across = _Axis(min(steps), max(max(steps), min(steps) + 1), LEFT, RIGHT)
    up = _Axis(low, high if high > low else low + 1, BOTTOM, TOP)
    lines = []
    for color, (name, curve) in enumerate(curves.items()):
        places = [(across(step), up(value)) for step, value in curve]
        dots = [
            (*place, f"{name} {number(value)} at step {round(step)}")
            for place, (step, value) in zip(places, curve, strict=True)
        ]
        lines.append(Line(name, color, _points(places), dots))
    return Chart(title, "step", across.ticks(6), up.ticks(5), lines)


def _points(places: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:g},{y:g}" for x, y in places)


def _round_step(least: float) -> float:
    """The next of 1, 2, 5, 10, ... times a power of ten."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(power * digit for digit in (1, 2, 5, 10) if power * digit >= least * (1 - 1e-9))
