"""The training state: all that a run needs to go on where it stopped.

Kept apart from the deployable file. It is read with `weights_only=True`, so nothing in it is
executed.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unisolo.categories import Categories
from unisolo.checkpoint import CheckpointError
from unisolo.config import Config, config_to_dict
from unisolo.files import write_atomically

__all__ = ["load_state", "random_state", "restore_random_state", "save_state"]

FORMAT_VERSION = 1

MAY_CHANGE = (
    "data.root",
    "data.workers",
    "model.backbone_weights",
    "model.pretrained",
    "train.checkpoint_every",
    "train.device",
    "train.eval_every",
    "train.log_every",
    "train.out",
    "train.tensorboard",
)
"""Settings that a resumed run may have otherwise: they do not change its course."""


def save_state(
    path: Path, *, step: int, config: Config, categories: Categories, parts: dict[str, Any]
) -> None:
    """Write the training state; the file appears whole or not at all.

    Args:
        path: Where to, e.g. `<out>/last.pt`.
        step: Optimiser steps done.
        config: The run's configuration.
        categories: The data set's categories.
        parts: State dicts by name (model, optimizer, ema, scaler, random, ...).
    """
    state = {
        "format_version": FORMAT_VERSION,
        "step": step,
        "config": config_to_dict(config),
        "categories": categories.to_coco(),
        **parts,
    }
    write_atomically(path, lambda temporary: torch.save(state, temporary))


def load_state(path: Path, config: Config, categories: Categories) -> dict[str, Any]:
    """Read a training state.

    Args:
        path: A file written by `save_state`.
        config: Configuration the run is to go on with; only what cannot change its course may
            differ from the saved one (`MAY_CHANGE`).
        categories: Categories of the data set the run goes on with.

    Raises:
        CheckpointError: If the file is missing, damaged, of another data set, or of a run with
            other settings; the message lists them.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: nothing to resume from; start the run without --resume")
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        version = state["format_version"]
    except Exception as error:  # torch raises many kinds for a damaged file
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{path}: damaged or not a training state ({reason})") from None
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: training state version {version}; this package reads {FORMAT_VERSION}"
        )
    if Categories.from_coco(state["categories"]) != categories:
        raise CheckpointError(
            f"{path}: the run was started with other categories than the data set has now"
        )
    saved, current = _flat(state["config"]), _flat(config_to_dict(config))
    changed = [
        f"{key}={current.get(key)!r} (was {saved.get(key)!r})"
        for key in sorted(saved.keys() | current.keys())
        if saved.get(key) != current.get(key) and not key.startswith(MAY_CHANGE)
    ]
    if changed:
        raise CheckpointError(
            f"{path}: a run goes on with the settings it was started with, but these differ: "
            f"{', '.join(changed)}; leave them, or start a new run in another train.out"
        )
    return state


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level of dotted keys."""
    flat = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def random_state() -> dict[str, Any]:
    """Return the state of the Python, NumPy and torch random generators of this process."""
    name, keys, position, has_gauss, cached = np.random.get_state()
    version, internal, gauss = random.getstate()
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": [
            name,
            torch.from_numpy(np.array(keys).astype(np.int64)),
            position,
            has_gauss,
            cached,
        ],
        "python": [version, list(internal), gauss],
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(state: dict[str, Any]) -> None:
    """Put the generators back where `random_state` found them."""
    torch.set_rng_state(state["torch"])
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
