"""Identity scores by their definitions, by exhaustion.

With `together[g, t]` = number of frames in which true object g and track t are matched (in that
frame, IoU of masks at least 0.5, one to one):

    IDTP = the largest sum of together[g, t] over one-to-one pairings of objects and tracks
    IDF1 = 2 IDTP / (instances in truth + instances with a track)
    switches = over all objects, how often its track differs from that when it was last matched

(Ristani et al. 2016, arXiv 1609.01775; Bernardin and Stiefelhagen 2008 for switches.)
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass
class Identity:
    truths: int = 0
    tracked: int = 0
    switches: int = 0
    together: Counter[tuple[int, int]] = field(default_factory=Counter)
    last: dict[int, int] = field(default_factory=dict)

    def add(self, truths: int, tracks: Sequence[int], pairs: Sequence[tuple[int, int]]) -> None:
        """Count one frame: objects in truth, ids given (0 = none), and (object, track) matched."""
        self.truths += truths
        self.tracked += sum(track != 0 for track in tracks)
        for truth, track in pairs:
            if track:
                self.together[truth, track] += 1
                self.switches += self.last.get(truth, track) != track
                self.last[truth] = track

    def idf1(self) -> float:
        return 2 * best_pairing(self.together) / max(self.truths + self.tracked, 1)


def best_pairing(together: Counter[tuple[int, int]]) -> int:
    """Try every one-to-one pairing, each group of connected objects and tracks by itself."""
    total, left = 0, dict(together)
    while left:
        group = {next(iter(left))}
        while grown := {
            pair
            for pair in left
            if pair not in group and any(pair[0] == g or pair[1] == t for g, t in group)
        }:
            group |= grown
        objects = sorted({g for g, _ in group})

        @functools.cache
        def best(
            n: int,
            used: frozenset[int],
            objects: Sequence[int] = tuple(objects),
            group: frozenset[tuple[int, int]] = frozenset(group),
        ) -> int:
            if n == len(objects):
                return 0
            choices = [t for g, t in group if g == objects[n] and t not in used]
            taken = [together[objects[n], t] + best(n + 1, used | {t}) for t in choices]
            return max([best(n + 1, used), *taken])

        total += best(0, frozenset())
        left = {pair: count for pair, count in left.items() if pair not in group}
    return total


def matched(truth: dict[int, np.ndarray], found: Sequence[np.ndarray]) -> list[tuple[int, int]]:
    """(object, place in `found`) with IoU of at least 0.5, best first, one to one."""
    scored = []
    for identity, mask in truth.items():
        for place, other in enumerate(found):
            union = int((mask | other).sum())
            iou = int((mask & other).sum()) / max(union, 1)
            if iou >= 0.5:
                scored.append((-iou, identity, place))
    pairs: list[tuple[int, int]] = []
    for _, identity, place in sorted(scored):
        if all(identity != g and place != p for g, p in pairs):
            pairs.append((identity, place))
    return pairs
