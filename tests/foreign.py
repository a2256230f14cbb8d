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


def mmdetection_shapes(
    blocks: tuple[int, ...] = (2, 2, 2, 2),
    *,
    width: int = 0,
    group_width: int = 0,
    towers: tuple[int, int] = (2, 256),
    kernel: int = 128,
    classes: int = 80,
    deform: tuple[str, ...] = (),
    taps: int = 3,
) -> dict[str, list[int]]:
    """Names and shapes of a model in mmdetection, from its configuration.

    Args:
        blocks: Blocks per stage.
        width: Channels of the first stage's 3 x 3 convolutions; 0 = basic blocks.
        group_width: Channels per group; 0 = one group.
        towers: Convolutions in each tower, and their width.
        kernel: Channels of the dynamic kernels.
        classes: Number of classes.
        deform: Of "backbone", "last", "all" and "mask".
        taps: Offset channels per position of the kernel: 2 = version 1, 3 = version 2.
    """
    shapes: dict[str, list[int]] = {}

    def norm(name: str, channels: int, counted: bool = True) -> None:
        kinds = ("weight", "bias", "running_mean", "running_var") if counted else ("weight", "bias")
        shapes.update({f"{name}.{kind}": [channels] for kind in kinds})
        if counted:
            shapes[f"{name}.num_batches_tracked"] = []

    def conv(name: str, out: int, into: int, side: int, moved: bool = False) -> None:
        shapes[f"{name}.weight"] = [out, into, side, side]
        if moved:
            shapes[f"{name}.conv_offset.weight"] = [taps * side**2, into, side, side]
            shapes[f"{name}.conv_offset.bias"] = [taps * side**2]

    def block(name: str, out: int, into: int, side: int = 3, moved: bool = False) -> None:
        conv(f"{name}.conv", out, into, side, moved)
        norm(f"{name}.gn", out, counted=False)

    conv("backbone.conv1", 64, 3, 7)
    norm("backbone.bn1", 64)
    into = 64
    ends = []
    for stage, count in enumerate(blocks):
        out = (256 if width else 64) * 2**stage
        middle = width * 2**stage or out
        for number in range(count):
            at = f"backbone.layer{stage + 1}.{number}"
            moved = "backbone" in deform and stage > 0
            sides = (1, 3, 1) if width else (3, 3)
            widths = (into, middle, middle, out) if width else (into, out, out)
            for place, side in enumerate(sides):
                grouped = group_width * 2**stage if group_width and side == 3 else widths[place]
                conv(f"{at}.conv{place + 1}", widths[place + 1], grouped, side)
                if moved and side == 3:
                    offsets = [taps * 9, widths[place], 3, 3]
                    shapes[f"{at}.conv{place + 1}.conv_offset.weight"] = offsets
                    shapes[f"{at}.conv{place + 1}.conv_offset.bias"] = [taps * 9]
                norm(f"{at}.bn{place + 1}", widths[place + 1])
            if number == 0 and (stage > 0 or into != out):
                conv(f"{at}.downsample.0", out, into, 1)
                norm(f"{at}.downsample.1", out)
            into = out
        ends.append(out)
    for level, channels in enumerate(ends):
        for name, before, side in (("lateral", channels, 1), ("fpn", 256, 3)):
            conv(f"neck.{name}_convs.{level}.conv", 256, before, side)
            shapes[f"neck.{name}_convs.{level}.conv.bias"] = [256]
    number, channels = towers
    for tower, first in (("cls", 256), ("kernel", 258)):
        for place in range(number):
            moved = "all" in deform or ("last" in deform and place == number - 1)
            name = f"mask_head.{tower}_convs.{place}"
            block(name, channels, channels if place else first, moved=moved)
        out = {"cls": classes, "kernel": kernel}[tower]
        conv(f"mask_head.conv_{tower}", out, channels, 3)
        shapes[f"mask_head.conv_{tower}.bias"] = [out]
    branch = "mask_head.mask_feature_head"
    for level in range(4):
        for place in range(max(level, 1)):
            before = 128 if place else (258 if level == 3 else 256)
            name = f"{branch}.convs_all_levels.{level}.conv{place}"
            block(name, 128, before, moved="mask" in deform)
    block(f"{branch}.conv_pred", kernel, 128, side=1, moved="mask" in deform)
    return shapes


def from_mmdetection(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same weights under SOLO's names."""
    names = {key: FORMATS["solo"].foreign(FORMATS["mmdetection"].ours(key) or "") for key in state}
    return {str(other): state[key] for key, other in names.items()}
