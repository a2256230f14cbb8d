"""How commands tell things: tables, remarks, numbers with their words."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["counted", "duration", "print_table", "remark"]


def print_table(table: Table) -> None:
    """Print a table as wide as the terminal, or wide enough in files and pipes, on stdout."""
    from rich.console import Console

    console = Console(highlight=False)
    if console.is_terminal:
        console.print(table)
        return
    console.width = 160
    with console.capture() as captured:
        console.print(table)
    for line in captured.get().splitlines():
        typer.echo(line.rstrip())


def remark(text: str, color: str = "yellow") -> None:
    """Say on stderr what went wrong or is worth knowing; a terminal breaks it between words."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.text import Text

        Console(stderr=True).print(Text(text, color))
    else:
        typer.secho(text, fg=color, err=True)


def counted(number: int, what: str) -> str:
    """Return a number with its word: "1 image", "2 images"."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """Return a time in the unit that people would choose: "18 s", "4.5 min", "3.2 h"."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
