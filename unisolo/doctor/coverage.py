"""What the grids make of a data set's objects: how many each level gets, how many get no cell.

Boxes stand for masks: an object's centre of mass is taken to be its box's centre.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from unisolo.build import build_grid
from unisolo.config import Config, config_to_dict, load_config
from unisolo.data.loader import padded_size
from unisolo.data.raw import ObjectBoxes
from unisolo.data.transforms import resized_size
from unisolo.losses.pairs import SharedCells, count_unassigned
from unisolo.structures import GridSpec

__all__ = [
    "FEW",
    "Coverage",
    "HasBoxes",
    "Trial",
    "measure_coverage",
    "object_sides",
    "try_settings",
]

SAMPLED_IMAGES = 500
"""Images in which lost cells are counted: enough to tell, in about a second."""
_TRIAL_IMAGES = 200
"""The same for each setting that is tried."""
FEW = 0.01
"""Share of objects without a cell that is not worth a change of settings."""


class HasBoxes(Protocol):
    """A data set, or anything else that knows the boxes of its objects."""

    def object_boxes(self) -> ObjectBoxes:
        """Boxes of all objects, crowd left out."""


@dataclass(frozen=True)
class Coverage:
    """How objects and grids fit each other.

    Attributes:
        objects: Number of objects.
        per_level: Objects in the scale range of each level; ranges overlap, so they may add up to
            more than `objects`.
        outside: Objects in no scale range.
        looked_at: Objects of the images in which cells were counted.
        no_cell: Of these, objects that claim no cell (they lie outside every scale range).
        collided: Of these, objects that lose all their cells to others.
    """

    objects: int
    per_level: tuple[int, ...]
    outside: int
    looked_at: int
    no_cell: int
    collided: int

    @property
    def lost(self) -> int:
        """Objects looked at that no cell is trained on."""
        return self.no_cell + self.collided

    @property
    def lost_share(self) -> float:
        """The same as a share of the objects looked at; 0 where there is none."""
        return self.lost / self.looked_at if self.looked_at else 0.0


@dataclass(frozen=True)
class Trial:
    """What other settings would come to.

    Attributes:
        settings: As `key.sub=value`, ready for the command line.
        lost: Objects without a cell under them.
        looked_at: Of how many.
    """

    settings: tuple[str, ...]
    lost: int
    looked_at: int


def object_sides(dataset: HasBoxes, config: Config) -> Tensor:
    """Return sqrt(box area) of every training object at the evaluation size.

    Args:
        dataset: One of `unisolo.data.DATASETS`.
        config: Its `data.image_size` and `data.max_size` say how images are resized.

    Returns:
        [N] float64, in pixels of the model's input. Crowd does not count.
    """
    found = dataset.object_boxes()
    boxes = torch.from_numpy(found.boxes).double()
    sides = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1).sqrt()
    sizes, where = torch.unique(torch.from_numpy(found.image_sizes), dim=0, return_inverse=True)
    scales = [_scale((height, width), config) for height, width in sizes.tolist()]
    return sides * torch.tensor(scales, dtype=torch.float64)[where]


def measure_coverage(
    dataset: HasBoxes, config: Config, grid: GridSpec, *, max_images: int = SAMPLED_IMAGES
) -> Coverage:
    """Count what each level gets and what gets no cell.

    Args:
        dataset: See `object_sides`.
        config: See `object_sides`; `train.one_object_per_cell` and `train.shared_cells` count too.
        grid: The model's grids.
        max_images: Cells are counted in about this many images, evenly spread over the data set.
    """
    sides = object_sides(dataset, config)
    ranges = torch.tensor(grid.scale_ranges, dtype=torch.float64)
    inside = (sides[:, None] >= ranges[:, 0]) & (sides[:, None] <= ranges[:, 1])
    found = dataset.object_boxes()
    numbers = torch.from_numpy(found.image_numbers)
    wanted = torch.unique(numbers)
    step = max(1, -(-len(wanted) // max_images))
    looked_at = no_cell = lost = 0
    for number in wanted[::step]:
        mine = (numbers == number).nonzero().squeeze(1)
        height, width = found.image_sizes[mine[0]].tolist()
        scale = _scale((height, width), config)
        boxes = torch.from_numpy(found.boxes)[mine] * scale
        size = padded_size((round(height * scale), round(width * scale)))
        alone = _count_lost(boxes, grid, size)
        looked_at += len(boxes)
        no_cell += alone
        settings = config.train
        lost += (
            _count_lost(boxes, grid, size, settings.shared_cells)
            if settings.one_object_per_cell
            else alone
        )
    return Coverage(
        objects=len(sides),
        per_level=tuple(inside.sum(dim=0).tolist()),
        outside=int((~inside.any(dim=1)).sum()),
        looked_at=looked_at,
        no_cell=no_cell,
        collided=lost - no_cell,
    )


def try_settings(dataset: HasBoxes, config: Config) -> list[Trial]:
    """Try what could give more objects a cell, the cheapest first.

    Args:
        dataset: See `object_sides`.
        config: The settings as they are.

    Returns:
        The settings as they are (no `settings`) and each change tried, until one leaves fewer than
        1% of the objects without a cell.
    """
    trials: list[Trial] = []
    object_size = object_sides(dataset, config)
    finer, finest = (_finer_grids(config, object_size, factor) for factor in (1.5, 2))
    larger = f"data.image_size={_round32(config.data.image_size * 1.5)}"
    longer = f"data.max_size={_round32(config.data.max_size * 1.5)}"
    auto = "model.scale_ranges=auto"
    for settings in ((), (auto,), finer, (auto, *finer), (auto, *finest), (auto, larger, longer)):
        changed = load_config(None, settings, values=config_to_dict(config))
        if (settings and changed == config) or any(settings == trial.settings for trial in trials):
            continue
        sides = object_sides(dataset, changed)
        if not (sides > 0).any():
            return trials
        grid = build_grid(changed, sides)
        found = measure_coverage(dataset, changed, grid, max_images=_TRIAL_IMAGES)
        trials.append(Trial(settings, found.lost, found.looked_at))
        if found.lost_share < FEW:
            break
    return trials


def _count_lost(
    boxes: Tensor, grid: GridSpec, size: tuple[int, int], shared_cells: SharedCells | None = None
) -> int:
    """Count objects without a cell; where None settles shared cells, they are all of theirs."""
    centers = (boxes[:, :2] + boxes[:, 2:]).flip(1) / 2
    areas = torch.ones(len(boxes), dtype=torch.int64)
    unassigned = count_unassigned(
        boxes,
        centers,
        areas,
        grid,
        size,
        one_object_per_cell=shared_cells is not None,
        shared_cells=shared_cells or "drop",
    )
    return int(unassigned.sum())


def _finer_grids(config: Config, sides: Tensor, factor: float) -> tuple[str, ...]:
    """Grids that many times as fine, at most a cell per feature; nothing where they are so now."""
    if not (sides > 0).any():
        return ()
    grid = build_grid(config, sides)
    sizes = [
        max(size, min(round(size * factor), config.data.image_size // stride))
        for size, stride in zip(grid.sizes, grid.strides, strict=True)
    ]
    if tuple(sizes) == grid.sizes:
        return ()
    return (f"model.grid_sizes=[{','.join(map(str, sizes))}]",)


def _round32(value: float) -> int:
    return round(value / 32) * 32


def _scale(size: tuple[int, int], config: Config) -> float:
    return resized_size(size, config.data.image_size, config.data.max_size)[0] / size[0]
