"""The Triton upsampling against its definition: bits, boxes and areas."""

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
from unisolo.ops.boxes import masks_to_boxes
from unisolo.ops.masks import UpsampledMasks, resize_to_original, unpack_bits, upsample_masks

Frames = dict[str, tuple[int, int]]


def frames(padded: tuple[int, int], valid: tuple[int, int], orig: tuple[int, int]) -> Frames:
    return {"padded_size": padded, "input_size": valid, "orig_size": orig}


def upsampled(mask_probs: Tensor, sizes: Frames, **settings: Any) -> UpsampledMasks:
    with use_kernels("triton"), poisoned_memory():
        return upsample_masks(mask_probs, **sizes, **settings)


def check(mask_probs: Tensor, sizes: Frames, threshold: float = 0.5) -> UpsampledMasks:
    """The definition's masks, but for pixels within rounding of the threshold; measures of ours."""
    ours = upsampled(mask_probs, sizes, threshold=threshold)
    soft = resize_to_original(mask_probs, **sizes)
    masks = unpack_bits(ours.packed, sizes["orig_size"][1])
    differing = masks != (soft > threshold)
    assert differing.sum() <= 1e-5 * soft.numel()
    assert ((soft[differing] - threshold).abs() < 1e-6).all()
    with use_kernels("torch"):
        theirs = upsample_masks(mask_probs, **sizes, threshold=threshold)
    for mine, expected in zip(ours, theirs, strict=True):
        assert (mine.dtype, mine.shape, mine.device) == (
            expected.dtype,
            expected.shape,
            expected.device,
        )
    assert torch.equal(ours.areas, masks.flatten(1).sum(1))
    assert torch.equal(ours.boxes, masks_to_boxes(masks))
    # The bits past the width are 0, so that whole bytes can be counted.
    assert torch.equal(unpack_bits(ours.packed, 8 * ours.packed.shape[2]).flatten(1).sum(1),
                       ours.areas)  # fmt: skip
    return ours


FOUR_TIMES = [
    (1, (1, 1), (1, 1), torch.float32),
    (2, (5, 7), (20, 28), torch.float16),
    (1, (5, 7), (17, 25), torch.float32),
    (1, (10, 140), (38, 557), torch.float32),  # more than one tile each way
    (1, (3, 9), (9, 33), torch.bfloat16),
    (1, (19, 5), (75, 20), torch.float32),  # more rows than one program has
]
ANY_SIZE = [
    ((5, 7), frames((20, 28), (17, 25), (11, 40))),
    ((5, 7), frames((20, 28), (17, 25), (9, 3))),
    ((5, 7), frames((10, 14), (9, 13), (9, 13))),  # one resize, not by four
    ((9, 9), frames((5, 5), (5, 5), (7, 7))),  # a frame smaller than the map
    ((1, 1), frames((4, 4), (1, 1), (1, 1))),
    ((1, 30), frames((4, 120), (3, 110), (3, 141))),  # more than one program each way
    ((6, 3), frames((24, 12), (22, 11), (35, 9))),
    ((30, 150), frames((120, 600), (120, 600), (5, 9))),  # windows larger than they are read in
]


@pytest.mark.parametrize(("count", "low", "orig", "dtype"), FOUR_TIMES)
def test_four_times_as_large(
    count: int,
    low: tuple[int, int],
    orig: tuple[int, int],
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    mask_probs = torch.rand(count, *low).to(device, dtype)
    check(mask_probs, frames((4 * low[0], 4 * low[1]), orig, orig))


@pytest.mark.parametrize(("low", "sizes"), ANY_SIZE)
def test_any_pair_of_resizes(low: tuple[int, int], sizes: Frames, device: torch.device) -> None:
    check(torch.rand(1, *low).to(device), sizes, threshold=0.4)


@settings(max_examples=5)
@given(
    low=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    padded=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    share=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    orig=st.tuples(st.integers(1, 20), st.integers(1, 40)),
    same=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    threshold=st.sampled_from([0.0, 0.3, 0.5, 0.9]),
    seed=st.integers(0, 10**6),
)
def test_random_frames(
    low: tuple[int, int],
    padded: tuple[int, int],
    share: tuple[float, float],
    orig: tuple[int, int],
    same: bool,
    dtype: torch.dtype,
    threshold: float,
    seed: int,
    device: torch.device,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    mask_probs = torch.rand(2, *low, generator=generator).to(device, dtype)
    valid = tuple(max(1, int(part * side)) for part, side in zip(share, padded, strict=True))
    check(
        mask_probs,
        {"padded_size": padded, "input_size": valid, "orig_size": valid if same else orig},  # type: ignore[dict-item]
        threshold=threshold,
    )


def test_no_masks(device: torch.device) -> None:
    masks = check(torch.rand(0, 3, 4).to(device), frames((12, 16), (12, 16), (5, 9)))
    assert masks.packed.shape == (0, 5, 2)


@pytest.mark.parametrize("orig", [(12, 20), (7, 27)])
def test_a_plateau_at_the_threshold_is_outside(orig: tuple[int, int], device: torch.device) -> None:
    # Dead features give logits of exactly 0, that is 0.5: no weight may round it upwards.
    mask_probs = torch.full((3, 3, 5), 0.5, device=device)
    mask_probs[1, 1, 2] = 0.9
    mask_probs[2] = 0.5001
    masks = check(mask_probs, frames((12, 20), (12, 20), orig))
    assert masks.areas[0] == 0 and masks.boxes[0].tolist() == [0, 0, 0, 0]
    assert 0 < masks.areas[1] < orig[0] * orig[1] == masks.areas[2]


@pytest.mark.parametrize("orig", [(40, 72), (11, 31)])
def test_small_masks_in_large_maps(orig: tuple[int, int], device: torch.device) -> None:
    mask_probs = torch.zeros(3, 10, 18, device=device)
    mask_probs[0, 0, 0] = mask_probs[0, 9, 17] = mask_probs[1, 4, 8] = 1
    mask_probs[2, :, 3] = mask_probs[2, 7] = 0.8
    check(mask_probs, frames((40, 72), (40, 72), orig))


def test_any_strides(device: torch.device) -> None:
    # Pixels lie apart, masks are the fastest dimension.
    mask_probs = torch.rand(3, 9, 4).to(device).permute(2, 0, 1)[::2]
    check(mask_probs, frames((12, 36), (12, 36), (12, 36)))
    mask_probs = torch.rand(1, 6, 18).to(device)[:, ::2, 1::2]
    check(mask_probs, frames((12, 36), (12, 36), (7, 31)))


@pytest.mark.parametrize("orig", [(12, 36), (5, 31)])
def test_equal_between_runs(orig: tuple[int, int], device: torch.device) -> None:
    mask_probs = torch.rand(1, 3, 9).to(device)
    sizes = frames((12, 36), (12, 36), orig)
    first, second = upsampled(mask_probs, sizes), upsampled(mask_probs, sizes)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_wrong_frames_are_named(device: torch.device) -> None:
    with pytest.raises(ValueError, match=r"inside padded_size \(8, 8\)"):
        upsampled(torch.rand(1, 2, 2).to(device), frames((8, 8), (9, 8), (4, 4)))
    with pytest.raises(ValueError, match=r"\[K, h, w\].*int64"):
        upsampled(torch.ones(1, 2, 2, dtype=torch.int64).to(device), frames((8, 8), (8, 8), (4, 4)))


def compilations(dtype: str) -> list[Kernel]:
    module = "unisolo.ops.kernels.upsample"
    sizes = ("low_height", "low_width", "height", "width", "map_stride", "row_stride", "tiles_x")
    shared = {
        "maps": f"*{dtype}:16",
        "packed": "*u8:16",
        "measures": "*i32:16",
        "threshold": "fp32",
        **dict.fromkeys(sizes, "i32"),
        "WINDOW_ROWS": 4,
    }
    fast = {**shared, "ROWS": 2, "TURNS": 8, "BYTES": 64}
    steps = ("padded_step_y", "padded_step_x", "original_step_y", "original_step_x")
    any_size = {
        **shared,
        **dict.fromkeys(("input_height", "input_width"), "i32"),
        **dict.fromkeys(steps, "fp32"),
        "ROWS": 2,
        "TURNS": 16,
        "BYTES": 16,
        "WINDOW_COLUMNS": 64,
    }
    joined = {"measures": "*i32:16", "boxes": "*fp32:16", "areas": "*i64:16", "num_tiles": "i32"}
    kernels = [Kernel("unisolo.ops.kernels.mask_tiles", "join_measures", {**joined, "BLOCK": 256})]
    for stride in (1, "i32"):
        place = {"column_stride": stride}
        kernels.append(Kernel(module, "_four_times", {**fast, **place}))
        for twice in (True, False):
            arguments = {**any_size, **place, "TWICE": twice}
            kernels.append(Kernel(module, "_any_size", arguments))
    return kernels


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_compiles_without_spills(dtype: str, capability: int) -> None:
    pytest.importorskip("triton")
    for made in compile_kernels(compilations(dtype), capability):
        assert made.registers <= 80, made.name  # six programs at a time
        assert made.spilled == 0, made.name


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("orig", [(800, 1333), (480, 640)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_full_size_on_a_gpu_in_a_graph_and_without_a_wait(
    orig: tuple[int, int], dtype: torch.dtype
) -> None:
    coarse = torch.rand(100, 12, 20, device="cuda")
    mask_probs = torch.nn.functional.interpolate(coarse[None], (200, 336), mode="bilinear")[0]
    mask_probs = mask_probs.to(dtype)
    sizes = frames((800, 1344), (800, 1333), orig)
    expected = check(mask_probs, sizes)
    with use_kernels("triton"):
        torch.cuda.set_sync_debug_mode("error")
        try:
            upsample_masks(mask_probs, **sizes)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            replayed = upsample_masks(mask_probs, **sizes)
    for tensor in replayed:
        tensor.zero_()
    graph.replay()
    for found, wanted in zip(replayed, expected, strict=True):
        assert torch.equal(found, wanted)
