"""Metrics as a table in the terminal."""

from __future__ import annotations

from unisolo.cli.common import print_table

__all__ = ["print_metrics"]


def print_metrics(metrics: dict[str, float]) -> None:
    """Print metrics as one table: a row per metric, things and stuff (`_th`, `_st`) beside all.

    Args:
        metrics: By flat name (`panoptic/PQ_th`, `segm/AP`), in percent.
    """
    from rich.table import Table

    rows: dict[str, dict[str, str]] = {}
    for name, value in metrics.items():
        ending = name[-3:] if name.endswith(("_th", "_st")) else ""
        rows.setdefault(name.removesuffix(ending), {})[ending] = _percent(value)
    table = Table(title="Evaluation (percent)", title_justify="left")
    for column in ("", "all", "things", "stuff"):
        table.add_column(column, justify="left" if not column else "right")
    for name, cells in rows.items():
        columns = (cells.get(ending, "") for ending in ("", "_th", "_st"))
        table.add_row(name.replace("/", " "), *columns)
    print_table(table)


def _percent(value: float) -> str:
    """One decimal; a dash where there is no ground truth to score (NaN)."""
    return f"{value:.1f}" if value == value else "-"
