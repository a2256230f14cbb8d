"""AdelaiDet's SOLOv2, written out from its description with AdelaiDet's parameter names.

It takes blue, green, red, subtracts a mean and divides by nothing, and a stage shrinks in the first
1 x 1 convolution of its first block.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

MEAN_BGR = torch.tensor([103.53, 116.28, 123.675])
BLOCKS = {2: 3, 3: 4, 4: 6, 5: 3}
GRIDS = (40, 36, 24, 16, 12)

State = dict[str, Tensor]


def shapes() -> dict[str, list[int]]:
    """Names and shapes of the R50 model of the 3x schedule."""
    found: dict[str, list[int]] = {}

    def conv(name: str, out: int, into: int, side: int) -> None:
        found[f"{name}.weight"] = [out, into, side, side]
        for kind in ("weight", "bias", "running_mean", "running_var"):
            found[f"{name}.norm.{kind}"] = [out]

    conv("backbone.bottom_up.stem.conv1", 64, 3, 7)
    into = 64
    for stage, count in BLOCKS.items():
        middle = 64 * 2 ** (stage - 2)
        for number in range(count):
            at = f"backbone.bottom_up.res{stage}.{number}"
            if number == 0:
                conv(f"{at}.shortcut", 4 * middle, into, 1)
            conv(f"{at}.conv1", middle, into, 1)
            conv(f"{at}.conv2", middle, middle, 3)
            conv(f"{at}.conv3", 4 * middle, middle, 1)
            into = 4 * middle
        for name, before, side in (("lateral", into, 1), ("output", 256, 3)):
            found[f"backbone.fpn_{name}{stage}.weight"] = [256, before, side, side]
            found[f"backbone.fpn_{name}{stage}.bias"] = [256]
    heads = [(f"ins_head.cate_tower.{3 * n}", n, 512, 512 if n else 256) for n in range(4)]
    heads += [(f"ins_head.kernel_tower.{3 * n}", n, 512, 512 if n else 258) for n in range(4)]
    for name, number, out, before in heads:
        found[f"{name}.weight"] = [out, before, 3, 3]
        for kind in ("weight", "bias"):
            found[f"{name.rpartition('.')[0]}.{3 * number + 1}.{kind}"] = [out]
    for name, out in (("cate", 80), ("kernel", 256)):
        found[f"ins_head.{name}_pred.weight"] = [out, 512, 3, 3]
        found[f"ins_head.{name}_pred.bias"] = [out]
    for level in range(4):
        for number in range(max(level, 1)):
            before = 128 if number else (258 if level == 3 else 256)
            name = f"mask_head.convs_all_levels.{level}.conv{number}"
            found[f"{name}.0.weight"] = [128, before, 3, 3]
            found[f"{name}.1.weight"] = found[f"{name}.1.bias"] = [128]
    found["mask_head.conv_pred.0.weight"] = [256, 128, 1, 1]
    found["mask_head.conv_pred.1.weight"] = found["mask_head.conv_pred.1.bias"] = [256]
    return found


def conv_norm(state: State, name: str, features: Tensor, stride: int = 1) -> Tensor:
    weight = state[f"{name}.weight"]
    features = F.conv2d(features, weight, stride=stride, padding=weight.shape[-1] // 2)
    scale = state[f"{name}.norm.weight"] / (state[f"{name}.norm.running_var"] + 1e-5).sqrt()
    shift = state[f"{name}.norm.bias"] - state[f"{name}.norm.running_mean"] * scale
    return features * scale[:, None, None] + shift[:, None, None]


def group_block(state: State, conv: str, norm: str, features: Tensor) -> Tensor:
    weight = state[f"{conv}.weight"]
    features = F.conv2d(features, weight, padding=weight.shape[-1] // 2)
    return F.group_norm(features, 32, state[f"{norm}.weight"], state[f"{norm}.bias"]).relu()


def backbone(state: State, images_bgr: Tensor) -> list[Tensor]:
    """C2 to C5 of raw blue-green-red images, 0..255."""
    features = images_bgr - MEAN_BGR[:, None, None]
    features = conv_norm(state, "backbone.bottom_up.stem.conv1", features, stride=2).relu()
    features = F.max_pool2d(features, 3, stride=2, padding=1)
    found = []
    for stage, count in BLOCKS.items():
        for number in range(count):
            at = f"backbone.bottom_up.res{stage}.{number}"
            stride = 2 if number == 0 and stage > 2 else 1
            inner = conv_norm(state, f"{at}.conv1", features, stride).relu()
            inner = conv_norm(state, f"{at}.conv2", inner).relu()
            inner = conv_norm(state, f"{at}.conv3", inner)
            if number == 0:
                features = conv_norm(state, f"{at}.shortcut", features, stride)
            features = (inner + features).relu()
        found.append(features)
    return found


def pyramid(state: State, features: list[Tensor]) -> list[Tensor]:
    """P2 to P6."""

    def conv(name: str, inputs: Tensor) -> Tensor:
        weight = state[f"backbone.{name}.weight"]
        bias = state[f"backbone.{name}.bias"]
        return F.conv2d(inputs, weight, bias, padding=weight.shape[-1] // 2)

    found: list[Tensor] = []
    above = None
    for level in (5, 4, 3, 2):
        merged = conv(f"fpn_lateral{level}", features[level - 2])
        if above is not None:
            merged = merged + above.repeat_interleave(2, 2).repeat_interleave(2, 3)
        above = merged
        found.insert(0, conv(f"fpn_output{level}", merged))
    return [*found, F.max_pool2d(found[-1], 1, stride=2)]


def with_coordinates(features: Tensor) -> Tensor:
    height, width = features.shape[-2:]
    y, x = torch.meshgrid(
        torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij"
    )
    both = torch.stack([x, y]).expand(features.shape[0], 2, height, width)
    return torch.cat([features, both], dim=1)


def resized(features: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(features, size=size, mode="bilinear", align_corners=False)


def head(state: State, levels: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Category logits [B, L, 80] and kernels [B, L, 256]."""
    inputs = [F.avg_pool2d(levels[0], 2), *levels[1:4], resized(levels[4], levels[3].shape[-2:])]
    outputs: dict[str, list[Tensor]] = {"cate": [], "kernel": []}
    for features, size in zip(inputs, GRIDS, strict=True):
        grid = resized(with_coordinates(features), (size, size))
        for name, values in (("cate", grid[:, :-2]), ("kernel", grid)):
            for place in (0, 3, 6, 9):
                tower = f"ins_head.{name}_tower"
                values = group_block(state, f"{tower}.{place}", f"{tower}.{place + 1}", values)
            pred = f"ins_head.{name}_pred"
            values = F.conv2d(values, state[f"{pred}.weight"], state[f"{pred}.bias"], padding=1)
            outputs[name].append(values.flatten(2).transpose(1, 2))
    return torch.cat(outputs["cate"], 1), torch.cat(outputs["kernel"], 1)


def mask_features(state: State, levels: list[Tensor]) -> Tensor:
    total = torch.zeros(())
    for level in range(4):
        features = with_coordinates(levels[3]) if level == 3 else levels[level]
        for number in range(max(level, 1)):
            name = f"mask_head.convs_all_levels.{level}.conv{number}"
            features = group_block(state, f"{name}.0", f"{name}.1", features)
            if level:
                height, width = features.shape[-2:]
                features = resized(features, (2 * height, 2 * width))
        total = total + features
    return group_block(state, "mask_head.conv_pred.0", "mask_head.conv_pred.1", total)
