"""Metrics as a table in the terminal."""

from __future__ import annotations

from unisolo.cli.telling import print_table

__all__ = ["print_metrics"]


def print_metrics(metrics: dict[str, float]) -> None:
    """Print metrics as one table, things and stuff (`_th`, `_st`) beside all where they differ.

    Args:
        metrics: By flat name (`panoptic/PQ_th`, `segm/AP`), in percent.
    """
    from rich.table import Table

    rows: dict[str, dict[str, str]] = {}
    for name, value in metrics.items():
        ending = name[-3:] if name.endswith(("_th", "_st")) else ""
        rows.setdefault(name.removesuffix(ending), {})[ending] = _percent(value)
    table = Table(title="Evaluation (percent)", title_justify="left")
    used = {ending for cells in rows.values() for ending in cells}
    titles = {"": "all", "_th": "things", "_st": "stuff"}
    endings = [ending for ending in titles if ending in used]
    table.add_column("")
    for ending in endings:
        table.add_column(titles[ending], justify="right")
    for name, cells in rows.items():
        columns = (cells.get(ending, "") for ending in endings)
        table.add_row(name.replace("/", " "), *columns)
    print_table(table)


def _percent(value: float) -> str:
    """One decimal; a dash where there is no ground truth to score (NaN)."""
    return f"{value:.1f}" if value == value else "-"
