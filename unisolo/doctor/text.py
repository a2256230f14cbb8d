"""The report in a terminal."""

from __future__ import annotations

from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from unisolo.doctor.codes import CODES, Severity
from unisolo.doctor.examine import Report
from unisolo.doctor.findings import Finding, printable
from unisolo.doctor.statistics import QUANTILES, Statistics

__all__ = ["print_report", "summary"]

_EXAMPLES = 3
_CATEGORIES = 12
_COLORS = {Severity.error: "bold red", Severity.warning: "yellow", Severity.note: "cyan"}


def summary(report: Report) -> str:
    """Return the outcome in a sentence."""
    counts = {severity: report.findings.count(severity) for severity in Severity}
    said = ", ".join(
        f"{count} {severity.value}{'' if count == 1 else 's'}" for severity, count in counts.items()
    )
    end = "it cannot be trained on as it is" if report.errors else "it can be trained on"
    return f"{printable(str(report.root))}: {said}; {end}"


def print_report(report: Report, console: Console) -> None:
    """Print the findings by code, the worst first, and then the statistics.

    Args:
        report: The report.
        console: Where to; nothing in the report is taken for markup.
    """
    groups = report.findings.groups()
    if groups:
        table = Table(title="Findings", title_justify="left", show_lines=True, expand=True)
        table.add_column("count", justify="right", no_wrap=True)
        table.add_column("code, what, where, what to do", ratio=1, overflow="fold")
        for code, found in groups.items():
            table.add_row(str(len(found)), _group(code, found))
        console.print(table)
    for name, numbers in report.statistics.items():
        _print_statistics(name, numbers, console)
    style = "bold red" if report.errors else "bold green"
    console.print(Text(summary(report), style))


def _group(code: str, found: list[Finding]) -> Group:
    severity = CODES[code].severity
    head = Text.assemble((f"{severity.value} {code}", _COLORS[severity]), f": {CODES[code].what}")
    lines: list[Text | Padding] = [head]
    for finding in found[:_EXAMPLES]:
        where = f"{finding.file}, {finding.entry}" if finding.entry else finding.file
        lines.append(Padding(Text(f"{where}: {finding.message}", "dim"), (0, 0, 0, 2)))
    if len(found) > _EXAMPLES:
        lines.append(Padding(Text(f"... and {len(found) - _EXAMPLES} more", "dim"), (0, 0, 0, 2)))
    lines.append(Text.assemble(("fix: ", "bold"), CODES[code].fix))
    return Group(*lines)


def _print_statistics(name: str, numbers: Statistics, console: Console) -> None:
    console.print(Text(f"\nSplit {name}", "bold"))
    console.print(
        f"{numbers.images} images ({numbers.empty_images} without objects), {numbers.objects} "
        f"objects (at most {numbers.most_objects} in an image), crowd regions: {numbers.crowd}"
    )
    names = list(numbers.categories.items())
    shown = ", ".join(f"{printable(category)} {count}" for category, count in names[:_CATEGORIES])
    more = f" and {len(names) - _CATEGORIES} more" if len(names) > _CATEGORIES else ""
    console.print(Text(f"categories: {shown}{more}"))
    if not numbers.sides:
        return
    sizes = ", ".join(f"{size} {count}" for size, count in numbers.sizes.items())
    console.print(f"sizes by COCO's borders, in pixels of the file: {sizes}")
    sides = "  ".join(
        f"{quantile:.0%} {side:.0f}"
        for quantile, side in zip(QUANTILES, numbers.sides, strict=True)
    )
    console.print(f"sqrt(box area) at the training size, quantiles: {sides} px")
    if numbers.grid is None or numbers.coverage is None:
        return
    table = Table(title="Grids", title_justify="left")
    for column in ("grid", "scale range (px)", "objects"):
        table.add_column(column, justify="right")
    for size, (low, high), count in zip(
        numbers.grid.sizes, numbers.grid.scale_ranges, numbers.coverage.per_level, strict=True
    ):
        table.add_row(f"{size} x {size}", f"{low:.0f} to {high:.0f}", str(count))
    console.print(table)
    found = numbers.coverage
    console.print(
        f"of {found.looked_at} objects looked at {found.no_cell} lie outside every scale range, "
        f"{found.collided} lose all their cells to others"
    )
    if numbers.advice:
        console.print(Text(f"grids: {numbers.advice}", "yellow"))
