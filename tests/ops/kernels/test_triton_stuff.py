"""The Triton stuff map against its definition."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from compiling import Kernel, compile_kernels
from hypothesis import given, settings
from hypothesis import strategies as st
from poisoned import poisoned_memory
from torch import Tensor

from unisolo.ops.backend import use_kernels
from unisolo.ops.masks import resize_to_original
from unisolo.ops.panoptic import segment_stuff

Frames = dict[str, tuple[int, int]]


def frames(padded: tuple[int, int], valid: tuple[int, int], orig: tuple[int, int]) -> Frames:
    return {"padded_size": padded, "input_size": valid, "orig_size": orig}


def check(logits: Tensor, sizes: Frames) -> Tensor:
    """The largest resized logit everywhere, but where two are equal within rounding."""
    with use_kernels("triton"), poisoned_memory():
        index = segment_stuff(logits, **sizes)
    assert index.dtype == torch.int16
    assert index.shape == sizes["orig_size"]
    resized = resize_to_original(logits, **sizes)
    expected = resized.argmax(0)
    won = resized.gather(0, index.long()[None])[0]
    scale = logits.float().abs().max()
    assert (resized.amax(0) - won <= 2e-6 * scale).all()
    assert (index != expected).sum() <= 1e-5 * index.numel()
    return index


@pytest.mark.parametrize(
    ("shape", "sizes"),
    [
        ((3, 5, 7), frames((20, 28), (20, 28), (20, 28))),
        ((4, 5, 7), frames((20, 28), (17, 25), (9, 40))),
        ((1, 1, 1), frames((4, 4), (1, 1), (1, 1))),
        ((2, 9, 9), frames((5, 5), (5, 5), (3, 7))),  # a frame smaller than the map
        ((3, 4, 50), frames((16, 200), (15, 190), (5, 150))),  # more than one tile each way
        ((3, 30, 90), frames((120, 360), (120, 360), (2, 3))),  # windows read in parts
    ],
)
def test_any_pair_of_resizes(
    shape: tuple[int, int, int], sizes: Frames, device: torch.device
) -> None:
    check(torch.randn(shape).to(device), sizes)


@settings(max_examples=5)
@given(
    channels=st.integers(1, 6),
    low=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    padded=st.tuples(st.integers(1, 30), st.integers(1, 40)),
    orig=st.tuples(st.integers(1, 12), st.integers(1, 40)),
    regions=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    power=st.integers(-3, 3),
    seed=st.integers(0, 10**6),
)
def test_random_pictures(
    channels: int,
    low: tuple[int, int],
    padded: tuple[int, int],
    orig: tuple[int, int],
    regions: bool,
    dtype: torch.dtype,
    power: int,
    seed: int,
    device: torch.device,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(channels, *low, generator=generator)
    if regions:  # most channels can win nowhere in most tiles
        owner = torch.randint(0, channels, (low[0], 1), generator=generator)
        logits += 9 * (torch.arange(channels)[:, None, None] == owner)
    check((logits * 10.0**power).to(device, dtype), frames(padded, padded, orig))


@pytest.mark.parametrize("orig", [(8, 12), (3, 5)])
def test_equal_logits_go_to_the_smaller_index(orig: tuple[int, int], device: torch.device) -> None:
    logits = torch.full((6, 2, 3), -3.7)
    logits[[1, 2, 5]] = torch.rand(2, 3)
    index = check(logits.to(device), frames((8, 12), (8, 12), orig))
    assert (index == 1).all()
    flat = check(torch.full((4, 2, 3), -0.3, device=device), frames((8, 12), (8, 12), orig))
    assert not flat.any()


def test_a_third_may_win_between_two(device: torch.device) -> None:
    # Nowhere the largest logit, yet the largest mean: a shortcut must not leave it out.
    rows = torch.tensor([(1, 1, -9), (-9, 1, 1), (0.9, 0.9, 0.9)], device=device)
    index = check(rows[:, :, None], frames((12, 1), (12, 1), (3, 1)))
    assert index[1, 0] == 2


def test_any_strides_and_gradients(device: torch.device) -> None:
    logits = torch.randn(5, 7, 4, requires_grad=True).to(device)
    check(logits.permute(2, 0, 1), frames((20, 28), (20, 28), (20, 28)))


def compilations(dtype: str) -> list[Kernel]:
    sizes = ("low_height", "low_width", "input_height", "input_width", "height", "width")
    steps = ("padded_step_y", "padded_step_x", "original_step_y", "original_step_x")
    arguments: dict[str, Any] = {
        "logits": f"*{dtype}:16",
        "index": "*i16:16",
        "channels": "i32",
        **dict.fromkeys((*sizes, "map_stride", "row_stride"), "i32"),
        **dict.fromkeys(steps, "fp32"),
        "ROWS": 4,
        "COLUMNS": 128,
        "WINDOW_ROWS": 4,
        "WINDOW_COLUMNS": 64,
    }
    return [
        Kernel(
            "unisolo.ops.kernels.stuff",
            "_best_channel",
            {**arguments, "column_stride": stride, "TWICE": twice},
        )
        for stride in (1, "i32")
        for twice in (False, True)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_compiles_without_spills(dtype: str, capability: int) -> None:
    pytest.importorskip("triton")
    for made in compile_kernels(compilations(dtype), capability):
        assert made.spilled == 0, made.name
        assert made.registers <= 128, made.name


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("orig", [(800, 1333), (480, 640)])
def test_full_size_on_a_gpu_in_a_graph_and_without_a_wait(orig: tuple[int, int]) -> None:
    logits = torch.randn(54, 12, 20, device="cuda")
    logits = torch.nn.functional.interpolate(logits[None], (200, 336), mode="bilinear")[0]
    sizes = frames((800, 1344), (800, 1333), orig)
    expected = check(logits, sizes)
    with use_kernels("triton"):
        torch.cuda.set_sync_debug_mode("error")
        try:
            segment_stuff(logits, **sizes)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            replayed = segment_stuff(logits, **sizes)
    replayed.zero_()
    graph.replay()
    assert torch.equal(replayed, expected)
