"""Checkpoint files as other SOLOv2 codes write them, made of given or drawn weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import golden_tools
import pytest
import torch
from torch import Tensor

from unisolo.convert.names import FORMATS

KEY_LISTS = golden_tools.SHARED / "golden" / "keys"
STD = torch.tensor([58.395, 57.12, 57.375])
MEAN = torch.tensor([123.675, 116.28, 103.53])


def key_list_names() -> list[str]:
    return sorted(path.stem for path in KEY_LISTS.glob("*.json")) or ["absent"]


def key_list(name: str) -> dict[str, list[int]]:
    """Names and shapes of a real configuration; skips where the folder is absent."""
    path = KEY_LISTS / f"{name}.json"
    if not path.is_file():
        pytest.skip(f"key lists not on this machine: {path}")
    return json.loads(path.read_text())["keys"]


def drawn(shapes: Mapping[str, list[int]], seed: int = 0) -> dict[str, Tensor]:
    """Weights of given shapes whose activations neither vanish nor explode."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        values = torch.randn(shape, generator=generator)
        if name.endswith("num_batches_tracked"):
            values = torch.zeros(shape, dtype=torch.int64)
        elif name.endswith("running_var"):
            values = 0.5 + values.abs()
        elif len(shape) == 4:
            gain = 0.3 if "offset" in name else 1.4
            values = values * gain / (shape[1] * shape[2] * shape[3]) ** 0.5
        elif name.endswith("weight"):
            values = 0.5 + 0.05 * values
        else:
            values = 0.1 * values
        state[name] = values
    return state


def renamed(official: Mapping[str, Tensor], form: str) -> dict[str, Tensor]:
    """The same model's weights as another code would hold them.

    AdelaiDet's models take blue, green, red and do not divide by a standard deviation, so both go
    into the first convolution; its frozen batch norms have no counter.
    """
    state = {}
    for name, values in official.items():
        ours = FORMATS["solo"].ours(name)
        other = FORMATS[form].foreign(ours) if ours else None
        assert other is not None, name
        if form == "adelaidet":
            if name.endswith("num_batches_tracked"):
                continue
            if name == "backbone.conv1.weight":
                values = (values / STD[:, None, None]).flip(1)
        state[other] = values
    return state


def write(state: Mapping[str, Any], form: str, path: Path) -> Path:
    """Save as the code of a format does."""
    tree: dict[str, Any]
    if form == "solo":
        tree = {"meta": {"mmdet_version": "1.0.0", "epoch": 36}, "state_dict": dict(state)}
    elif form == "mmdetection":
        tree = {
            "meta": {"epoch": 36, "dataset_meta": {"palette": []}},
            "state_dict": dict(state),
            "optimizer": {"state": {}, "param_groups": []},
        }
    else:
        tree = {"model": dict(state), "iteration": 269999}
    torch.save(tree, path)
    return path
