"""The recipe that golden weights are made by, and official parameter names in ours."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import golden_tools
import numpy as np
import torch
from torch import Tensor

from unisolo.convert.names import FORMATS


def our_name(official: str) -> str:
    name = FORMATS["solo"].ours(official)
    if name is None:
        raise KeyError(official)
    return name


def ours(official: Mapping[str, Any]) -> dict[str, Tensor]:
    return {
        our_name(name): torch.as_tensor(np.asarray(value)).float()
        for name, value in official.items()
    }


def recipe_weights(meta: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Weights by official name, as the golden folder's README defines them."""
    weights = {}
    for name, shape in meta["param_shapes"].items():
        random = golden_tools.random_state(meta["seed"], name)
        if name.endswith("num_batches_tracked"):
            values = np.zeros(shape)
        elif name.endswith("running_mean"):
            values = 0.1 * random.randn(*shape)
        elif name.endswith("running_var"):
            values = 0.5 + random.rand(*shape)
        elif len(shape) >= 2:
            gain = 0.3 if "conv_offset" in name else 1.4142135
            gain = {
                "bbox_head.solo_kernel.weight": 0.8,
                "bbox_head.solo_cate.weight": 0.6,
            }.get(name, 0.6 if name.startswith("neck.") else gain)
            values = gain / math.sqrt(np.prod(shape[1:])) * random.randn(*shape)
        elif name.endswith("weight"):
            values = 1 + 0.1 * random.randn(*shape)
            last_norm = ".bn2." if meta.get("basic_block") else ".bn3."
            values = values * (0.5 if last_norm in name else 1.0)
        else:
            values = 0.1 * random.randn(*shape)
            values = values - (2.7 if name == "bbox_head.solo_cate.bias" else 0.0)
        rounded = np.asarray(values).astype(np.float16).astype(np.float32)
        if name == "bbox_head.solo_cate.bias":
            rounded = rounded + np.float32(meta.get("cate_bias_add", 0.0))
        weights[name] = rounded
    return weights


def recipe_features(meta: Mapping[str, Any]) -> list[np.ndarray]:
    """P2..P6 as the golden folder's README defines them."""
    height, width = meta["image_hw"]
    sizes = [(height // stride, width // stride) for stride in (4, 8, 16, 32)]
    sizes.append((math.ceil(sizes[-1][0] / 2), math.ceil(sizes[-1][1] / 2)))
    return [
        np.stack(
            [
                _smooth(
                    golden_tools.random_state(meta["seed"], f"feat{level}.{item}"),
                    meta["fpn_channels"],
                    *size,
                )
                for item in range(meta["batch"])
            ]
        )
        for level, size in enumerate(sizes)
    ]


def _smooth(random: np.random.RandomState, channels: int, height: int, width: int) -> np.ndarray:
    coarse = random.randn(channels, max(2, height // 3 + 1), max(2, width // 3 + 1))
    for axis, size in ((1, height), (2, width)):
        at = np.linspace(0, coarse.shape[axis] - 1, size)
        low = np.clip(np.floor(at).astype(int), 0, coarse.shape[axis] - 2)
        share = (at - low).reshape((1, -1, 1) if axis == 1 else (1, 1, -1))
        below, above = (np.take(coarse, low + step, axis=axis) for step in (0, 1))
        coarse = below * (1 - share) + above * share
    return (1.5 * coarse).astype(np.float16).astype(np.float32)
