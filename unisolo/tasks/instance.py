"""Instance segmentation: a mask, label and score per object."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unisolo.tasks.base import TaskAdapter

if TYPE_CHECKING:
    from unisolo.evaluation.base import Evaluator

__all__ = ["InstanceTask"]


class InstanceTask(TaskAdapter):
    """Instance segmentation, scored by segm and bbox AP."""

    name = "instance"

    def make_evaluators(self, dataset: Any, *, backend: str = "hotcoco") -> list[Evaluator]:
        """See the base class."""
        from unisolo.evaluation.coco import CocoEvaluator

        truth = dataset.coco_ground_truth()
        return [CocoEvaluator(truth, self.categories, ("bbox", "segm"), backend=backend)]
