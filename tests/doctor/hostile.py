"""Values that no data set should hold."""

from __future__ import annotations

from faults import Copy

HOSTILE = [None, [], {}, "x", -1, 1e300, float("nan"), True, 10**40, [[]], {"a": []}]


def plant_hostile_values(copy: Copy) -> None:
    """Put each value everywhere."""
    for tree in (copy.instances, copy.panoptic):
        for key in ("images", "annotations", "categories"):
            first = tree[key][0]
            tree[key] += HOSTILE
            for number, value in enumerate(HOSTILE):
                for name in first:
                    own = {"id": 800_000 + number} if name != "id" and "id" in first else {}
                    tree[key].append({**first, **own, name: value})
    segment = copy.segments(0)[0]
    copy.segments(0).extend({**segment, name: value} for name in segment for value in HOSTILE)
