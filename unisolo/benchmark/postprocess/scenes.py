"""Scenes for the post-process: raw outputs made to order, with a known number of candidates.

Random networks give masks like noise. These outputs are drawn instead: the first mask features are
x, y and their squares, so a kernel can hold the equation of an ellipse, and candidates come as
near-duplicates of objects, as a trained network gives them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from unisolo.benchmark.postprocess.reference_chain import ReferenceCandidates, reference_candidates
from unisolo.structures import MASK_STRIDE, SIZE_DIVISOR, GridSpec, Outputs

__all__ = [
    "NUM_CATEGORIES",
    "SCENES",
    "UNLIKELY",
    "Scene",
    "SceneName",
    "check_candidates",
    "make_scene",
]

SceneName = Literal["coco", "crowd", "dense", "noise"]

SCENES: dict[SceneName, str] = {
    "coco": "objects of 3 to 30 % of the image in 12 categories, 8 near-duplicates each",
    "crowd": "the same, all of one category",
    "dense": "one category, every mask about half of the image",
    "noise": "one category, random masks with half of their pixels on: the worst case",
}

NUM_CATEGORIES = 80
DUPLICATES = 8
SHARPNESS = 4.0
"""The logit in the middle of an ellipse; 0 on its border."""
ROUGHNESS, NOISE = 0.3, 4.0
"""Twice the deviation of logits from an ellipse's equation, and of those that are noise alone."""
LIKELY, UNLIKELY = (0.12, 0.97), -6.0
"""Probabilities of candidates, and the logit of all other pairs."""


@dataclass(frozen=True)
class Scene:
    """Raw outputs for one image and its candidates.

    Attributes:
        name: A key of `SCENES`.
        grid: The paper's grids.
        outputs: Of a batch of one.
        candidates: All pairs above 0.1, by falling score.
        image_size: (H, W) of the image, which is also the size of the results.
        padded_size: (H, W) with padding: the mask features span it.
    """

    name: str
    grid: GridSpec
    outputs: Outputs
    candidates: ReferenceCandidates
    image_size: tuple[int, int]
    padded_size: tuple[int, int]


def make_scene(
    name: SceneName,
    num_candidates: int,
    image_size: tuple[int, int],
    *,
    channels: int = 256,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> Scene:
    """Draw a scene; the same at every call and on every device.

    Args:
        name: A key of `SCENES`.
        num_candidates: Pairs above the threshold of 0.1, each in a cell of its own.
        image_size: (H, W) of the image.
        channels: E, at least 8.
        dtype: Of kernels and mask features. Category logits are float32.
        device: Where the outputs are wanted.
        seed: Another gives another scene.

    Returns:
        The scene.

    Raises:
        ValueError: If the name is unknown or a number out of range.
    """
    grid = GridSpec()
    if name not in get_args(SceneName):
        raise ValueError(f"unknown scene {name!r}; choose from {', '.join(SCENES)}")
    check_candidates([num_candidates])
    if min(image_size) < 1 or channels < 8:
        raise ValueError(
            f"a scene needs an image of at least 1 x 1 and 8 channels, got {image_size}, {channels}"
        )
    padded = tuple(-(-side // SIZE_DIVISOR) * SIZE_DIVISOR for side in image_size)
    height, width = (side // MASK_STRIDE for side in padded)
    draw = torch.Generator().manual_seed(seed)
    features = torch.randn(channels, height, width, generator=draw) / 2
    kernels = torch.randn(num_candidates, channels, generator=draw) / math.sqrt(channels)
    if name == "noise":
        kernels *= NOISE
        labels = torch.zeros(num_candidates, dtype=torch.int64)
    else:
        y, x = torch.meshgrid(
            torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij"
        )
        features[:5] = torch.stack([torch.ones_like(x), x, y, x * x, y * y])
        equations, labels = _ellipses(name, num_candidates, draw)
        kernels *= ROUGHNESS
        kernels[:, :5] = equations
    logits, cells = _category_logits(grid, labels, draw)
    by_cell = torch.zeros(grid.num_cells, channels)
    by_cell[cells] = kernels
    outputs = Outputs(
        logits.unsqueeze(0).to(device),
        by_cell.unsqueeze(0).to(device, dtype),
        features.unsqueeze(0).to(device, dtype),
        {},
    )
    found = reference_candidates(outputs.category_logits[0], outputs.kernels[0], grid)
    order = found.scores.argsort(descending=True, stable=True)
    candidates = ReferenceCandidates(*(field[order] for field in found))
    return Scene(name, grid, outputs, candidates, image_size, (padded[0], padded[1]))


def check_candidates(counts: Iterable[int]) -> None:
    """Raise a ValueError for a number of candidates that no scene can have."""
    most = GridSpec().num_cells
    for count in counts:
        if not 1 <= count <= most:
            raise ValueError(f"a scene has 1 to {most} candidates (one per cell), got {count}")


def _ellipses(name: SceneName, count: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Coefficients [N, 5] of 1, x, y, x**2, y**2 and labels [N]: objects and their duplicates."""
    num_objects = max(1, count // DUPLICATES)
    centre = torch.rand(num_objects, 2, generator=draw) * 1.8 - 0.9  # the image spans -1..1
    share = torch.rand(num_objects, 2, generator=draw)
    radius = 0.6 + 0.4 * share if name == "dense" else 0.03 * 10**share
    labels = torch.zeros(num_objects, dtype=torch.int64)
    if name == "coco":
        pool = torch.randperm(NUM_CATEGORIES, generator=draw)[:12]
        labels = pool[torch.randint(len(pool), (num_objects,), generator=draw)]
    of = torch.arange(count) % num_objects
    centre = centre[of] + 0.15 * radius[of] * torch.randn(count, 2, generator=draw)
    radius = (radius[of] * (1 + 0.12 * torch.randn(count, 2, generator=draw))).clamp_min(0.02)
    # SHARPNESS * (1 - ((x - cx) / rx)**2 - ((y - cy) / ry)**2), multiplied out.
    square = SHARPNESS / radius**2
    constant = SHARPNESS - (square * centre**2).sum(1, keepdim=True)
    labels = labels[of]
    if name == "coco":  # a network takes one object in ten for something else
        other = torch.randint(NUM_CATEGORIES, (count,), generator=draw)
        labels = torch.where(torch.rand(count, generator=draw) < 0.1, other, labels)
    return torch.cat([constant, 2 * square * centre, -square], dim=1), labels


def _category_logits(
    grid: GridSpec, labels: Tensor, draw: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Logits [L, C] in which exactly these candidates pass, and their cells [N].

    Probabilities rise with the cell: points NMS looks at upper and left neighbours only, so none of
    the candidates falls to another.
    """
    count = len(labels)
    cells = torch.randperm(grid.num_cells, generator=draw)[:count].sort().values
    low, high = LIKELY
    probs = (low + (high - low) * torch.rand(count, generator=draw)).sort().values
    logits = torch.full((grid.num_cells, NUM_CATEGORIES), UNLIKELY)
    logits[cells, labels] = probs.logit()
    return logits, cells
