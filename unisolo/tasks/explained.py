"""From the counts of the post-process to an `Explanation`: the host's side of `Result.explain`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unisolo.categories import Categories
from unisolo.explain import Explanation, Stage
from unisolo.ops.stages import NUM_TOP, STAGES
from unisolo.structures import Instances

__all__ = ["HostFacts", "explain_instances", "explain_panoptic", "host_facts"]

_SETTINGS = {"candidate_threshold": "score_threshold", "area": "mask_threshold"}
"""Keywords of `select_instances` for the steps that are not named after theirs."""


class HostFacts(NamedTuple):
    """What the host learns of one image.

    Attributes:
        wanted: Number of instances to make at the size of the image.
        counts: Candidates left by each of `STAGES`.
        top: (thing label, probability) of the most probable pairs.
        best_score: Score of the first instance; 0 where there is none.
    """

    wanted: int
    counts: list[int]
    top: list[tuple[int, float]]
    best_score: float


def host_facts(instances: Instances, wanted: Tensor) -> list[HostFacts]:
    """Bring what the host needs to know of a batch in one small copy.

    Args:
        instances: From `select_instances`.
        wanted: [B, K] bool.

    Returns:
        One per image.
    """
    # Floats travel as their bits, so that integers and floats can share one copy.
    floats = torch.cat([instances.top_probs, instances.scores[:, :1]], dim=1).float()
    table = torch.cat(
        [
            wanted.sum(dim=1, keepdim=True),
            instances.stage_counts,
            instances.top_labels,
            floats.contiguous().view(torch.int32).long(),
        ],
        dim=1,
    ).cpu()
    bits = table[:, -NUM_TOP - 1 :].int().view(torch.float32).tolist()
    facts = []
    for row, (*probs, best) in zip(table.tolist(), bits, strict=True):
        labels = row[1 + len(STAGES) : 1 + len(STAGES) + NUM_TOP]
        top = [pair for pair in zip(labels, probs, strict=True) if pair[1] > 0]
        facts.append(HostFacts(row[0], row[1 : 1 + len(STAGES)], top, best))
    return facts


def explain_instances(
    facts: HostFacts,
    categories: Categories,
    selection: Mapping[str, Any],
    *,
    mask_threshold: float,
    score_threshold: float,
    left: int,
) -> Explanation:
    """Explain the instances of one image.

    Args:
        facts: Its facts.
        categories: The model's categories.
        selection: Keywords that `select_instances` was called with; may be empty.
        mask_threshold: Of the masks at the size of the image.
        score_threshold: Least score of an instance.
        left: Instances of the result.
    """
    stages = [
        Stage(name, selection.get(_SETTINGS.get(name, name)), count)
        for name, count in zip(STAGES, facts.counts, strict=True)
    ]
    # Only wanted instances are looked at; of these those without a pixel are left out.
    with_pixels = facts.counts[-1] - (facts.wanted - left)
    stages.append(Stage("pixels", mask_threshold, with_pixels))
    stages.append(Stage("score_threshold", score_threshold, left))
    return Explanation(
        top=tuple((categories[label].name, probability) for label, probability in facts.top),
        best_score=facts.best_score,
        stages=tuple(stages),
    )


def explain_panoptic(
    explanation: Explanation | None,
    *,
    things: Sequence[tuple[int, int, float, int]],
    stuff: Sequence[tuple[int, int, int]],
    num_shown: int,
    settings: Mapping[str, Any],
) -> Explanation | None:
    """Add what the panoptic merge left.

    Args:
        explanation: Of the instances that were merged.
        things: (id in the map or 0, label, score, area) of these.
        stuff: (id in the map or 0, area, free pixels that were too few) of each stuff index.
        num_shown: Instances of the result.
        settings: The keywords of `TaskAdapter.postprocess`.
    """
    if explanation is None:
        return None
    least = settings["panoptic_score_threshold"]
    # In float32, as the merge compares.
    eligible = int((torch.tensor([score for _, _, score, _ in things]) >= least).sum())
    owning = sum(segment_id > 0 for segment_id, *_ in things)
    kept = sum(segment_id > 0 for segment_id, *_ in stuff)
    dropped = [area for _, _, area in stuff if area > 0]
    return replace(
        explanation,
        stages=(
            *explanation.stages[:-1],
            Stage("score_threshold", settings["score_threshold"], num_shown),
        ),
        panoptic_stages=(
            Stage("panoptic_score_threshold", least, eligible),
            Stage("panoptic_overlap_threshold", settings["panoptic_overlap_threshold"], owning),
        ),
        stuff=Stage("stuff_area_threshold", settings["stuff_area_threshold"], kept),
        stuff_found=kept + len(dropped),
        largest_dropped_stuff=max(dropped, default=0),
    )
