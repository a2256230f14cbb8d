"""Settings of one call laid over those of the checkpoint."""

from __future__ import annotations

import difflib
from typing import Any, Literal, TypedDict

from pydantic import ValidationError

from unisolo.checkpoint import check_task
from unisolo.config import Config, InferenceConfig
from unisolo.tasks import get_task

__all__ = ["Thresholds", "settings_of_call"]


class Thresholds(TypedDict, total=False):
    """Settings that a call can give; what it leaves out is the checkpoint's (`config.inference`).

    Attributes:
        candidate_threshold: Category probability above which a (cell, category) is a candidate
            (`config.inference.score_threshold`). Scores are never above it: to see instances
            scored lower than this, lower it together with `score_threshold`.
        mask_threshold: Probability above which a pixel belongs to a mask.
        max_candidates: Candidates kept before any mask is made.
        pre_nms: Masks that enter Matrix NMS.
        nms_kernel: "gaussian" or "linear".
        nms_sigma: Strength of the gaussian kernel.
        update_threshold: Instances below this score after decay are dropped.
        max_instances: At most this many instances per image.
        min_area: Area at stride 4 that a mask must exceed: "stride" or a number of pixels.
        panoptic_score_threshold: Least score of an instance in the panoptic map.
        panoptic_overlap_threshold: Largest hidden share of an instance in the panoptic map.
        stuff_area_threshold: Least area of a stuff region, in pixels of the image.
        memory_budget: MiB that the post-process may work in; see docs/concepts.md. Not a threshold:
            it changes speed and memory, never the answer.
    """

    candidate_threshold: float
    mask_threshold: float
    max_candidates: int
    pre_nms: int
    nms_kernel: Literal["gaussian", "linear"]
    nms_sigma: float
    update_threshold: float
    max_instances: int
    min_area: Literal["stride"] | int
    panoptic_score_threshold: float
    panoptic_overlap_threshold: float
    stuff_area_threshold: int
    memory_budget: int


def settings_of_call(
    config: Config, task: str, score_threshold: float, thresholds: Thresholds
) -> InferenceConfig:
    """Return the checkpoint's settings with a call's laid over them, checked.

    Args:
        config: The checkpoint's configuration.
        task: The task to answer.
        score_threshold: The call's, for its range.
        thresholds: The call's others.

    Raises:
        ValueError: If the model cannot answer the task, or a value is out of range or belongs to
            another task.
        TypeError: If there is no threshold of a name; the message gives the nearest one.
    """
    check_task(config, task)
    if not 0 <= score_threshold <= 1:
        raise ValueError(f"score_threshold must be in 0..1, got {score_threshold}")
    known = Thresholds.__annotations__
    values: dict[str, Any] = config.inference.model_dump()
    for name, value in thresholds.items():
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(known)}"
            raise TypeError(f"no threshold {name!r}; {hint}")
        if name not in get_task(task).thresholds:
            raise ValueError(f"{name} changes nothing in the answer of task {task!r}")
        values["score_threshold" if name == "candidate_threshold" else name] = value
    try:
        return InferenceConfig.model_validate(values)
    except ValidationError as error:
        detail = error.errors()[0]
        name = str(detail["loc"][0])
        name = "candidate_threshold" if name == "score_threshold" else name
        raise ValueError(f"{name}: {detail['msg']} (got {detail['input']!r})") from None
