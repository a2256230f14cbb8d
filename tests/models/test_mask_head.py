from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unisolo.models import MaskHead, StuffHead


def make_pyramid(height: int = 64, width: int = 96, batch: int = 2) -> list[Tensor]:
    return [
        torch.randn(batch, 4, -(-height // stride), -(-width // stride))
        for stride in (4, 8, 16, 32, 64)
    ]


def test_equals_a_step_by_step_twin() -> None:
    head = MaskHead(4, mid_channels=6, out_channels=5)
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.5)
    pyramid = make_pyramid()

    def block(inputs: Tensor, name: str) -> Tensor:
        weight = head.get_parameter(f"{name}.conv.weight")
        inputs = F.conv2d(inputs, weight, padding=weight.shape[-1] // 2)
        norm = head.get_submodule(f"{name}.norm")
        return F.group_norm(inputs, weight.shape[0], norm.weight, norm.bias, 1e-5).relu()

    def doubled(inputs: Tensor) -> Tensor:
        return F.interpolate(inputs, scale_factor=2, mode="bilinear", align_corners=False)

    total = block(pyramid[0], "levels.0.0")
    for level in (1, 2, 3):
        inputs = pyramid[level]
        if level == 3:
            height, width = inputs.shape[-2:]
            y, x = torch.meshgrid(
                torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij"
            )
            inputs = torch.cat([inputs, torch.stack([x, y]).expand(2, 2, height, width)], dim=1)
        for index in range(level):
            inputs = doubled(block(inputs, f"levels.{level}.{index}"))
        total = total + inputs
    mask_features, trunk = head(pyramid)
    torch.testing.assert_close(trunk, total, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(mask_features, block(total, "out"), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [(32, 32), (64, 96), (32, 160)])
def test_shapes_and_sign(size: tuple[int, int]) -> None:
    mask_features, trunk = MaskHead(4, mid_channels=6, out_channels=5)(make_pyramid(*size))
    assert mask_features.shape == (2, 5, size[0] // 4, size[1] // 4)
    assert trunk.shape == (2, 6, size[0] // 4, size[1] // 4)
    assert (mask_features >= 0).all()


def test_coarsest_level_is_not_read() -> None:
    head = MaskHead(4, mid_channels=6, out_channels=5)
    pyramid = make_pyramid()
    assert torch.equal(head(pyramid)[0], head(pyramid[:4])[0])


def test_has_the_reference_number_of_parameters() -> None:
    # Convolutions 3 x 3: one from each level's first map, three more; norms; the projection.
    first = 9 * 128 * (256 + 256 + 256 + 258)
    rest = 9 * 128 * 128 * 3 + 2 * 128 * 7
    out = 128 * 256 + 2 * 256
    head = MaskHead(256)
    assert sum(p.numel() for p in head.parameters()) == first + rest + out
    assert 0.0099 < head.levels[2][1].conv.weight.std() < 0.0101


def test_stuff_head_adds_one_channel_for_any_thing() -> None:
    pyramid = make_pyramid()
    _, trunk = MaskHead(4, mid_channels=6, out_channels=5)(pyramid)
    head = StuffHead(6, channels=8, num_stuff=3)
    logits = head(pyramid, trunk)
    assert logits.shape == (2, 4, 16, 24)
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in head.parameters())
