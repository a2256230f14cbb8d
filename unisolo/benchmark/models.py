"""Models and images to measure with: real architectures, random weights, every place filled."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from unisolo.build import build_model
from unisolo.categories import Categories, Category
from unisolo.config import load_config
from unisolo.models import UniSolo

__all__ = ["NUM_THINGS", "input_image", "random_model"]

NUM_THINGS = 80
"""Thing categories, as in COCO."""

SEED = 0


def random_model(config: Path) -> UniSolo:
    """Build the instance model of a configuration with random weights; the same at every call.

    Category biases are raised to even odds, so that thousands of pairs pass the threshold and all
    places of candidates and of instances are filled: the most that the post-process can have to do.

    Args:
        config: The file. Pretrained weights are not loaded; fitted scale ranges, which only
            training reads, become "scaled".

    Returns:
        The model, in evaluation mode.

    Raises:
        ConfigError: If the file is not a configuration.
    """
    settings = load_config(config, ["task=instance", "model.pretrained=false"])
    if settings.model.scale_ranges == "auto":
        scaled = settings.model.model_copy(update={"scale_ranges": "scaled"})
        settings = settings.model_copy(update={"model": scaled})
    categories = Categories([Category(n + 1, f"category {n + 1}") for n in range(NUM_THINGS)])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = build_model(settings, categories, load_backbone=False).eval()
    if model.solo_head.category_out.bias is not None:
        nn.init.zeros_(model.solo_head.category_out.bias)
    return model


def input_image(size: tuple[int, int], seed: int = SEED) -> Tensor:
    """Make an image of coloured blocks of 16 x 16 pixels.

    Args:
        size: (H, W), multiples of 32.
        seed: Another gives another image.

    Returns:
        [1, 3, H, W] uint8.

    Raises:
        ValueError: If a side is no multiple of 32.
    """
    if any(side < 32 or side % 32 for side in size):
        raise ValueError(f"the input's sides must be multiples of 32, got {size[0]} x {size[1]}")
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.randint(0, 256, (1, 3, size[0] // 16, size[1] // 16), generator=generator)
    return blocks.to(torch.uint8).repeat_interleave(16, dim=2).repeat_interleave(16, dim=3)
