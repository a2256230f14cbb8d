"""The controls of the page, as keywords of `Predictor.predict`."""

from __future__ import annotations

from dataclasses import dataclass

from unisolo.thresholds import Thresholds

__all__ = ["Choice"]


@dataclass(frozen=True)
class Choice:
    """The controls of the page.

    Attributes:
        task: "panoptic", "instance" or "detection".
        min_score: Lowest score shown, of instances and in the panoptic map alike.
        mask_threshold: See `Thresholds`; so are the others.
        candidate_threshold: Likewise.
        panoptic_overlap_threshold: Likewise; read for the panoptic task alone.
        stuff_area_threshold: Likewise.
    """

    task: str
    min_score: float
    mask_threshold: float
    candidate_threshold: float
    panoptic_overlap_threshold: float
    stuff_area_threshold: int

    def thresholds(self) -> Thresholds:
        """The keywords of `Predictor.predict`, all but `score_threshold`."""
        values: Thresholds = {
            "mask_threshold": float(self.mask_threshold),
            "candidate_threshold": float(self.candidate_threshold),
        }
        if self.task == "panoptic":
            values["panoptic_score_threshold"] = float(self.min_score)
            values["panoptic_overlap_threshold"] = float(self.panoptic_overlap_threshold)
            values["stuff_area_threshold"] = int(self.stuff_area_threshold)
        return values
