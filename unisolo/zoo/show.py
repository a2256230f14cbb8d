"""The table of models for people and programs."""

from __future__ import annotations

import json as json_module
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from unisolo.zoo.load import cached_path
from unisolo.zoo.table import ModelEntry, list_models

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["print_models"]

WIDE = 160
"""Columns that the table needs."""
COLUMNS = ("name", "source", "backbone", "input", "mask AP", "licence")


def print_models(filter: str = "", json: bool = False) -> None:
    """Print the models that `load_model` knows by name.

    Args:
        filter: As for `list_models`.
        json: Print a JSON list of all that is known about each, for programs.
    """
    entries = list_models(filter)
    if json:
        print(json_module.dumps([_facts(entry) for entry in entries], indent=2))
        return
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDE
    if console.width < WIDE:
        _print_blocks(entries, console)
    else:
        _print_table(entries, console)


def _print_table(entries: Sequence[ModelEntry], console: Console) -> None:
    from rich.table import Table

    table = Table()
    for column in (*COLUMNS, "cached"):
        # Names are there to be copied.
        table.add_column(column, overflow="fold", no_wrap=column == "name")
    for entry in entries:
        table.add_row(*_cells(entry), "yes" if cached_path(entry).is_file() else "no")
    console.print(table)


def _print_blocks(entries: Sequence[ModelEntry], console: Console) -> None:
    """Each model on lines of its own: in a narrow terminal the cells of a table are slivers."""
    from rich.padding import Padding
    from rich.text import Text

    for entry in entries:
        name, source, backbone, size, precision, licence = _cells(entry)
        facts = [source, backbone, f"input {size}", f"mask AP {precision}", licence]
        facts += ["cached"] if cached_path(entry).is_file() else []
        console.print(Text(name, "bold"))
        console.print(Padding(Text("; ".join(facts)), (0, 0, 0, 2)))


def _cells(entry: ModelEntry) -> tuple[str, ...]:
    short, long = entry.input_size
    size, precision = f"{short} x {long}", f"{entry.mask_ap:.1f}"
    backbone = f"{entry.backbone}, {entry.schedule}"
    return (entry.name, entry.source, backbone, size, precision, entry.licence)


def _facts(entry: ModelEntry) -> dict[str, Any]:
    path = cached_path(entry)
    return {**asdict(entry), "path": str(path), "cached": path.is_file()}
