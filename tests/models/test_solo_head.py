from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from unisolo.models import SoloHead
from unisolo.models.layers import append_coordinates, group_norm
from unisolo.models.solo_head import place_grids

SIZES = (5, 4, 3, 2, 1)


def make_head(**options) -> SoloHead:
    arguments = {"channels": 8, "num_convs": 2, "kernel_channels": 6, "grid_sizes": SIZES}
    return SoloHead(4, 3, **{**arguments, **options})


def make_pyramid(height: int = 64, width: int = 96, batch: int = 2) -> list[Tensor]:
    return [
        torch.randn(batch, 4, -(-height // stride), -(-width // stride))
        for stride in (4, 8, 16, 32, 64)
    ]


@pytest.mark.parametrize("size", [(32, 32), (64, 96), (32, 160)])
def test_shapes(size: tuple[int, int]) -> None:
    logits, kernels = make_head()(make_pyramid(*size))
    cells = sum(s * s for s in SIZES)
    assert logits.shape == (2, cells, 3)
    assert kernels.shape == (2, cells, 6)


def test_equals_a_step_by_step_twin() -> None:
    head = make_head()
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.5)
    pyramid = make_pyramid()
    p2, p3, p4, p5, p6 = pyramid
    mean = p2.unflatten(2, (-1, 2)).unflatten(4, (-1, 2)).mean(dim=(3, 5))
    levels = [mean, p3, p4, p5, F.interpolate(p6, size=p5.shape[-2:], mode="bilinear")]
    logits, kernels = head(pyramid)

    start = 0
    for features, size in zip(levels, SIZES, strict=True):
        height, width = features.shape[-2:]
        x = torch.tensor([-1 + 2 * i / (width - 1) for i in range(width)])
        y = torch.tensor([-1 + 2 * i / (height - 1) for i in range(height)])
        planes = torch.stack([x.expand(height, width), y[:, None].expand(height, width)])
        stacked = torch.cat([features, planes.expand(2, 2, height, width)], dim=1)
        grid = F.interpolate(stacked, size=(size, size), mode="bilinear")
        for tower, out, values, inputs in (
            (head.category_convs, head.category_out, logits, grid[:, :4]),
            (head.kernel_convs, head.kernel_out, kernels, grid),
        ):
            for block in tower:
                inputs = F.conv2d(inputs, block.conv.weight, padding=1)
                inputs = F.group_norm(inputs, 8, block.norm.weight, block.norm.bias, 1e-5).relu()
            expected = F.conv2d(inputs, out.weight, out.bias, padding=1)
            for row in range(size):
                for column in range(size):
                    cell = start + row * size + column
                    torch.testing.assert_close(
                        values[:, cell], expected[:, :, row, column], rtol=1e-4, atol=1e-5
                    )
        start += size * size


def test_only_kernels_know_where_they_are() -> None:
    head = make_head(grid_sizes=(9, 9, 9, 9, 9), num_convs=1)
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.5)
    constant = [torch.ones_like(level) for level in make_pyramid()]
    logits, kernels = (values[0, :81].view(9, 9, -1) for values in head(constant))
    inner = slice(3, 6)  # beyond the reach of the convolutions' zero padding
    spread = (logits[inner, inner] - logits[4, 4]).abs().amax()
    assert spread < 1e-5
    assert (kernels[inner, inner] - kernels[4, 4]).abs().amax() > 1e-2


def test_coordinates_reach_both_ends_exactly() -> None:
    features = torch.zeros(2, 3, 5, 7)
    x, y = append_coordinates(features)[1, 3:]
    assert (x[:, 0] == -1).all() and (x[:, -1] == 1).all()
    assert (y[0] == -1).all() and (y[-1] == 1).all()
    torch.testing.assert_close(x[0].diff(), torch.full((6,), 1 / 3))
    torch.testing.assert_close(y[:, 0].diff(), torch.full((4,), 1 / 2))
    assert append_coordinates(torch.zeros(1, 1, 1, 1, dtype=torch.bfloat16)).isfinite().all()


@pytest.mark.parametrize(
    ("channels", "groups"), [(512, 32), (256, 32), (32, 32), (48, 24), (40, 20), (7, 7), (37, 1)]
)
def test_group_norm_has_32_groups_or_the_largest_divisor_below(channels: int, groups: int) -> None:
    assert group_norm(channels).num_groups == groups


def test_starts_with_rare_objects_and_small_weights() -> None:
    head = make_head(channels=64)
    assert torch.allclose(head.category_out.bias.sigmoid(), torch.tensor(0.01), atol=1e-6)
    assert head.category_out.bias[0].item() == pytest.approx(-4.59512, abs=1e-5)
    assert not head.kernel_out.bias.any()
    for module in head.modules():
        if isinstance(module, nn.Conv2d):
            assert 0.009 < module.weight.std() < 0.011


@pytest.mark.parametrize("num_things", [1, 1203])
def test_any_number_of_categories(num_things: int) -> None:
    head = SoloHead(4, num_things, channels=8, num_convs=1, kernel_channels=2, grid_sizes=SIZES)
    assert head(make_pyramid())[0].shape[-1] == num_things


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="5 levels"):
        make_head(grid_sizes=(4, 3))
    with pytest.raises(ValueError, match="at least one thing category"):
        SoloHead(4, 0)


# All grids on one canvas


def test_the_default_grids_lie_on_a_small_canvas() -> None:
    places, size = place_grids((40, 36, 24, 16, 12))
    assert size == (40, 119)
    assert places == ((0, 0, 40), (0, 41, 36), (0, 78, 24), (0, 103, 16), (25, 78, 12))


@given(st.lists(st.integers(1, 12), min_size=1, max_size=6))
def test_grids_on_a_canvas_never_touch(sizes: list[int]) -> None:
    places, (height, width) = place_grids(sizes)
    assert [side for _, _, side in places] == sizes
    taken = torch.zeros(height + 2, width + 2)
    for row, column, side in places:
        assert row + side <= height and column + side <= width
        assert not taken[row : row + side + 2, column : column + side + 2].any()
        taken[row + 1 : row + side + 1, column + 1 : column + side + 1] = 1


def lively_head(**options) -> SoloHead:
    head = make_head(**options).eval()
    for module in head.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.5)
    return head


@pytest.mark.parametrize("norm", ["group", "batch"])
@pytest.mark.parametrize("last", [False, True])
def test_a_canvas_gives_what_the_grids_give_one_by_one(norm: str, last: bool) -> None:
    head = lively_head(norm=norm)
    levels = [torch.randn(2, 6, size, size) for size in SIZES]
    if last:
        levels = [level.contiguous(memory_format=torch.channels_last) for level in levels]
    with torch.no_grad():
        together, apart = head._on_canvas(levels), head._one_by_one(levels)
    for ours, theirs in zip(together, apart, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
