"""Reading golden vectors: see the README of the golden folder for the conventions."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

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


def by_level(cells: Tensor, grid_sizes: list[int]) -> list[Tensor]:
    """[B, L, C] -> one [B, C, S, S] per level."""
    parts = cells.split([size * size for size in grid_sizes], dim=1)
    return [
        part.transpose(1, 2).unflatten(2, (size, size))
        for part, size in zip(parts, grid_sizes, strict=True)
    ]


def check_heads(
    arrays: dict[str, Any], category_logits: Tensor, kernels: Tensor, mask_features: Tensor
) -> None:
    """Compare a head's outputs with a golden file of kind head_forward."""
    _check(arrays, "mask_feat", mask_features)
    sizes = arrays["meta"]["num_grids"]
    for name, values in (("cate", category_logits), ("kernel", kernels)):
        for level, grid in enumerate(by_level(values, sizes)):
            _check(arrays, f"{name}{level}", grid)


def _check(arrays: dict[str, Any], name: str, values: Tensor) -> None:
    found = values.numpy()
    if name in arrays:
        np.testing.assert_allclose(found, arrays[name], atol=1e-4, rtol=0, err_msg=name)
    if f"{name}_sample" in arrays:
        sample = found.ravel()[:: arrays["meta"]["sample_step"]]
        np.testing.assert_allclose(sample, arrays[f"{name}_sample"], atol=1e-4, rtol=0)
    assert found.shape == tuple(arrays[f"{name}_shape"])
    np.testing.assert_allclose(
        stats(found), arrays[f"{name}_stats"], rtol=1e-4, err_msg=f"{name}_stats"
    )
