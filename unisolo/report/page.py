"""The report as one HTML page that needs nothing else."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import yaml

from unisolo.config import SHOWN_SCORE
from unisolo.pages import page_environment
from unisolo.report.charts import calibration_chart, curve_charts, precision_chart
from unisolo.report.confusions import compact_matrix, top_mistakes
from unisolo.report.figures import Figures
from unisolo.report.history import History
from unisolo.report.pictures import Pictures

__all__ = ["Content", "render_report"]

_HEADLINE = {
    "panoptic/PQ": "panoptic quality",
    "panoptic/PQ_th": "PQ of things",
    "panoptic/PQ_st": "PQ of stuff",
    "segm/AP": "mask AP",
    "segm/AP50": "mask AP at IoU 0.5",
    "bbox/AP": "box AP",
    "bbox/AP50": "box AP at IoU 0.5",
}
_AP = ("AP", "AP50", "AP75", "APs", "APm", "APl")


@dataclass(frozen=True)
class Content:
    """What is on the page.

    Attributes:
        title: Of the page.
        task: Which was evaluated.
        split: Part of the data set.
        images: Images in it.
        headline: Names of the metrics that the task is judged by.
        metrics: As in `metrics.json`, percent; None or NaN where undefined.
        figures: The numbers behind them; None where the task has no AP.
        history: Of the training; empty where there was none.
        pictures: Images that went best and worst.
        warnings: Sentences of the run and of the report.
        config: Settings; empty where unknown.
        facts: Names and values: versions, device, command.
    """

    title: str
    task: str
    split: str
    images: int
    headline: Sequence[str]
    metrics: Mapping[str, float | None]
    figures: Figures | None
    history: History
    pictures: Pictures
    warnings: list[str]
    config: Mapping[str, Any]
    facts: Mapping[str, str]


def render_report(content: Content) -> str:
    """Return the page; every text from outside is escaped, and only the page's own script runs."""
    script = resources.files("unisolo.report").joinpath("report.js").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = page_environment("unisolo.report")
    environment.filters |= {"percent": _percent, "sortable": _sortable}
    settings = yaml.safe_dump(dict(content.config), sort_keys=False, allow_unicode=True)
    page: str = environment.get_template("report.html.jinja").render(
        c=content,
        title=content.title,
        digest=digest,
        script=script,
        kept=SHOWN_SCORE,
        headline=_headline(content),
        panoptic_rows=_panoptic_rows(content.metrics),
        ap_rows=_ap_rows(content.metrics),
        other_rows=[
            (name.replace("/", " "), value)
            for name, value in content.metrics.items()
            if name.split("/")[0] not in ("panoptic", "segm", "bbox")
        ],
        curves=curve_charts(content.history),
        settings=settings if content.config else "",
        **({} if content.figures is None else _drawn(content.figures)),
    )
    return page


def _drawn(figures: Figures) -> dict[str, Any]:
    """What the template needs of the figures besides themselves."""
    calibration = figures.calibration
    return {
        # Of the overall curve every recall of a twentieth tells its numbers, of the others a tenth.
        "precision": [
            precision_chart(curve, dots=20 if place == 0 else 10)
            for place, curve in enumerate(figures.curves)
        ],
        "calibration": calibration,
        "calibration_chart": None if calibration is None else calibration_chart(calibration),
        "mistakes": top_mistakes(figures.confusion),
        "matrix": compact_matrix(figures.confusion),
    }


def _headline(content: Content) -> list[tuple[str, float | None]]:
    """The metrics in large figures: those known here, then those of a task of the user's own."""
    names = dict.fromkeys((*_HEADLINE, *content.headline))
    return [
        (_HEADLINE.get(name, name.replace("/", " ")), content.metrics[name])
        for name in names
        if name in content.metrics
    ]


def _panoptic_rows(metrics: Mapping[str, float | None]) -> list[tuple[str, list[float | None]]]:
    return [
        (name, [metrics.get(f"panoptic/{name}{suffix}") for suffix in ("", "_th", "_st")])
        for name in ("PQ", "SQ", "RQ")
        if f"panoptic/{name}" in metrics
    ]


def _ap_rows(metrics: Mapping[str, float | None]) -> list[tuple[str, list[float | None]]]:
    return [
        (text, [metrics.get(f"{kind}/{name}") for name in _AP])
        for kind, text in (("segm", "masks"), ("bbox", "boxes"))
        if f"{kind}/AP" in metrics
    ]


def _percent(value: float | None) -> str:
    """One decimal; a dash where there is no ground truth."""
    return "-" if value is None or math.isnan(value) else f"{value:.1f}"


def _sortable(value: float | None) -> str:
    """For the sorting script: empty where there is no number."""
    return "" if value is None or math.isnan(value) else f"{value:.4f}"
