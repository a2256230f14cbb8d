"""Why a result holds what it holds: how many candidates each step left, in numbers and in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

__all__ = ["Explanation", "Stage", "combine"]

NUM_TOP = 5
"""Category probabilities that are shown."""

_KEYWORDS = {"area": "mask_threshold", "pixels": "mask_threshold"}
"""Keywords of the steps that are not named after theirs."""

_WORDS = {
    "candidate_threshold": "(cell, category) pairs above {setting}",
    "max_candidates": "within {setting}",
    "area": "with a mask that is large enough ({setting})",
    "pre_nms": "within {setting}",
    "update_threshold": "at least {setting} after Matrix NMS",
    "max_instances": "within {setting}",
    "pixels": "with a pixel at the size of the image ({setting})",
    "score_threshold": "at least {setting}: the instances",
    "panoptic_score_threshold": "at least {setting}, for the panoptic map",
    "panoptic_overlap_threshold": "hidden by better ones no more than {setting}",
}


@dataclass(frozen=True)
class Stage:
    """One step of the post-process.

    Attributes:
        name: The keyword of `Predictor.predict` that moves the step; "area" (masks that are too
            small at stride 4) and "pixels" (masks without a pixel at the size of the image)
            have none of their own, they move with `mask_threshold`.
        value: The setting in force; None where it is not known.
        left: How many the step left.
    """

    name: str
    value: float | int | str | None
    left: int

    @property
    def keyword(self) -> str:
        """The keyword to change."""
        return _KEYWORDS.get(self.name, self.name)

    def setting(self, *, config_names: bool = False) -> str:
        """Return "keyword=value", as in a call or (`config_names`) as in a configuration."""
        name = self.keyword
        if config_names:
            name = "score_threshold" if name == "candidate_threshold" else name
            name = f"inference.{name}"
        return name if self.value is None else f"{name}={self.value}"


@dataclass(frozen=True)
class Explanation:
    """What the post-process saw of one image, before `Result` was filtered or indexed.

    Attributes:
        top: (category name, probability) of the most probable (cell, category) pairs, at most 5,
            highest first; local maxima of the category branch, before any threshold.
        best_score: Highest score after Matrix NMS, before the call's `score_threshold`; 0 where
            no candidate got so far.
        stages: The steps to the instances of the result, in order.
        panoptic_stages: The further steps from instances to the panoptic map; empty for other
            tasks.
        stuff: The step that drops small stuff regions; None for other tasks.
        stuff_found: Stuff regions before that step.
        largest_dropped_stuff: Pixels of the largest region it dropped; 0 = it dropped none.
    """

    top: tuple[tuple[str, float], ...]
    best_score: float
    stages: tuple[Stage, ...]
    panoptic_stages: tuple[Stage, ...] = field(default=())
    stuff: Stage | None = None
    stuff_found: int = 0
    largest_dropped_stuff: int = 0

    def verdict(self, *, config_names: bool = False) -> str:
        """Say in one sentence which threshold took the instances, and what to change.

        Args:
            config_names: Name settings as in a configuration, not as in a call.
        """
        (most, before), removed = self._largest_loss()
        emptied = next((stage for stage in self.stages if stage.left == 0), None)
        setting = most.setting(config_names=config_names)
        if emptied is None:
            if not removed:
                return "no threshold removed a candidate"
            return f"{setting} removed the most ({removed} of {before} candidates)"
        reason = self._reason(emptied, config_names)
        if removed and most is not emptied and emptied is not self.stages[0]:
            reason += f" (before that, {setting} removed the most: {removed} of {before})"
        return reason

    def text(self) -> str:
        """Return all of it: a line per step down to the first that left nothing, then why."""
        best = ", ".join(f"{name} {probability:.3f}" for name, probability in self.top)
        lines = [f"highest category probabilities: {best or 'none'}", "candidates left:"]
        for stage in (*self.stages, *self.panoptic_stages):
            lines.append(_line(stage))
            if stage.left == 0:
                break
        lines.append(f"why: {self.verdict()}")
        if self.stuff is not None:
            lines.append(
                f"stuff regions: {self.stuff_found}, of which {self.stuff.left} have at least "
                f"{self.stuff.setting()} pixels"
            )
            if self.largest_dropped_stuff:
                lines[-1] += f"; the largest dropped has {self.largest_dropped_stuff}"
        return "\n".join(lines)

    def _largest_loss(self) -> tuple[tuple[Stage, int], int]:
        """The step that removed the most, with what it got; not the first, which sees all pairs."""
        pairs = list(zip(self.stages[1:], (stage.left for stage in self.stages), strict=False))
        stage, before = max(pairs, key=lambda pair: pair[1] - pair[0].left)
        return (stage, before), before - stage.left

    def _reason(self, emptied: Stage, config_names: bool) -> str:
        """Why nothing was left, and what would change it."""
        setting = emptied.setting(config_names=config_names)
        keyword = setting.partition("=")[0]
        if emptied is self.stages[0]:
            name, probability = self.top[0] if self.top else ("no category", 0.0)
            if probability == 0:
                return (
                    "every category probability is 0, which happens where weights or outputs are "
                    "not finite (NaN): check the checkpoint"
                )
            with_score = "" if config_names else " together with score_threshold="
            return (
                f"no category probability is above {setting}; the highest is {probability:.3f} "
                f"({name}): lower {keyword}={with_score}, or train longer"
            )
        before = self.stages[self.stages.index(emptied) - 1].left
        lost = f"{setting} removed the last {before}"
        if emptied.name == "score_threshold":
            return f"{lost}; the best score is {self.best_score:.3f}: lower {keyword}="
        if emptied.name in ("area", "pixels"):
            return (
                f"the masks of the last {before} are too small: lower {keyword}= (now "
                f"{emptied.value}), or the objects are too small at this image size"
            )
        return f"{lost}: lower {keyword}="


def combine(explanations: Sequence[Explanation]) -> Explanation:
    """Add up what was seen of several images, for one verdict on all.

    Args:
        explanations: At least one, all made with the same settings.

    Returns:
        The highest probabilities and the best score of all, and the steps' sums; panoptic steps
        are left out.
    """
    top = sorted((pair for e in explanations for pair in e.top), key=lambda pair: -pair[1])
    stages = zip(*(e.stages for e in explanations), strict=True)
    return Explanation(
        top=tuple(top[:NUM_TOP]),
        best_score=max(e.best_score for e in explanations),
        stages=tuple(
            Stage(same[0].name, same[0].value, sum(stage.left for stage in same)) for same in stages
        ),
    )


def _line(stage: Stage) -> str:
    return f"{stage.left:>8} " + _WORDS[stage.name].format(setting=stage.setting())
