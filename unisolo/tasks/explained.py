"""From the counts of the post-process to an `Explanation`: the host's side of `Result.explain`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unisolo.categories import Categories
from unisolo.explain import Explanation, Stage
from unisolo.ops.stages import STAGES
from unisolo.ops.transfer import to_host
from unisolo.structures import Instances
from unisolo.tasks.full_size import FullSize

__all__ = ["HostFacts", "explain_instances", "explain_panoptic", "host_facts"]

_SETTINGS = {"candidate_threshold": "score_threshold", "area": "mask_threshold"}
"""Keywords of `select_instances` for the steps that are not named after theirs."""


class HostFacts(NamedTuple):
    """What the host learns of one image.

    Attributes:
        wanted: Number of instances wanted at the size of the image; they come first.
        counts: Candidates left by each of `STAGES`.
        top: (thing label, probability) of the most probable pairs.
        scores: [K] float32, of all places.
        labels: [K] int64, thing labels of all places.
        areas: Pixels of the masks that were made at the size of the image, of the first places.
        more: What else the task asked for.
    """

    wanted: int
    counts: list[int]
    top: list[tuple[int, float]]
    scores: Tensor
    labels: Tensor
    areas: list[int]
    more: tuple[Tensor, ...]

    def places(self, score_threshold: float = 0.0) -> list[int]:
        """List the wanted places whose mask has a pixel and whose score is at least this."""
        # In float32, as the scores were compared on the device.
        high = (self.scores >= score_threshold).tolist()
        return [n for n in range(self.wanted) if high[n] and self.areas[n] > 0]


def host_facts(
    instances: Instances, full_size: FullSize, more: Sequence[Sequence[Tensor]] = ()
) -> list[HostFacts]:
    """Bring what the host needs to know of a batch in one small copy.

    Args:
        instances: From `select_instances`.
        full_size: Their masks at the size of the images.
        more: Small tensors of each image that the task needs to read as well.

    Returns:
        One per image.
    """
    of_batch = (
        full_size.wanted.sum(dim=1),
        instances.stage_counts,
        instances.top_labels,
        instances.top_probs.float(),
        instances.scores,
        instances.labels,
    )
    own = [masks.areas for masks in full_size.masks]
    given = [tensor for tensors in more for tensor in tensors]
    read = to_host([*of_batch, *own, *given])
    wanted, counts, top_labels, top_probs, scores, labels = read[: len(of_batch)]
    areas, rest = read[len(of_batch) :][: len(own)], read[len(of_batch) + len(own) :]
    facts = []
    for index, count in enumerate(wanted.tolist()):
        pairs = zip(top_labels[index].tolist(), top_probs[index].tolist(), strict=True)
        size = len(more[index]) if more else 0
        facts.append(
            HostFacts(
                wanted=count,
                counts=counts[index].tolist(),
                top=[pair for pair in pairs if pair[1] > 0],
                scores=scores[index],
                labels=labels[index],
                areas=areas[index].tolist(),
                more=tuple(rest[:size]),
            )
        )
        rest = rest[size:]
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
        best_score=next(iter(facts.scores.tolist()), 0.0),
        stages=tuple(stages),
    )


def explain_panoptic(
    explanation: Explanation,
    *,
    things: Sequence[tuple[int, int, float, int]],
    stuff: Sequence[tuple[int, int, int]],
    num_shown: int,
    settings: Mapping[str, Any],
) -> Explanation:
    """Add what the panoptic merge left.

    Args:
        explanation: Of the instances that were merged.
        things: (id in the map or 0, label, score, area) of these.
        stuff: (id in the map or 0, area, free pixels that were too few) of each stuff index.
        num_shown: Instances of the result.
        settings: The keywords of `TaskAdapter.postprocess`.
    """
    least = settings["panoptic_score_threshold"]
    # In float32, as the merge compares.
    eligible = sum((torch.tensor([score for _, _, score, _ in things]) >= least).tolist())
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
