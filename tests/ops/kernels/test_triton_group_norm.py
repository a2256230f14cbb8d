"""The Triton group norm against its definition in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from compiling import Kernel, compile_calls, compile_kernels
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from unisolo.ops.backend import use_kernels
from unisolo.ops.group_norm import group_norm, group_norm_grids, keep_grids

EPS = 1e-5
GRIDS = ((0, 0, 5), (0, 6, 4), (6, 0, 3), (6, 6, 1))


def exact(features: Tensor, groups: int, weight: Tensor, bias: Tensor, relu: bool) -> Tensor:
    """The formula, in float64."""
    grouped = features.double().cpu().contiguous().unflatten(1, (groups, -1)).flatten(2)
    mean = grouped.mean(2, keepdim=True)
    variance = (grouped - mean).square().mean(2, keepdim=True)
    normed = ((grouped - mean) / (variance + EPS).sqrt()).reshape(features.shape)
    scaled = normed * weight.double().cpu()[:, None, None] + bias.double().cpu()[:, None, None]
    return scaled.relu() if relu else scaled


def inputs(
    shape: tuple[int, ...], device: torch.device, *, last: bool = False, mean: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(sum(shape))
    features = torch.randn(shape, generator=generator) + mean
    if last:
        features = features.contiguous(memory_format=torch.channels_last)
    weight, bias = torch.randn(2, shape[1], generator=generator)
    return features.to(device), weight.to(device), bias.to(device)


def poison(shape: tuple[int, ...], device: torch.device) -> None:
    """Leave NaN in the memory that the next tensors of this size get."""
    blocks = [torch.full(shape, torch.nan, device=device) for _ in range(4)]
    del blocks


@pytest.fixture(params=["one program per group", "chunks"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways on the same small maps; chunks of 32 to 128 pixels or fewer."""
    pytest.importorskip("triton")
    from unisolo.ops.kernels import group_norm as kernels

    if request.param == "chunks":
        monkeypatch.setattr(kernels, "ONE_PROGRAM", 0)
        monkeypatch.setattr(kernels, "PROGRAMS", 64)
        monkeypatch.setattr(kernels, "TILE", 128)
    return str(request.param)


def ours(*arguments: Any, **options: Any) -> Tensor:
    with torch.no_grad(), use_kernels("triton"):
        return group_norm(*arguments, **options)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(
    ("shape", "groups", "relu"),
    [
        ((2, 8, 5, 7), 4, True),
        ((1, 37, 3, 3), 1, False),
        ((3, 6, 1, 1), 6, False),  # one value per group: the bias is left
        ((1, 12, 9, 11), 4, True),  # three channels per group
        ((1, 66, 6, 5), 2, True),
    ],
)
def test_equals_the_formula(
    shape: tuple[int, ...], groups: int, relu: bool, last: bool, way: str, device: torch.device
) -> None:
    features, weight, bias = inputs(shape, device, last=last)
    poison(shape, device)
    result = ours(features, groups, weight, bias, EPS, relu=relu)
    expected = exact(features, groups, weight, bias, relu)
    torch.testing.assert_close(result.double().cpu(), expected, rtol=1e-5, atol=1e-5)
    assert result.stride() == features.stride()
    assert torch.equal(ours(features, groups, weight, bias, EPS, relu=relu), result)


@settings(
    deadline=None,
    max_examples=6,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    batch=st.integers(0, 3),
    groups=st.integers(1, 5),
    group=st.integers(1, 5),
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    last=st.booleans(),
)
def test_any_shape(
    batch: int,
    groups: int,
    group: int,
    height: int,
    width: int,
    last: bool,
    way: str,
    device: torch.device,
) -> None:
    features, weight, bias = inputs((batch, groups * group, height, width), device, last=last)
    result = ours(features, groups, weight, bias, EPS)
    assert result.shape == features.shape
    expected = exact(features, groups, weight, bias, False)
    torch.testing.assert_close(result.double().cpu(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once(dtype: torch.dtype, way: str, device: torch.device) -> None:
    features, weight, bias = inputs((2, 8, 9, 9), device)
    features = features.to(dtype)
    result = ours(features, 2, weight, bias, EPS, relu=True)
    assert result.dtype == dtype
    expected = exact(features, 2, weight, bias, True)
    # The interpreter cuts bfloat16 off where a GPU rounds.
    step = 2**-7 if dtype == torch.bfloat16 else 2**-11
    torch.testing.assert_close(result.double().cpu(), expected, rtol=step * 1.01, atol=1e-4)


def test_a_mean_far_from_zero_costs_no_digits(way: str, device: torch.device) -> None:
    features, weight, bias = inputs((1, 8, 13, 13), device, mean=1000.0)
    result = ours(features, 2, weight, bias, EPS)
    expected = exact(features, 2, weight, bias, False)
    # A value near 1000 is known to 3e-5, which is what is left of the difference.
    torch.testing.assert_close(result.double().cpu(), expected, rtol=1e-3, atol=1e-3)


def test_constant_maps_become_the_bias(way: str, device: torch.device) -> None:
    features, weight, bias = inputs((1, 8, 9, 9), device)
    result = ours(torch.full_like(features, 300.0), 2, weight, bias, EPS)
    torch.testing.assert_close(result, bias[:, None, None].expand(1, 8, 9, 9), rtol=0, atol=1e-2)


def test_nan_goes_through(way: str, device: torch.device) -> None:
    features, weight, bias = inputs((1, 4, 9, 9), device)
    features[0, 0, 0, 0] = torch.nan
    result = ours(features, 2, weight, bias, EPS, relu=True)
    assert result[0, :2].isnan().all() and not result[0, 2:].isnan().any()


def test_views_are_read_where_they_are(device: torch.device) -> None:
    whole, weight, bias = inputs((2, 8, 12, 14), device)
    part = whole[..., 1:10:2, 3:9]
    torch.testing.assert_close(
        ours(part, 4, weight, bias, EPS).double().cpu(), exact(part, 4, weight, bias, False)
    , rtol=1e-5, atol=1e-5)  # fmt: skip


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_grids_are_normalised_apart(last: bool, dtype: torch.dtype, device: torch.device) -> None:
    canvas, weight, bias = inputs((2, 8, 11, 13), device, last=last, mean=3.0)
    canvas = canvas.to(dtype)
    poison(canvas.shape, device)
    with torch.no_grad(), use_kernels("triton"):
        result = group_norm_grids(canvas, GRIDS, 4, weight, bias, EPS, relu=True)
    outside = result.clone()
    for row, column, side in GRIDS:
        place = (..., slice(row, row + side), slice(column, column + side))
        expected = exact(canvas[place], 4, weight, bias, True)
        torch.testing.assert_close(result[place].double().cpu(), expected, rtol=1e-3, atol=1e-3)
        outside[place] = 0
    assert not outside.any()
    with torch.no_grad(), use_kernels("torch"):
        twin = group_norm_grids(canvas, GRIDS, 4, weight, bias, EPS, relu=True)
    torch.testing.assert_close(result, twin, rtol=2e-3, atol=2e-3)


def test_keep_grids_clears_what_lies_between() -> None:
    canvas = torch.ones(1, 1, 11, 13)
    kept = keep_grids(canvas, GRIDS)
    assert kept.sum() == sum(side * side for _, _, side in GRIDS)
    assert canvas.all()


def test_gradients_take_the_definition() -> None:
    features, weight, bias = inputs((1, 8, 5, 5), torch.device("cpu"))
    weight.requires_grad_()
    with use_kernels("triton"):
        group_norm(features, 4, weight, bias, EPS, relu=True).sum().backward()
    assert weight.grad is not None


def _compilations(kind: str) -> list[Kernel]:
    module = "unisolo.ops.kernels.group_norm"
    half, number = f"*{kind}:16", "i32:16"
    vectors = {"weight": "*fp32:16", "bias": "*fp32:16", "eps": "fp32"}
    made = []
    for last in (False, True):
        stride_c, stride_p = (1, number) if last else (number, 1)
        blocks = {"BLOCK_C": 64, "BLOCK_P": 32} if last else {"BLOCK_C": 1, "BLOCK_P": 2048}
        sizes = {"channels": number, "pixels": number, "per_chunk": number, "stride_b": number,
                 "stride_c": stride_c, "stride_p": stride_p, **blocks}  # fmt: skip
        made.append(
            Kernel(module, "_moments_kernel", {"features": half, "moments": "*fp32:16", **sizes})
        )
        applied = {
            **sizes,
            "features": half,
            "result": half,
            "factors": "*fp32:16",
            "bias": "*fp32:16",
            "RELU": True,
        }
        made.append(Kernel(module, "_apply_kernel", applied))
        for whole in (False, True):
            arguments = {"features": half, "result": half, "table": half if whole else "*i32:16",
                         **vectors, "group": number, "height": "i32", "width": "i32",
                         "stride_b": number, "stride_c": stride_c, "stride_y": number,
                         "stride_x": stride_p, "WHOLE": whole, "RELU": True, "BLOCK_C": 16,
                         "BLOCK_P": 256 if whole else 512}  # fmt: skip
            made.append(Kernel(module, "_group_kernel", arguments, {"num_warps": 8}))
    tiny = {"group": 1, "height": 1, "width": 1, "stride_b": 1, "stride_c": 1, "stride_y": 1}
    one = {**arguments, **tiny, "BLOCK_C": 1, "BLOCK_P": 4096}  # 1 x 1 maps, one channel a group
    made.append(Kernel(module, "_group_kernel", one, {"num_warps": 8}))
    factors = {"moments": "*fp32:16", "factors": "*fp32:16", **vectors, "group": "i32",
               "chunks": "i32", "pixels": "i32", "per_chunk": number, "BLOCK_C": 4,
               "BLOCK": 64}  # fmt: skip
    return [*made, Kernel(module, "_factors_kernel", factors)]


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("kind", ["bf16", "fp16", "fp32"])
def test_compiles_without_spills(kind: str, capability: int) -> None:
    pytest.importorskip("triton")
    for made in compile_kernels(_compilations(kind), capability):
        assert made.spilled == 0, made.name
        assert made.registers <= 255, made.name


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_launches_are_bound_as_on_a_gpu(kind: str) -> None:
    program = f"""
from unisolo.ops.kernels.group_norm import group_norm, group_norm_grids
grids = ((0, 0, 40), (0, 41, 36), (0, 78, 24), (0, 103, 16), (25, 78, 12))
def run(shape, groups, grids=None):
    for order in (torch.contiguous_format, torch.channels_last):
        features = torch.empty(shape, dtype=torch.{kind}, memory_format=order)
        weight, bias = torch.empty(2, shape[1])
        if grids is None:
            group_norm(features, groups, weight, bias, 1e-5, relu=True)
        else:
            group_norm_grids(features, grids, groups, weight, bias, 1e-5, relu=True)
run((1, 128, 200, 336), 32)
run((8, 256, 200, 304), 32)
run((3, 37, 201, 301), 1)
run((1, 1, 400, 300), 1)
run((1, 512, 40, 119), 32, grids)
run((2, 4, 1, 1), 4, ((0, 0, 1),))
run((2, 4, 1, 1), 4)
run((1, 1, 1, 7), 1)
run((0, 128, 200, 336), 32)
"""
    large = ["_moments_kernel", "_factors_kernel", "_apply_kernel"]
    launched = [kernel.name for kernel in compile_calls(program)]
    assert launched == large * 8 + ["_group_kernel"] * 8


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("last", [False, True])
def test_full_size_on_a_gpu_and_in_a_graph(last: bool) -> None:
    device = torch.device("cuda")
    features, weight, bias = inputs((2, 128, 200, 336), device, last=last)
    features = features.bfloat16()
    result = ours(features, 32, weight, bias, EPS, relu=True)
    expected = exact(features, 32, weight, bias, True)
    torch.testing.assert_close(result.double().cpu(), expected, rtol=2**-8, atol=1e-3)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        replayed = ours(features, 32, weight, bias, EPS, relu=True)
    replayed.zero_()
    graph.replay()
    assert torch.equal(replayed, result)
