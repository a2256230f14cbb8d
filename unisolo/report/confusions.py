"""Which categories are taken for which: counted, and what of it can be shown on a page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from unisolo.categories import Category

__all__ = [
    "Confusion",
    "Matrix",
    "Mistake",
    "compact_matrix",
    "count_confusions",
    "top_mistakes",
]

_MOST_PAIRS = 20
_MOST_ROWS = 20


@dataclass(frozen=True)
class Confusion:
    """Which categories are taken for which, things only.

    Attributes:
        categories: In the order of rows and columns.
        counts: [K + 1, K + 1] int64: row = ground truth, column = prediction; the last row holds
            predictions of nothing there is ("invented"), the last column objects that no
            prediction met ("missed").
    """

    categories: list[Category]
    counts: npt.NDArray[np.int64]


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
        complete: Whether no category that occurs is left out.
    """

    names: list[str]
    counts: list[list[int]]
    shades: list[list[int]]
    complete: bool


def count_confusions(things: Sequence[Category], iou_type: str, evaluation: Any) -> Confusion:
    """Match objects and predictions of each image whatever their categories.

    The surest prediction first takes the free object it overlaps most, by an IoU of at least 0.5.
    One that gets none but lies in a crowd does not count. (hotcoco has such a table as well, but
    counts predictions in a crowd as invented.)

    Args:
        things: The categories.
        iou_type: "segm" or "bbox".
        evaluation: What `CocoEvaluator.run` returned.
    """
    places = {category.id: place for place, category in enumerate(things)}
    none = len(things)
    counts = np.zeros((none + 1, none + 1), dtype=np.int64)
    truth, found = (
        _by_image(coco.dataset["annotations"]) for coco in (evaluation.coco_gt, evaluation.coco_dt)
    )
    for number in truth.keys() | found.keys():
        objects, predictions = truth.get(number, []), found.get(number, [])
        predictions.sort(key=lambda entry: -entry["score"])
        overlaps = _overlaps(predictions, objects, iou_type, evaluation.coco_gt)
        crowd = np.array([bool(entry["iscrowd"]) for entry in objects], dtype=bool)
        free = ~crowd
        for row, prediction in zip(overlaps, predictions, strict=True):
            column = places[prediction["category_id"]]
            best = int(np.argmax(np.where(free, row, -1))) if free.any() else -1
            if best >= 0 and row[best] >= 0.5:
                free[best] = False
                counts[places[objects[best]["category_id"]], column] += 1
            elif not (row[crowd] >= 0.5).any():
                counts[none, column] += 1
        for place in np.flatnonzero(free):
            counts[places[objects[place]["category_id"]], none] += 1
    return Confusion(list(things), counts)


def _by_image(entries: Iterable[dict[str, Any]]) -> dict[int, list[dict[str, Any]]]:
    groups: dict[int, list[dict[str, Any]]] = {}
    for entry in entries:
        groups.setdefault(entry["image_id"], []).append(entry)
    return groups


def _overlaps(
    predictions: list[dict[str, Any]], objects: list[dict[str, Any]], iou_type: str, coco: Any
) -> npt.NDArray[np.float64]:
    """[predictions, objects] IoU; of a crowd the share of the prediction that lies in it."""
    from hotcoco import mask as rle_ops

    if not predictions or not objects:
        return np.zeros((len(predictions), len(objects)))
    crowd = [bool(entry["iscrowd"]) for entry in objects]
    if iou_type == "bbox":
        found, truth = ([entry["bbox"] for entry in group] for group in (predictions, objects))
    else:
        found = [entry["segmentation"] for entry in predictions]
        truth = [coco.annToRLE(entry) for entry in objects]
    return np.asarray(rle_ops.iou(found, truth, crowd), dtype=np.float64)


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
    """Return the table of the categories that occur, of too many those most often confused.

    Of categories left out nothing is shown, neither as row nor as column.
    """
    size = len(confusion.categories)
    between = confusion.counts[:size, :size].copy()
    np.fill_diagonal(between, 0)
    # Pair by pair, so that a category stands beside what it is taken for; then the most frequent.
    rows, columns = np.unravel_index(np.argsort(-between, axis=None, kind="stable"), between.shape)
    confused = between[rows, columns] > 0
    pairs = np.stack([rows[confused], columns[confused]], axis=1).ravel()
    totals = confusion.counts.sum(axis=0)[:size] + confusion.counts.sum(axis=1)[:size]
    frequent = np.argsort(-totals, kind="stable")[: np.count_nonzero(totals)]
    occurring = dict.fromkeys([*pairs.tolist(), *frequent.tolist()])
    chosen = sorted(list(occurring)[:_MOST_ROWS])
    part = confusion.counts[np.ix_([*chosen, size], [*chosen, size])]
    # Shares are of the whole row, also of what is not shown.
    whole = np.maximum(confusion.counts.sum(axis=1)[[*chosen, size]], 1)
    shades = np.ceil(5 * part / whole[:, None]).astype(int)
    return Matrix(
        [confusion.categories[place].name for place in chosen],
        part.tolist(),
        shades.tolist(),
        len(chosen) == len(occurring),
    )
