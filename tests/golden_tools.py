"""Reading golden vectors: see the README of the golden folder for the conventions."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np

SHARED = Path(__file__).resolve().parents[2] / "shared"


def load(path: Path) -> dict[str, Any]:
    with np.load(path) as archive:
        arrays: dict[str, Any] = {name: archive[name] for name in archive.files}
    arrays["meta"] = json.loads(bytes(arrays["meta"]))
    return arrays


def unpack(arrays: dict[str, Any], name: str) -> np.ndarray:
    """Boolean masks (n, H, W) stored as `<name>_packed` and `<name>_shape`."""
    shape = tuple(int(side) for side in arrays[f"{name}_shape"])
    bits = np.unpackbits(arrays[f"{name}_packed"], axis=1)[:, : int(np.prod(shape[1:]))]
    return bits.reshape(shape).astype(bool)


def stats(values: np.ndarray) -> np.ndarray:
    """[mean, std, l2 norm, min, max, sum, sum of x_i * sin(i + 1)] in float64."""
    flat = values.astype(np.float64).ravel()
    weights = np.sin(np.arange(flat.size, dtype=np.float64) + 1)
    norm = np.linalg.norm(flat)
    return np.array(
        [flat.mean(), flat.std(), norm, flat.min(), flat.max(), flat.sum(), (flat * weights).sum()]
    )


def random_state(seed: int, name: str) -> np.random.RandomState:
    return np.random.RandomState(zlib.crc32(f"{seed}:{name}".encode()) & 0xFFFFFFFF)
