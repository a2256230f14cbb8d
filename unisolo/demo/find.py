"""Which checkpoint the demo shows when none is named."""

from __future__ import annotations

from pathlib import Path

from unisolo.checkpoint import CheckpointError

__all__ = ["find_checkpoint"]

_DEPTH = ("*/model.safetensors", "*/*/model.safetensors", "model.safetensors")


def find_checkpoint(runs: Path = Path("runs")) -> Path:
    """Return the newest checkpoint of a folder of runs.

    Args:
        runs: Where `unisolo train` writes to by default.

    Raises:
        CheckpointError: If there is none; the message says how to get one.
    """
    found = [path for pattern in _DEPTH for path in runs.glob(pattern) if path.is_file()]
    if not found:
        raise CheckpointError(
            f"no --checkpoint given and no model.safetensors in {runs}/: train one (`unisolo "
            "shapes runs/shapes`, then `unisolo train --config configs/quickstart.yaml --data "
            "runs/shapes`), or give a file or a name from `unisolo models`"
        )
    return max(found, key=lambda path: path.stat().st_mtime)
