"""Pictures of results, with Pillow and numpy alone."""

from __future__ import annotations

from unisolo.visualize.annotations import draw_annotations
from unisolo.visualize.draw import draw_grid, draw_panoptic, draw_result

__all__ = ["draw_annotations", "draw_grid", "draw_panoptic", "draw_result"]
