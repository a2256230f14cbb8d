"""The progress bar of commands that go through images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from unisolo.progress import progress_bar

__all__ = ["bar_over_images"]


@contextmanager
def bar_over_images(shown: bool = True) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar on stderr, in a terminal only; gone when it is done.

    Args:
        shown: False shows none, as on processes other than the main one.

    Yields:
        What to call with (images done, all images).
    """
    with progress_bar(shown=shown) as progress:
        bar = progress.add_task("")
        yield lambda done, total: progress.update(bar, completed=done, total=total)
