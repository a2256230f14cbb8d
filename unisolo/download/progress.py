"""Progress of long copies on the error output: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["progress_of_bytes", "say"]

STEPS = 10
"""Lines for a whole file, where there is no terminal."""

BLIND_STEP = 100 * 2**20
"""Bytes between two lines where the size is not known."""


def say(sentence: str) -> None:
    """Print one line on the error output, where progress belongs."""
    print(sentence, file=sys.stderr, flush=True)


@contextmanager
def progress_of_bytes(
    name: str, *, quiet: bool = False
) -> Iterator[Callable[[int, int | None], None]]:
    """Show how far a copy has come.

    Args:
        name: What is copied.
        quiet: Show nothing.

    Yields:
        A function of the bytes copied so far and of all, None where that is not known.
    """
    from rich.console import Console

    console = Console(stderr=True)
    if quiet:
        yield lambda done, total: None
    elif not console.is_terminal:
        yield _Lines(name)
    else:
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        with Progress(TextColumn(name), *columns, console=console) as progress:
            bar = progress.add_task(name, total=None)
            yield lambda done, total: progress.update(bar, completed=done, total=total)


class _Lines:
    """One line per tenth, so that a log stays short."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.step = -1

    def __call__(self, done: int, total: int | None) -> None:
        step = done * STEPS // total if total else done // BLIND_STEP
        if step != self.step:
            self.step = step
            whole = f" of {total / 1e6:.1f}" if total else ""
            say(f"{self.name}: {done / 1e6:.1f}{whole} MB")
