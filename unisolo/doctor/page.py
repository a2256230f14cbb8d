"""The report as one HTML page that needs nothing else."""

from __future__ import annotations

from typing import Any

from unisolo.doctor.codes import CODES
from unisolo.doctor.evidence import draw_evidence
from unisolo.doctor.examine import Report
from unisolo.doctor.statistics import QUANTILES
from unisolo.doctor.text import summary
from unisolo.pages import data_uri, page_environment

__all__ = ["render_page"]

_EXAMPLES = 100
"""Entries listed per code; the JSON report has them all."""
_PICTURES = 4
"""Pictures per code."""
_MAX_BYTES = 8_000_000
"""Of all pictures together; the page stays below 10 MB."""
_LONGEST = 300
"""Letters of a message; a box in a file may be any text."""


def render_page(report: Report) -> str:
    """Return the report as an HTML page without any request to elsewhere.

    Pictures of the worst offenders are part of it. Everything that comes from files is escaped.
    """
    template = page_environment("unisolo.doctor").get_template("page.html.jinja")
    page: str = template.render(
        title=f"unisolo doctor: {report.root.name}",
        summary=summary(report),
        errors=report.errors,
        task=report.task,
        groups=_groups(report),
        splits={name: _split(numbers) for name, numbers in report.statistics.items()},
    )
    return page


def _groups(report: Report) -> list[dict[str, Any]]:
    groups = []
    room = _MAX_BYTES
    for code, found in report.findings.groups().items():
        entries = [
            {"file": x.file, "entry": x.entry, "message": x.message[:_LONGEST]}
            for x in found[:_EXAMPLES]
        ]
        pictures: list[dict[str, str]] = []
        for finding in found[: 3 * _PICTURES]:
            picture = None if finding.evidence is None else draw_evidence(finding.evidence)
            if picture is None or len(pictures) == _PICTURES:
                continue
            uri = data_uri(picture)
            if len(uri) > room:
                break
            room -= len(uri)
            text = f"{finding.entry or finding.file}: {finding.message[:_LONGEST]}"
            pictures.append({"uri": uri, "text": text})
        severity, what, fix, mend = CODES[code]
        groups.append(
            {
                "code": code,
                "severity": severity.value,
                "what": what,
                "fix": fix,
                "mend": mend,
                "count": len(found),
                "entries": entries,
                "more": len(found) - len(entries),
                "pictures": pictures,
            }
        )
    return groups


def _split(numbers: Any) -> dict[str, Any]:
    """What the template needs of a split, with the widths of bars in percent."""
    most = max(numbers.categories.values(), default=0) or 1
    levels = []
    if numbers.grid is not None and numbers.coverage is not None:
        fullest = max(numbers.coverage.per_level) or 1
        for size, (low, high), count in zip(
            numbers.grid.sizes, numbers.grid.scale_ranges, numbers.coverage.per_level, strict=True
        ):
            name = f"{size} x {size}, {low:.0f} to {high:.0f} px"
            levels.append((name, count, 100 * count / fullest))
    return {
        "numbers": numbers,
        "categories": [
            (name, count, 100 * count / most) for name, count in numbers.categories.items()
        ],
        "levels": levels,
        "sides": [
            (f"{quantile:.0%}", f"{side:.0f}")
            for quantile, side in zip(QUANTILES, numbers.sides, strict=False)
        ],
        "trials": [
            (" ".join(trial.settings) or "as it is", trial.lost, trial.looked_at)
            for trial in numbers.trials
        ],
    }
