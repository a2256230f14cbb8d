"""The words of the page: what was found, segment by segment and category by category."""

from __future__ import annotations

from collections import Counter
from typing import Any

from unisolo.ops.masks import popcount
from unisolo.results import Result
from unisolo.visualize.regions import Color, category_color

__all__ = ["categories_listed", "segments_listed", "summary"]


def segments_listed(result: Result) -> list[dict[str, Any]]:
    """List what is drawn, in the colours it is drawn in.

    Args:
        result: On the CPU.

    Returns:
        Of a panoptic map its segments, else the instances, in the result's order: `name`, `score`
        (None for stuff), `share` of the image's area (of a box's, where there is no mask), `color`
        (CSS).
    """
    height, width = result.image_size
    seen: Counter[int] = Counter()
    rows = []
    for label, score, area in _facts(result):
        category = result.categories[label]
        rows.append(
            {
                "name": category.name,
                "score": score if category.isthing else None,
                "share": area / (height * width),
                "color": _css(category_color(result.categories, label, seen[label])),
            }
        )
        seen[label] += 1
    return rows


def categories_listed(result: Result, hidden: frozenset[int]) -> list[dict[str, Any]]:
    """List the categories found, things before stuff and the frequent first.

    Args:
        result: All that was found, on the CPU.
        hidden: Ids of the categories that are switched off.

    Returns:
        `id`, `name`, `count`, `color` (CSS) and `hidden` of each.
    """
    counts = Counter(label for label, _, _ in _facts(result))
    order = sorted(counts, key=lambda n: (not result.categories[n].isthing, -counts[n], n))
    return [
        {
            "id": result.categories[label].id,
            "name": result.categories[label].name,
            "count": counts[label],
            "color": _css(category_color(result.categories, label, 0)),
            "hidden": result.categories[label].id in hidden,
        }
        for label in order
    ]


def summary(result: Result) -> str:
    """What was found, in a few words."""
    if result.segments_info is None:
        return _number(len(result), "object")
    things = sum(segment.isthing for segment in result.segments_info)
    regions = len(result.segments_info) - things
    return f"{_number(things, 'object')}, {_number(regions, 'region')}"


def _facts(result: Result) -> list[tuple[int, float, float]]:
    """(label, score, area in pixels) of each segment or instance."""
    if result.segments_info is not None:
        return [(entry.label, entry.score, float(entry.area)) for entry in result.segments_info]
    if result.packed_masks is not None:
        areas = popcount(result.packed_masks.flatten(1)).tolist()
    else:
        sides = result.boxes[:, 2:] - result.boxes[:, :2]
        areas = sides.prod(dim=1).tolist()
    labels, scores = result.labels.tolist(), result.scores.tolist()
    return list(zip(labels, scores, map(float, areas), strict=True))


def _css(color: Color) -> str:
    return f"rgb({color[0]} {color[1]} {color[2]})"


def _number(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"
