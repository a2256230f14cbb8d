"""The training state: all that a run needs to go on where it stopped.

States are numbered files in `<out>/checkpoints/`. Each appears whole or not at all, the newest few
are kept, and one that is damaged all the same is passed over for the one before. They are read
with `weights_only=True`, so nothing in them is executed; the deployable file is a separate one.
"""

from __future__ import annotations

import random
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unisolo.categories import Categories
from unisolo.checkpoint import CheckpointError
from unisolo.config import Config, config_to_dict
from unisolo.files import write_atomically

__all__ = [
    "StateFolder",
    "check_state",
    "random_state",
    "read_state",
    "restore_random_state",
    "seed_all",
]

FORMAT_VERSION = 2

MAY_CHANGE = (
    "data.cache",
    "data.root",
    "data.workers",
    "inference.",
    "model.backbone_weights",
    "model.pretrained",
    "train.checkpoint_every",
    "train.device",
    "train.eval_every",
    "train.keep_checkpoints",
    "train.log_every",
    "train.max_nonfinite",
    "train.on_nonfinite",
    "train.out",
    "train.tensorboard",
)
"""Settings that a resumed run may have otherwise: they do not change its course."""


class StateFolder:
    """The numbered states of one run.

    Args:
        out: The run's folder; states go to `checkpoints/` in it.
        keep: How many of the newest states stay.
    """

    def __init__(self, out: Path, *, keep: int = 2) -> None:
        self.folder = out / "checkpoints"
        self.keep = keep

    def paths(self) -> list[Path]:
        """The states there are, newest first; unfinished files do not count."""
        found = [path for path in self.folder.glob("step_*.pt") if _step_of(path) is not None]
        return sorted(found, key=lambda path: _step_of(path) or 0, reverse=True)

    def save(
        self, *, step: int, config: Config, categories: Categories, parts: dict[str, Any]
    ) -> Path:
        """Write a state; then remove the oldest beyond `keep`.

        Args:
            step: Optimiser steps done.
            config: The run's configuration.
            categories: The data set's categories.
            parts: State dicts by name (model, optimizer, ema, scaler, random, ...).

        Raises:
            OSError: If the file cannot be written; the states there were are untouched.
        """
        path = self.folder / f"step_{step:08d}.pt"
        state = {
            "format_version": FORMAT_VERSION,
            "step": step,
            "config": config_to_dict(config),
            "categories": categories.to_coco(),
            **parts,
        }
        write_atomically(path, lambda temporary: torch.save(state, temporary))
        for old in self.paths()[self.keep :]:
            old.unlink(missing_ok=True)
        return path

    def newest(self, say: Callable[[str], None]) -> tuple[Path, dict[str, Any]]:
        """Read the newest state that is whole.

        Args:
            say: Told a sentence for each damaged state that is passed over.

        Raises:
            CheckpointError: If there is no state, or none that can be read.
        """
        paths = self.paths()
        if not paths:
            raise CheckpointError(
                f"{self.folder}: nothing to resume from; start the run without --resume"
            )
        problems = []
        for path in paths:
            try:
                state = read_state(path)
            except CheckpointError as error:
                problems.append(str(error))
                continue
            for problem in problems:
                say(f"{problem}; going on from {path.name} instead")
            return path, state
        raise CheckpointError(
            f"none of the {len(paths)} training states can be read: {'; '.join(problems)}; start "
            "the run anew with --overwrite"
        )

    def remove_unfinished(self) -> None:
        """Remove temporary files that a killed process left."""
        for path in self.folder.glob(".step_*"):
            path.unlink(missing_ok=True)


def _step_of(path: Path) -> int | None:
    match = re.fullmatch(r"step_(\d+)\.pt", path.name)
    return int(match[1]) if match else None


def read_state(path: Path) -> dict[str, Any]:
    """Read and verify one training state.

    Args:
        path: A file written by `StateFolder.save`.

    Raises:
        CheckpointError: If the file is missing, torn or corrupted, not a training state, or of
            another version.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such training state")
    try:
        # torch does not look at the checksums in its own files; zipfile does.
        with zipfile.ZipFile(path) as file:
            broken = file.testzip()
        if broken is not None:
            raise ValueError(f"checksum of {broken} is wrong")
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        version = state["format_version"]
        complete = isinstance(state["step"], int) and isinstance(state["config"], dict)
    # Each layer (zip, pickle, torch) has errors of its own for a damaged file.
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{path}: damaged or not a training state ({reason})") from None
    if version != FORMAT_VERSION or not complete:
        raise CheckpointError(
            f"{path}: training state version {version!r}; this package reads {FORMAT_VERSION}"
        )
    return state


def check_state(path: Path, state: dict[str, Any], config: Config, categories: Categories) -> None:
    """Refuse to go on with other data or settings than the run was started with.

    Args:
        path: Where the state was read, for the message.
        state: From `read_state`.
        config: Configuration the run is to go on with; only what cannot change its course may
            differ from the saved one (`MAY_CHANGE`).
        categories: Categories of the data set the run goes on with.

    Raises:
        CheckpointError: If they differ; the message lists what does.
    """
    try:
        same_data = Categories.from_coco(state["categories"]) == categories
        current = _flat(config_to_dict(config))
        # A setting that the run's version had not yet is at its default, which changes nothing.
        saved = _flat(config_to_dict(Config())) | _flat(state["config"])
        changed = [
            f"{key}={current.get(key)!r} (was {saved.get(key)!r})"
            for key in sorted(saved.keys() | current.keys())
            if saved.get(key) != current.get(key) and not key.startswith(MAY_CHANGE)
        ]
    # Whatever a damaged file holds where categories and settings should be.
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: damaged (categories or settings cannot be read: {error!r})"
        ) from None
    if not same_data:
        raise CheckpointError(
            f"{path}: the run was started with other categories than the data set has now"
        )
    if changed:
        raise CheckpointError(
            f"{path}: a run goes on with the settings it was started with, but these differ: "
            f"{', '.join(changed)}; leave them, or start a new run in another train.out"
        )


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level of dotted keys."""
    flat = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def seed_all(seed: int) -> None:
    """Start the Python, NumPy and torch generators of this process from one number."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


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
