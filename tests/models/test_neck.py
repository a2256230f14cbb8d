from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unisolo.models import FPN
from unisolo.models.neck import choose_sources

STANDARD = (4, 8, 16, 32)


def features(strides: tuple[int, ...], channels: int = 8, size=(64, 96)) -> list[Tensor]:
    return [
        torch.randn(2, channels, math.ceil(size[0] / s), math.ceil(size[1] / s)) for s in strides
    ]


def test_equals_a_plain_fpn_where_the_strides_are_standard() -> None:
    neck = FPN([8, 8, 8, 8], STANDARD, channels=6)
    c2, c3, c4, c5 = features(STANDARD)
    lateral = [
        F.conv2d(c, conv.weight, conv.bias)
        for c, conv in zip([c2, c3, c4, c5], neck.laterals, strict=True)
    ]
    for finer in (2, 1, 0):
        doubled = lateral[finer + 1].repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        lateral[finer] = lateral[finer] + doubled
    expected = [
        F.conv2d(level, conv.weight, conv.bias, padding=1)
        for level, conv in zip(lateral, neck.outputs, strict=True)
    ]
    expected.append(expected[3][:, :, ::2, ::2])
    for level, twin in zip(neck([c2, c3, c4, c5]), expected, strict=True):
        torch.testing.assert_close(level, twin)


@pytest.mark.parametrize(
    ("strides", "sources"),
    [
        ((4, 8, 16, 32), (0, 1, 2, 3)),
        ((16, 16, 16), (0, 1, 1, 2)),  # plain ViT: spread, deepest last
        ((16, 16, 16, 16), (0, 1, 2, 3)),
        ((16,), (0, 0, 0, 0)),
        ((8, 16, 32), (0, 0, 1, 2)),
        ((4, 8), (0, 1, 1, 1)),
        ((4, 8, 16, 32, 32), (0, 1, 2, 4)),  # two maps of one stride, one level: the deeper
        ((4, 16), (0, 0, 1, 1)),  # a tie at stride 8: the finer
        ((8, 8, 32), (0, 0, 1, 2)),  # stride 16 is a tie too
    ],
)
def test_levels_take_the_nearest_stride(strides: tuple[int, ...], sources: tuple[int, ...]) -> None:
    assert choose_sources(strides) == sources


@pytest.mark.parametrize("strides", [STANDARD, (16, 16, 16), (8, 16, 32), (4,), (32,), (4, 32)])
@pytest.mark.parametrize("norm", ["none", "group", "batch"])
def test_every_set_of_strides_gives_the_same_pyramid_shapes(
    strides: tuple[int, ...], norm: str
) -> None:
    neck = FPN([8] * len(strides), strides, channels=6, norm=norm)
    pyramid = neck(features(strides))
    assert [tuple(level.shape) for level in pyramid] == [
        (2, 6, math.ceil(64 / s), math.ceil(96 / s)) for s in (4, 8, 16, 32, 64)
    ]
    torch.cat([level.flatten() for level in pyramid]).sum().backward()
    assert all(parameter.grad is not None for parameter in neck.parameters())


def test_odd_sizes_follow_the_finer_map() -> None:
    neck = FPN([8] * 4, STANDARD, channels=6)
    pyramid = neck(features(STANDARD, size=(100, 75)))
    assert [tuple(level.shape[-2:]) for level in pyramid] == [
        (25, 19), (13, 10), (7, 5), (4, 3), (2, 2)
    ]  # fmt: skip


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_norm_follows_every_convolution_and_replaces_its_bias(norm: str) -> None:
    neck = FPN([8] * 4, STANDARD, channels=6, norm=norm)
    convs = [module for module in neck.modules() if isinstance(module, nn.Conv2d)]
    norms = [
        module for module in neck.modules() if isinstance(module, nn.GroupNorm | nn.BatchNorm2d)
    ]
    assert len(convs) == len(norms) == 8
    assert all(conv.bias is None for conv in convs)


def test_initialised_uniform_xavier_with_zero_bias() -> None:
    neck = FPN([64] * 4, STANDARD, channels=32)
    for conv in [*neck.laterals, *neck.outputs]:
        taps = conv.kernel_size[0] ** 2
        bound = math.sqrt(6 / (taps * (conv.in_channels + conv.out_channels)))
        assert 0.97 * bound < conv.weight.abs().max() <= bound
        assert not conv.bias.any()


@pytest.mark.parametrize(
    ("channels", "strides", "norm", "words"),
    [
        ([], (), "none", "at least one feature"),
        ([8, 8], (4,), "none", "one stride per feature"),
        ([8], (12,), "none", r"strides \[12\]"),
        ([8], (4,), "layer", "'none', 'group' or 'batch'"),
    ],
)
def test_wrong_arguments_are_refused(channels, strides, norm, words) -> None:
    with pytest.raises(ValueError, match=words):
        FPN(channels, strides, norm=norm)
