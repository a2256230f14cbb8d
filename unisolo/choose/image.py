"""Image size, augmentation and grids, from the sizes of images and objects."""

from __future__ import annotations

import math
from typing import Any

from unisolo.build import build_grid
from unisolo.choose.chosen import Draft
from unisolo.choose.facts import Facts
from unisolo.choose.machine import Machine
from unisolo.config import Config, config_to_dict, load_config
from unisolo.doctor.coverage import FEW, object_sides, try_settings

__all__ = ["VISIBLE", "choose_augmentation", "choose_grids", "choose_size"]

VISIBLE = 16
"""Input pixels that an object should span: four features of the mask branch, whose stride is 4."""
_MOST = 0.9
"""Share of the objects that should."""
_SIZES_CPU, _SIZES_GPU = (192, 256, 320, 384), (512, 640, 800)
_WIDEST = 5 / 3
"""Of COCO's usual 800 x 1333; wider images are made smaller."""


def choose_size(draft: Draft, facts: Facts, machine: Machine) -> None:
    """Choose the smallest image size at which most objects can be seen."""
    ladder = _SIZES_CPU if machine.is_cpu else _SIZES_GPU
    # Enlarging an image more than twice shows nothing new.
    allowed = [size for size in ladder if size <= 2 * facts.short_side] or [ladder[0]]
    enough = [size for size in allowed if facts.visible(size, VISIBLE) >= _MOST]
    draft.put({"data.image_size": enough[0] if enough else allowed[-1]})
    size = draft.config.data.image_size
    longest = math.ceil(size * min(facts.aspect, _WIDEST) / 32) * 32
    draft.put({"data.max_size": max(longest, size)})
    share = f"{facts.visible(size, VISIBLE):.0%} of the objects span {VISIBLE} px or more"
    limit = "" if enough else f", and a {machine.device.type} takes long for more"
    draft.note(
        "image size",
        ("data.image_size", "data.max_size"),
        f"{share}{limit}; the files' short side is {facts.short_side}",
        lambda config: f"{config.data.image_size}, long side up to {config.data.max_size}",
    )


def choose_augmentation(draft: Draft) -> None:
    """Cut zoomed images back to a size that memory is known to hold."""
    config = draft.config.data
    if config.augment.scale_jitter[1] > 1:
        draft.put({"data.augment.crop": [config.max_size, config.max_size]})
    keys = ("flip", "scale_jitter", "crop", "color")
    draft.note(
        "augmentation",
        tuple(f"data.augment.{key}" for key in keys),
        "the recipe's",
        _augmentation,
    )


def _augmentation(config: Config) -> str:
    settings = config.data.augment
    parts = [f"flips {settings.flip:g}"]
    if settings.scale_jitter != (1.0, 1.0):
        parts.append("zoom {:g} to {:g}".format(*settings.scale_jitter))
    if settings.color:
        parts.append(f"colour {settings.color:g}")
    return ", ".join(parts)


def choose_grids(draft: Draft, dataset: Any, facts: Facts) -> None:
    """Fit scale ranges to the objects, and take finer grids where that saves objects."""
    keys = ("model.scale_ranges", "model.grid_sizes")
    if not facts.objects:
        draft.put({"model.scale_ranges": "scaled"})
        draft.note("grids, sides in px", keys, "there is no object to fit them to")
        return
    trials = try_settings(dataset, draft.config)
    now, best = trials[0], min(trials, key=lambda trial: trial.lost)
    # Larger images cost time and memory, which was weighed above.
    grids_only = all(setting.startswith("model.") for setting in best.settings)
    if grids_only and now.lost - best.lost > FEW * now.looked_at:
        changed = load_config(None, best.settings, values=config_to_dict(draft.config)).model
        draft.put({"model.grid_sizes": changed.grid_sizes})
        now = best
    why = f"fitted to the objects; {now.lost} of {now.looked_at} looked at get no cell"
    if best.lost < now.lost:
        why += f" ({best.lost} with {' '.join(best.settings)})"
    draft.note("grids, sides in px", keys, why, lambda config: _grids(config, dataset))


def _grids(config: Config, dataset: Any) -> str:
    grid = build_grid(config, object_sides(dataset, config))
    return ", ".join(
        f"{size}x{size} {low:.0f}" + (f"-{high:.0f}" if high < config.data.max_size else "+")
        for size, (low, high) in zip(grid.sizes, grid.scale_ranges, strict=True)
    )
