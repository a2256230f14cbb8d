"""Instances as a `pandas.DataFrame`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unisolo.ops.masks import popcount
from unisolo.results import Result

if TYPE_CHECKING:
    import pandas

__all__ = ["to_pandas"]


def to_pandas(result: Result, image_id: int | str | None = None) -> pandas.DataFrame:
    """Return one row an instance; see `Result.to_pandas`."""
    try:
        import pandas
    except ImportError as error:
        raise ImportError("to_pandas needs pandas: pip install pandas") from error
    host = result.cpu()
    left, top, right, bottom = host.boxes.numpy().T
    if host.packed_masks is None:
        areas: Any = (right - left) * (bottom - top)
    else:
        areas = popcount(host.packed_masks.flatten(1)).numpy()
    columns = {
        "category_id": host.category_ids.numpy(),
        "category": [result.categories[label].name for label in host.labels.tolist()],
        "score": host.scores.numpy(),
        "x1": left,
        "y1": top,
        "x2": right,
        "y2": bottom,
        "area": pandas.Series(areas, dtype="float64"),
    }
    frame = pandas.DataFrame(columns)
    if image_id is not None:
        frame.insert(0, "image_id", image_id)
    return frame
