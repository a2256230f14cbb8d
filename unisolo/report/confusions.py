"""What to show of the confusions: the most frequent pairs, a matrix of a readable size."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unisolo.report.figures import Confusion

__all__ = ["Matrix", "Mistake", "compact_matrix", "top_mistakes"]

_MOST_PAIRS = 20
_MOST_ROWS = 20


@dataclass(frozen=True)
class Mistake:
    """Objects of one category that were taken for another.

    Attributes:
        truth: Name of the category they have.
        found: Name of the one they got.
        count: How many.
        share: Of the objects of `truth`, 0..1.
    """

    truth: str
    found: str
    count: int
    share: float


@dataclass(frozen=True)
class Matrix:
    """A part of the table: rows are ground truth, columns predictions.

    Attributes:
        names: Of rows and columns; a last row "invented" and a last column "missed" follow.
        counts: Of each row.
        shades: 0 (none) to 5 (the whole row) of each cell.
        complete: Whether no category is left out.
    """

    names: list[str]
    counts: list[list[int]]
    shades: list[list[int]]
    complete: bool


def top_mistakes(confusion: Confusion) -> list[Mistake]:
    """Return the pairs of categories that were taken for each other, most frequent first."""
    size = len(confusion.categories)
    between = confusion.counts[:size, :size].copy()
    np.fill_diagonal(between, 0)
    totals = confusion.counts[:size].sum(axis=1)
    # Stable, so that equal counts come in the order of the categories.
    order = np.argsort(-between, axis=None, kind="stable")[:_MOST_PAIRS]
    mistakes = []
    for row, column in zip(*np.unravel_index(order, between.shape), strict=True):
        count = int(between[row, column])
        if count:
            truth, found = confusion.categories[row].name, confusion.categories[column].name
            mistakes.append(Mistake(truth, found, count, count / int(totals[row])))
    return mistakes


def compact_matrix(confusion: Confusion) -> Matrix:
    """Return the table, or where it is too large the categories most often confused.

    Of categories left out nothing is shown, neither as row nor as column.
    """
    size = len(confusion.categories)
    between = confusion.counts[:size, :size].copy()
    np.fill_diagonal(between, 0)
    involved = between.sum(axis=0) + between.sum(axis=1)
    chosen = sorted(np.argsort(-involved, kind="stable")[:_MOST_ROWS].tolist())
    part = confusion.counts[np.ix_([*chosen, size], [*chosen, size])]
    # Shares are of the whole row, also of what is not shown.
    totals = np.maximum(confusion.counts.sum(axis=1)[[*chosen, size]], 1)
    shades = np.ceil(5 * part / totals[:, None]).astype(int)
    return Matrix(
        [confusion.categories[place].name for place in chosen],
        part.tolist(),
        shades.tolist(),
        len(chosen) == size,
    )
