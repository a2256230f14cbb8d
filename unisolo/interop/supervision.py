"""Instances as `supervision.Detections`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from unisolo.results import Result

if TYPE_CHECKING:
    import supervision

__all__ = ["to_supervision"]


def to_supervision(result: Result) -> supervision.Detections:
    """Return the instances as detections; see `Result.to_supervision`."""
    try:
        import supervision
    except ImportError as error:
        raise ImportError(
            'to_supervision needs supervision: pip install "unisolo[supervision]"'
        ) from error
    fields = result.numpy()
    names = [result.categories[label].name for label in fields["labels"].tolist()]
    return supervision.Detections(
        xyxy=fields["boxes"],
        mask=fields["masks"],
        confidence=fields["scores"],
        class_id=fields["labels"],
        data={"class_name": np.array(names, dtype=str), "category_id": fields["category_ids"]},
    )
