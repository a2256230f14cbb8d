"""Box detection: boxes taken from the masks, which are not returned."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unisolo.tasks.base import TaskAdapter

if TYPE_CHECKING:
    from unisolo.evaluation.base import Evaluator

__all__ = ["DetectionTask"]


class DetectionTask(TaskAdapter):
    """Boxes from masks, scored by bbox AP; same network and losses as instance segmentation."""

    name = "detection"
    headline = ("bbox/AP",)
    has_masks = False

    def make_evaluators(self, dataset: Any, *, backend: str = "hotcoco") -> list[Evaluator]:
        """See the base class."""
        from unisolo.evaluation.coco import CocoEvaluator

        truth = dataset.coco_ground_truth()
        return [CocoEvaluator(truth, self.categories, ("bbox",), backend=backend)]
