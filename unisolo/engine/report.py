"""What the grids make of a data set, said before the first step."""

from __future__ import annotations

from unisolo.config import Config
from unisolo.doctor.coverage import HasBoxes, measure_coverage, object_sides
from unisolo.structures import GridSpec

__all__ = ["coverage_line", "object_sides"]


def coverage_line(dataset: HasBoxes, config: Config, grid: GridSpec) -> str:
    """Say how many objects each level gets and how many get no cell, and why.

    Args:
        dataset: One of `unisolo.data.DATASETS`.
        config: How images are resized, and whether objects may share a cell.
        grid: The model's grids.
    """
    found = measure_coverage(dataset, config, grid)
    if not found.objects:
        return "objects: none in the training set"
    levels = "  ".join(
        f"{size}x{size} ({low:.0f}-{high:.0f} px): {count}"
        for size, (low, high), count in zip(
            grid.sizes, grid.scale_ranges, found.per_level, strict=True
        )
    )
    advice = " (set model.scale_ranges=auto)" if found.outside else ""
    return (
        f"objects: {found.objects}; {found.outside} outside every scale range{advice}; "
        f"{found.lost} of the {found.looked_at} looked at get no cell; per level {levels}"
    )
