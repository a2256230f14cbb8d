"""From a path or a name to a model."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from unisolo.checkpoint import load_checkpoint
from unisolo.models import UniSolo

__all__ = ["load_model"]


def load_model(
    source: str | os.PathLike[str], *, task: str | None = None, device: str | torch.device = "cpu"
) -> UniSolo:
    """Load a model, in evaluation mode.

    Args:
        source: Path of a checkpoint.
        task: Check that the model can answer this task.
        device: Where the weights go.

    Returns:
        The model, with `config` and `categories` attached.

    Raises:
        CheckpointError: As `load_checkpoint`.
    """
    return load_checkpoint(Path(source), task=task, device=device)
