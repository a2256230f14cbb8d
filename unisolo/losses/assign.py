"""Which object trains which grid cell (SOLOv2, arXiv 2003.10152; rules of the reference code).

Everything here is vectorised over objects, levels and cells and stays on the maps' device. Objects
are read from painted number maps, so no [objects, H, W] tensor is made.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from unisolo.structures import GridSpec

__all__ = [
    "Assignment",
    "assign_grid",
    "block_objects",
    "cell_distances",
    "cell_owners",
    "cells_at",
    "crowd_cells",
    "mask_targets",
    "masks_from_blocks",
    "object_statistics",
    "one_object_per_cell",
]

_REACH = 3  # an object takes cells from at most this many rows and columns: its own and one beside


class Assignment(NamedTuple):
    """Pairs of a grid cell and an object that trains it, in one image.

    Ordered by level, then object, then cell (row-major). P pairs.

    Attributes:
        cells: [P] int64, flat cell number over all levels (see `GridSpec`).
        objects: [P] int64, object index.
        levels: [P] int64, level of the cell.
    """

    cells: Tensor
    objects: Tensor
    levels: Tensor

    def at(self, index: Tensor) -> Assignment:
        """Return the pairs at these indices, or where this mask is set."""
        return Assignment(*(values[index] for values in self))


def object_statistics(object_map: Tensor, num_objects: int) -> tuple[Tensor, Tensor]:
    """Return the centre of mass and the area of every painted object.

    Args:
        object_map: [D, H, W] integers, 0 = none, n + 1 = object n; an object lies in one layer.
        num_objects: N.

    Returns:
        Centres [N, 2] float32, (y, x), the mean of the integer pixel indices (so a pixel's own
        middle is at +0; 0 where the area is 0), and areas [N] int64 in pixels.

    Raises:
        ValueError: If `object_map` is not [D, H, W].
    """
    if object_map.ndim != 3:
        raise ValueError(f"object_map must be [D, H, W], got {tuple(object_map.shape)}")
    by_row = _count_by_line(object_map.permute(1, 0, 2), num_objects)
    by_column = _count_by_line(object_map.permute(2, 0, 1), num_objects)
    areas = by_row.sum(dim=0)
    sums = torch.stack((_index_sum(by_row), _index_sum(by_column)), dim=1)
    # Integer sums are exact; dividing in float32 is what the reference does, and its rounding
    # decides to which cell an object on a border goes.
    centers = sums.float() / areas.clamp(min=1).float()[:, None]
    return centers, areas


def _count_by_line(lines: Tensor, num_objects: int) -> Tensor:
    """Return [lines, N] int64, the pixels of each object in each line; lines [lines, ...]."""
    numbers = lines.flatten(1).long()
    counts = numbers.new_zeros(len(numbers), num_objects + 1)
    counts.scatter_add_(1, numbers, numbers.new_ones(()).expand_as(numbers))
    return counts[:, 1:]


def _index_sum(counts: Tensor) -> Tensor:
    """Return [N] int64, the sum over pixels of the index of the line they lie in."""
    return (counts * torch.arange(len(counts), device=counts.device)[:, None]).sum(dim=0)


def assign_grid(
    boxes: Tensor,
    centers: Tensor,
    areas: Tensor,
    grid: GridSpec,
    image_size: tuple[int, int],
    *,
    sigma: float = 0.2,
) -> Assignment:
    """Pair objects with the grid cells around their centre of mass, as the reference does.

    An object takes part in every level whose scale range holds sqrt(box area), both ends included.
    There it takes the cells that a box of `sigma` times its size around its centre touches, at most
    one cell away from the centre's own. Cells may be shared; see `one_object_per_cell`.

    Args:
        boxes: [N, 4] float32 xyxy, half-open, input pixels.
        centers: [N, 2] float32 (y, x), from `object_statistics`.
        areas: [N] int64; objects of area 0 take no part.
        grid: The model's grids.
        image_size: (H, W) of the padded batch: cells divide the padding too.
        sigma: Size of the centre region relative to the box.

    Returns:
        The pairs, by level, object and cell.
    """
    sizes = torch.tensor(grid.sizes, device=centers.device)[:, None, None]
    starts = torch.tensor(grid.offsets, device=centers.device)[:, None, None, None]
    widths_heights = boxes[:, 2:] - boxes[:, :2]
    half = 0.5 * widths_heights.flip(1) * sigma
    middle = cells_at(centers, grid, image_size)
    low = cells_at(centers - half, grid, image_size).clamp(min=0)
    low = torch.maximum(low, middle - 1)
    high = torch.minimum(cells_at(centers + half, grid, image_size), sizes - 1)
    high = torch.minimum(high, middle + 1)

    scales = widths_heights.prod(dim=1).sqrt()
    ranges = centers.new_tensor(grid.scale_ranges)
    takes_part = (scales >= ranges[:, :1]) & (scales <= ranges[:, 1:]) & (areas > 0)

    reach = torch.arange(_REACH, device=centers.device)
    rows = low[..., :1] + reach  # [levels, N, 3]
    columns = low[..., 1:] + reach
    inside = takes_part[..., None, None] & (
        (rows <= high[..., :1])[..., :, None] & (columns <= high[..., 1:])[..., None, :]
    )
    cells = starts + rows[..., :, None] * sizes[..., None] + columns[..., None, :]
    levels, objects, row, column = torch.nonzero(inside, as_tuple=True)
    return Assignment(cells[levels, objects, row, column], objects, levels)


def cells_at(points: Tensor, grid: GridSpec, image_size: tuple[int, int]) -> Tensor:
    """Return the row and column of the cell that each point lies in, on every level.

    Args:
        points: [N, 2] float32 (y, x).
        grid: The model's grids.
        image_size: (H, W) of the padded batch.

    Returns:
        [levels, N, 2] int64; outside the grid where the point is outside the image.
    """
    # Divisors are tensors because CUDA turns division by a Python number into multiplication by
    # its reciprocal, which may land one cell away from what division gives on the CPU.
    steps = points.new_tensor([1 / size for size in grid.sizes])[:, None, None]
    return torch.trunc(points / points.new_tensor(image_size) / steps).long()


def one_object_per_cell(
    assignment: Assignment, centers: Tensor, grid: GridSpec, image_size: tuple[int, int]
) -> Assignment:
    """Leave every shared cell to one object.

    A cell has one kernel and so draws one mask. Where the reference lets two objects share a cell
    it trains that kernel on both masks, and learns to draw two objects as one.

    The object that claims fewest cells on the level wins, because it has least elsewhere to go: a
    small object in front of a large one would otherwise lose its only cell. Equal claims go to
    the object whose centre is nearer to the cell's, and then to the later object, which is the one
    that owns the label in the reference.

    Args:
        assignment: P pairs from `assign_grid`.
        centers: [N, 2] float32 (y, x), the objects' centres.
        grid: The model's grids.
        image_size: (H, W) of the padded batch.

    Returns:
        The pairs that stay, in the same order, no cell twice.
    """
    cells, objects, levels = assignment
    claimed = levels * len(centers) + objects
    claims = claimed.new_zeros(grid.num_levels * len(centers))
    claims.scatter_add_(0, claimed, torch.ones_like(claimed))

    distances = cell_distances(assignment, centers, grid, image_size)
    order = torch.argsort(objects, descending=True, stable=True)
    for key in (distances, claims[claimed], cells):  # the last key sorted by counts most
        order = order[torch.argsort(key[order], stable=True)]
    ordered = cells[order]
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return assignment.at(order[first].sort().values)


def cell_distances(
    assignment: Assignment, centers: Tensor, grid: GridSpec, image_size: tuple[int, int]
) -> Tensor:
    """Return [P] float32, the squared distance of each pair's cell and object in pixels.

    Args:
        assignment: P pairs.
        centers: [N, 2] float32 (y, x), the objects' centres.
        grid: The model's grids.
        image_size: (H, W) of the padded batch.
    """
    cells, objects, levels = assignment
    sizes = torch.tensor(grid.sizes, device=cells.device)[levels]
    inner = cells - torch.tensor(grid.offsets, device=cells.device)[levels]
    position = torch.stack((inner // sizes, inner % sizes), dim=1) + 0.5
    middles = position * centers.new_tensor(image_size) / sizes[:, None]
    # Centres count from the middle of the first pixel, cells from its edge: hence 0.5.
    return (middles - (centers[objects] + 0.5)).square().sum(dim=1)


def cell_owners(assignment: Assignment, num_cells: int) -> Tensor:
    """Return the object whose category each cell is trained on: the last one paired with it.

    Args:
        assignment: Pairs of one image.
        num_cells: L, cells of all levels.

    Returns:
        [L] int64 object index, -1 = none (a negative cell).
    """
    owners = assignment.objects.new_full((num_cells,), -1)
    return owners.scatter_reduce_(0, assignment.cells, assignment.objects, reduce="amax")


def mask_targets(object_map: Tensor, objects: Tensor) -> Tensor:
    """Return the mask of each wanted object at stride 4.

    A pixel is set where at least 2 of the 4 central pixels of its 4 x 4 block are: what the
    reference's bilinear shrinking of the 0 / 1 mask to a quarter and rounding comes to.

    Args:
        object_map: [D, H, W] integers, H and W multiples of 4; 0 = none, n + 1 = object n.
        objects: [P] int64 object indices, repeats allowed. The caller bounds P.

    Returns:
        [P, H / 4, W / 4] bool.

    Raises:
        ValueError: If H or W is no multiple of 4.
    """
    return masks_from_blocks(block_objects(object_map), objects)


def block_objects(object_map: Tensor) -> Tensor:
    """Return the objects that hold at least 2 of the 4 central pixels of each 4 x 4 block.

    There are at most two such objects per layer, so two planes per layer say everything about the
    masks at stride 4, for all objects at once.

    Args:
        object_map: [D, H, W] integers, H and W multiples of 4; 0 = none, n + 1 = object n.

    Returns:
        [2 * D, H / 4, W / 4], dtype and numbering of `object_map`.

    Raises:
        ValueError: If H or W is no multiple of 4.
    """
    depth, height, width = object_map.shape
    if height % 4 or width % 4:
        raise ValueError(
            f"object_map must have sides that are multiples of 4, got {height} x {width}; "
            "pad the batch (the collate function does)"
        )
    blocks = object_map.reshape(depth, height // 4, 4, width // 4, 4)[:, :, 1:3, :, 1:3]
    central = blocks.permute(0, 2, 4, 1, 3).flatten(1, 2)  # [D, 4, h, w]
    a, b, c, d = central.sort(dim=1).values.unbind(dim=1)
    nothing = torch.zeros_like(a)
    # Sorted, equal numbers are neighbours: (a, b), (b, c) or (c, d); only the first and the last
    # pair can hold two different objects.
    first = torch.where(a == b, a, torch.where(b == c, b, nothing))
    second = torch.where(c == d, c, nothing)
    return torch.cat((first, second))


def masks_from_blocks(blocks: Tensor, objects: Tensor) -> Tensor:
    """Return [P, h, w] bool masks of objects [P] from the planes of `block_objects`."""
    numbers = (objects + 1).to(blocks.dtype)[:, None, None]
    masks = torch.zeros(len(objects), *blocks.shape[1:], dtype=torch.bool, device=blocks.device)
    for plane in blocks:
        masks |= plane == numbers
    return masks


def crowd_cells(crowd_map: Tensor, grid: GridSpec, num_things: int) -> Tensor:
    """Find the cells that touch a crowd region.

    Nothing is known about the objects inside a crowd region, so a cell that sees its category
    there is not wrong.

    Args:
        crowd_map: [H, W] integers, 0 = no crowd, label + 1 = crowd of that thing label; H and W are
            those of the padded batch.
        grid: The model's grids.
        num_things: C, number of thing categories.

    Returns:
        [L, C] bool, True = some pixel of a crowd of that category lies, at least in part, in the
        cell's rectangle.
    """
    height, width = crowd_map.shape
    ys, xs = torch.nonzero(crowd_map, as_tuple=True)
    labels = crowd_map[ys, xs].long()[:, None, None] - 1
    touched = torch.zeros(grid.num_cells * num_things, dtype=torch.bool, device=crowd_map.device)
    for size, start in zip(grid.sizes, grid.offsets, strict=True):
        rows = _cells_of_pixels(ys, height, size)
        columns = _cells_of_pixels(xs, width, size)
        cells = start + rows[:, :, None] * size + columns[:, None, :]
        touched.index_fill_(0, (cells * num_things + labels).flatten(), True)
    return touched.view(grid.num_cells, num_things)


def _cells_of_pixels(pixels: Tensor, length: int, size: int) -> Tensor:
    """Return [M, k] int64, the cells along one axis that pixels [M] overlap; the last repeats."""
    first = pixels * size // length
    last = ((pixels + 1) * size - 1) // length
    at_most = -(-size // length) + 1  # a pixel as wide as `size / length` cells, anywhere
    steps = torch.arange(at_most, device=pixels.device)
    return torch.minimum(first[:, None] + steps, last[:, None])
