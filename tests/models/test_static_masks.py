from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from assign_twin import make_target, rectangles
from tiny_model import lively_model, tiny_model
from torch import Tensor, nn

from unisolo.checkpoint import load_checkpoint, save_model
from unisolo.export.graph import ExportGraph
from unisolo.losses.core import solo_losses
from unisolo.models import MaskHead, SeparateMaskHead, SoloHead
from unisolo.models.static_masks import StaticKernels
from unisolo.models.unisolo import UniSolo

SIZES = (5, 4, 3, 2, 1)
SOLO_V1 = ("model.mask_branch=static", "model.mask_features=separate")
COMBINATIONS = [
    SOLO_V1,
    ("model.mask_branch=static",),
    ("model.mask_features=separate",),
    ("model.coordinates=false",),
    (*SOLO_V1, "model.coordinates=false", "model.head_convs=2", "model.head_norm=batch"),
]


def make_pyramid(height: int = 64, width: int = 96, batch: int = 2) -> list[Tensor]:
    return [
        torch.randn(batch, 4, -(-height // stride), -(-width // stride))
        for stride in (4, 8, 16, 32, 64)
    ]


def make_images(batch: int = 2, size: tuple[int, int] = (64, 96)) -> Tensor:
    return torch.randint(0, 256, (batch, 3, *size), dtype=torch.uint8)


def with_positions(features: Tensor) -> Tensor:
    batch, _, height, width = features.shape
    x = torch.tensor([-1 + 2 * i / (width - 1) for i in range(width)]).expand(height, width)
    y = torch.tensor([-1 + 2 * i / (height - 1) for i in range(height)])[:, None]
    planes = torch.stack([x, y.expand(height, width)])
    return torch.cat([features, planes.expand(batch, 2, height, width)], dim=1)


def level_maps(pyramid: list[Tensor]) -> list[Tensor]:
    p2, p3, p4, p5, p6 = pyramid
    mean = p2.unflatten(2, (-1, 2)).unflatten(4, (-1, 2)).mean(dim=(3, 5))
    return [mean, p3, p4, p5, F.interpolate(p6, size=p5.shape[-2:], mode="bilinear")]


# SOLOv1


@pytest.mark.parametrize("coordinates", [True, False])
def test_equals_solov1s_branch_step_by_step(coordinates: bool) -> None:
    """Convolutions, x 2, and then a 1 x 1 convolution of S * S channels with a bias, per level."""
    head = SeparateMaskHead(4, 6, 5, num_convs=2, coordinates=coordinates)
    static = StaticKernels(sum(s * s for s in SIZES), 5)
    for parameter in [*head.parameters(), *static.parameters()]:
        nn.init.normal_(parameter, std=0.5)
    pyramid = make_pyramid()
    features, _ = head(pyramid)
    kernels = static(2)

    start = 0
    for inputs, size, ours in zip(level_maps(pyramid), SIZES, features, strict=True):
        if coordinates:
            inputs = with_positions(inputs)
        for block in head.convs:
            inputs = F.conv2d(inputs, block.conv.weight, padding=1)
            groups = inputs.shape[1]
            inputs = F.group_norm(inputs, groups, block.norm.weight, block.norm.bias, 1e-5).relu()
        inputs = F.interpolate(inputs, scale_factor=2, mode="bilinear", align_corners=False)
        last = nn.Conv2d(5, size * size, 1)
        with torch.no_grad():
            last.weight.copy_(static.weight[start : start + size * size, :, None, None])
            last.bias.copy_(static.bias[start : start + size * size])
        ones = torch.ones(2, 1, *ours.shape[-2:])
        of_level = kernels[:, start : start + size * size]
        masks = torch.einsum("ble,behw->blhw", of_level, torch.cat([ours, ones], dim=1))
        torch.testing.assert_close(masks, last(inputs), rtol=1e-3, atol=1e-3)
        start += size * size


def test_outputs_of_a_model_are_kernels_with_biases_and_features_with_ones() -> None:
    model = lively_model(*SOLO_V1).eval()
    nn.init.normal_(model.solo_head.static_kernels.bias)
    with torch.no_grad():
        outputs = model(make_images(2, (96, 160)))
    assert outputs.kernels.shape == (2, model.grid.num_cells, 17)
    assert torch.equal(outputs.kernels[0], outputs.kernels[1])
    assert torch.equal(outputs.kernels[0, :, :16], model.solo_head.static_kernels.weight)
    assert torch.equal(outputs.kernels[0, :, 16], model.solo_head.static_kernels.bias)
    shapes = [tuple(level.shape) for level in outputs.level_features]
    sides = ((24, 40), (24, 40), (12, 20), (6, 10), (6, 10))
    assert shapes == [(2, 17, *side) for side in sides]
    for level in outputs.level_features:
        assert (level[:, 16] == 1).all() and (level[:, :16] >= 0).all()
    assert outputs.level_features[0] is outputs.mask_features


def test_static_kernels_start_with_empty_masks_and_small_weights() -> None:
    static = StaticKernels(400, 64)
    assert 0.0095 < static.weight.std() < 0.0105
    torch.testing.assert_close(static.bias.sigmoid(), torch.full((400,), 0.01))


def test_a_static_head_has_no_kernel_branch() -> None:
    arguments = {"channels": 8, "num_convs": 1, "kernel_channels": 6, "grid_sizes": SIZES}
    head = SoloHead(4, 3, mask_branch="static", **arguments)
    assert not [name for name, _ in head.named_parameters() if name.startswith("kernel")]
    logits, kernels = head(make_pyramid())
    assert logits.shape == (2, 55, 3) and kernels.shape == (2, 55, 7)


def test_a_canvas_gives_what_the_grids_give_one_by_one() -> None:
    for options in ({"mask_branch": "static"}, {"coordinates": False}):
        head = SoloHead(
            4, 3, channels=8, num_convs=2, kernel_channels=6, grid_sizes=SIZES, **options
        ).eval()
        for parameter in head.parameters():
            nn.init.normal_(parameter, std=0.5)
        levels = [torch.randn(2, 4, size, size) for size in SIZES]
        with torch.no_grad():
            together, apart = head._on_canvas(levels), head._one_by_one(levels)
        for ours, theirs in zip(together, apart, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


# Features of levels


def test_the_trunk_is_the_sum_of_all_levels_at_stride_4() -> None:
    head = SeparateMaskHead(4, 6, 5, num_convs=1, trunk=True)
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.5)
    features, trunk = head(make_pyramid())
    total = features[0] + features[1]
    for level, factor in zip(features[2:], (2, 4, 4), strict=True):
        total = total + F.interpolate(level, scale_factor=factor, mode="bilinear")
    torch.testing.assert_close(trunk, total, rtol=1e-5, atol=1e-5)


def test_no_trunk_is_made_where_nobody_reads_it() -> None:
    assert SeparateMaskHead(4, 6, 5, num_convs=1)(make_pyramid())[1] is None
    assert not tiny_model(*SOLO_V1, "task=instance").mask_head._trunk
    assert tiny_model(*SOLO_V1, "task=panoptic").mask_head._trunk


@pytest.mark.parametrize("size", [(32, 32), (64, 96), (32, 160)])
def test_shapes(size: tuple[int, int]) -> None:
    features, _ = SeparateMaskHead(4, 6, 5, num_convs=2)(make_pyramid(*size))
    strides = [size[0] // level.shape[-2] for level in features]
    assert strides == [size[1] // level.shape[-1] for level in features] == [4, 4, 8, 16, 16]
    assert all(level.shape[:2] == (2, 5) and (level >= 0).all() for level in features)


# Positions


def spread_inside(values: Tensor) -> float:
    """How much maps [C, h, w] vary beyond the reach of zero padding."""
    inner = values[:, 3:-3, 3:-3]
    return float((inner - inner[:, :1, :1]).abs().amax())


@pytest.mark.parametrize("coordinates", [True, False])
def test_only_coordinates_tell_equal_surroundings_apart(coordinates: bool) -> None:
    constant = [torch.ones_like(level) for level in make_pyramid(512, 512, batch=1)]
    head = SoloHead(
        4, 3, channels=8, num_convs=1, kernel_channels=6, grid_sizes=(9,) * 5,
        coordinates=coordinates,
    )  # fmt: skip
    unified = MaskHead(4, 6, 5, coordinates=coordinates)
    separate = SeparateMaskHead(4, 6, 5, num_convs=1, coordinates=coordinates)
    for parameter in [*head.parameters(), *unified.parameters(), *separate.parameters()]:
        nn.init.normal_(parameter, std=0.5)
    with torch.no_grad():
        maps = [
            head(constant)[1][0, :81].T.reshape(-1, 9, 9),
            F.avg_pool2d(unified(constant)[0][0], 8)[:, 2:-2, 2:-2],
            F.avg_pool2d(separate(constant)[0][0][0], 8),
        ]
    for values in maps:
        assert (spread_inside(values) > 1e-2) == coordinates


def test_without_coordinates_two_input_channels_fewer() -> None:
    with_them, without = tiny_model(), tiny_model("model.coordinates=false")
    for name, parameter in with_them.named_parameters():
        difference = parameter.numel() - without.get_parameter(name).numel()
        first = name in ("solo_head.kernel_convs.0.conv.weight", "mask_head.levels.3.0.conv.weight")
        assert difference == (2 * 9 * 16 if first else 0), name


# Whole models


def test_options_are_off_by_default() -> None:
    model = tiny_model()
    assert isinstance(model.mask_head, MaskHead) and model.solo_head.static_kernels is None
    outputs = model(make_images())
    assert not outputs.level_features and outputs.extras.keys() == {"stuff_logits"}


@pytest.mark.parametrize("options", COMBINATIONS)
def test_every_parameter_learns(options: tuple[str, ...]) -> None:
    model: UniSolo = tiny_model(*options).train()
    outputs = model(make_images())
    parts = [*outputs[:3], *outputs.extras.values()]
    sum(part.float().square().mean() for part in parts).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("options", COMBINATIONS[:3])
def test_a_checkpoint_brings_the_same_model_back(options: tuple[str, ...], tmp_path: Path) -> None:
    model = lively_model(*options)
    save_model(model, tmp_path / "model.safetensors")
    again = load_checkpoint(tmp_path / "model.safetensors").eval()
    images = make_images()
    with torch.no_grad():
        first, second = model(images), again(images)
    for one, other in zip(first[:3], second[:3], strict=True):
        assert torch.equal(one, other)
    assert first.extras.keys() == second.extras.keys()
    assert all(torch.equal(first.extras[name], second.extras[name]) for name in first.extras)


def test_half_precision_autocast_runs() -> None:
    model = lively_model(*SOLO_V1)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        outputs = model(make_images())
    assert all(level.isfinite().all() for level in outputs.level_features)


@pytest.mark.slow
def test_exports_with_free_sizes() -> None:
    model = lively_model(*SOLO_V1, "task=panoptic")
    nn.init.zeros_(model.solo_head.static_kernels.bias)
    graph = ExportGraph(model, "panoptic", "stride4", model.config.inference).eval()
    batch, rows, columns = (torch.export.Dim(name, min=1, max=64) for name in ("b", "h", "w"))
    shapes = ({0: batch, 2: 32 * rows, 3: 32 * columns}, {0: batch})
    inputs = (make_images(2, (128, 192)), torch.tensor([[128, 192], [120, 180]]))
    program = torch.export.export(graph, inputs, dynamic_shapes=shapes, strict=False).module()
    for size, valid in (((128, 192), [[128, 192]]), ((192, 128), [[192, 128]] * 3)):
        images, sizes = make_images(len(valid), size), torch.tensor(valid)
        with torch.no_grad():
            found = dict(zip(graph.names, program(images, sizes), strict=True))
            expected = dict(zip(graph.names, graph(images, sizes), strict=True))
        assert (found["count"] > 10).all()
        torch.testing.assert_close(found, expected)


@pytest.mark.slow
def test_static_masks_are_learned() -> None:
    """Two objects of one colour apart: which cell draws which can only be told by position."""
    model = tiny_model(*SOLO_V1, "task=instance").train()
    images = torch.zeros(1, 3, 128, 192, dtype=torch.uint8)
    boxes = [(16, 24, 80, 104), (112, 24, 176, 104)]
    for x1, y1, x2, y2 in boxes:
        images[..., y1:y2, x1:x2] = 255
    target = make_target(rectangles((128, 192), boxes), [0, 0])
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    losses = []
    for _ in range(80):
        loss = solo_losses(model(images), [target], model.grid)["loss_mask"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    # Cells that drew both objects would lose 1 - 2 / 3.
    assert losses[0] > 0.9 and losses[-1] < 0.25, losses[-1]


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="num_convs must be at least 1, got 0"):
        SeparateMaskHead(4, num_convs=0)
    with pytest.raises(ValueError, match="mask_branch must be 'dynamic' or 'static'"):
        SoloHead(4, 3, mask_branch="both")
