"""Metrics: box and mask AP, panoptic quality."""

from __future__ import annotations

from unisolo.evaluation.base import Evaluator
from unisolo.evaluation.coco import CocoEvaluator
from unisolo.evaluation.panoptic import PanopticEvaluator

__all__ = ["CocoEvaluator", "Evaluator", "PanopticEvaluator"]
