"""The progress bar of everything that goes through images or steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

__all__ = ["progress_bar"]


def progress_bar(*columns: str, shown: bool = True) -> Progress:
    """Return a bar on stderr, in a terminal only; gone when it is done.

    Args:
        columns: What stands before the bar, in rich's notation, e.g. "{task.description}".
        shown: False shows none, as on processes other than the main one.

    Returns:
        A context manager that draws the tasks added to it.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    console = Console(stderr=True)
    return Progress(
        *columns,
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not (shown and console.is_terminal),
        transient=True,
    )
