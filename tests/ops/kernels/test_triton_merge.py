"""The Triton panoptic merge: the same numbers as the definition, and as the reference's vectors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from compiling import Kernel, compile_kernels
from golden_tools import unpack
from hypothesis import given, settings
from hypothesis import strategies as st
from poisoned import poisoned_memory
from torch import Tensor

from unisolo.ops.backend import use_kernels
from unisolo.ops.masks import pack_bits
from unisolo.ops.panoptic import PanopticMerge, merge_panoptic


def check(
    masks: Tensor, scores: Tensor, stuff_index: Tensor | None, **settings: Any
) -> PanopticMerge:
    """Merge bool masks both ways; everything is equal."""
    arguments = (pack_bits(masks), masks.shape[2], scores, stuff_index)
    with use_kernels("torch"):
        expected = merge_panoptic(*arguments, **settings)
    with use_kernels("triton"), poisoned_memory():
        merged = merge_panoptic(*arguments, **settings)
    for name, found, wanted in zip(merged._fields, merged, expected, strict=True):
        assert found.dtype == wanted.dtype and found.device == wanted.device, name
        assert torch.equal(found, wanted), name
    return merged


def scene(
    seed: int, count: int, height: int, width: int, num_stuff: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes, copies, single pixels and empty masks; stuff in bands, with unknown values."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((count, height, width), bool)
    for mask in masks:
        kind = rng.integers(6)
        y, x = rng.integers(height), rng.integers(width)
        if kind < 3:
            mask[y : y + rng.integers(1, 1 + height), x : x + rng.integers(1, 1 + width)] = True
        elif kind == 3:
            mask[:] = masks[rng.integers(count)]
        elif kind == 4:
            mask[y, x] = True
    scores = np.sort(rng.integers(0, 9, count) / 8)[::-1].copy()
    stuff_index = rng.integers(-1, num_stuff + 2, (height, 1)) + rng.integers(0, 2, (1, width))
    return torch.from_numpy(masks), torch.from_numpy(scores).float(), torch.from_numpy(stuff_index)


@settings(max_examples=6)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(0, 9),
    height=st.integers(1, 24),
    width=st.integers(1, 40),
    num_stuff=st.integers(0, 4),
    dtype=st.sampled_from([torch.int64, torch.int32, torch.int16, torch.int8]),
    score_threshold=st.sampled_from([0.0, 0.25, 0.5]),
    overlap_threshold=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    stuff_area_threshold=st.sampled_from([0, 1, 5, 30]),
)
def test_random_scenes(
    seed: int,
    count: int,
    height: int,
    width: int,
    num_stuff: int,
    dtype: torch.dtype,
    score_threshold: float,
    overlap_threshold: float,
    stuff_area_threshold: int,
    device: torch.device,
) -> None:
    masks, scores, stuff_index = scene(seed, count, height, width, num_stuff)
    check(
        masks.to(device),
        scores.to(device),
        stuff_index.to(device, dtype),
        num_stuff=num_stuff,
        score_threshold=score_threshold,
        overlap_threshold=overlap_threshold,
        stuff_area_threshold=stuff_area_threshold,
    )


@pytest.mark.parametrize("height", [36, 37])  # whole words per mask, and not
def test_more_than_one_tile_and_turn_each_way(height: int, device: torch.device) -> None:
    masks, scores, stuff_index = scene(3, 4, height, 1045, 3)
    merged = check(
        masks.to(device),
        scores.to(device),
        stuff_index.to(device),
        num_stuff=3,
        score_threshold=0.2,
        stuff_area_threshold=100,
    )
    assert merged.instance_areas.count_nonzero() >= 2 and merged.stuff_ids.any()


def test_no_instances_no_stuff_and_one_pixel(device: torch.device) -> None:
    none = torch.zeros(0, 1, 1, dtype=torch.bool, device=device)
    one_pixel = torch.zeros(1, 1, dtype=torch.int16, device=device)
    scores = torch.zeros(0, device=device)
    check(none, scores, None, num_stuff=2)
    check(none, scores, one_pixel, num_stuff=0)
    merged = check(none, scores, one_pixel, num_stuff=1, stuff_area_threshold=1)
    assert merged.panoptic_seg.tolist() == [[1]]
    full = torch.ones(1, 1, 1, dtype=torch.bool, device=device)
    merged = check(full, torch.ones(1, device=device), one_pixel.bool(), num_stuff=2)
    assert merged.panoptic_seg.tolist() == [[1]]


def test_thresholds_keep_what_equals_them(device: torch.device) -> None:
    masks = torch.zeros(3, 1, 20, dtype=torch.bool, device=device)
    masks[0, 0, :10] = True
    masks[1, 0, 7:17] = True  # 3 of 10 hidden
    masks[2, 0, 12:16] = True  # all of 4 hidden
    scores = torch.tensor([0.75, 0.5, 0.5], device=device)
    stuff = torch.zeros(1, 20, dtype=torch.int64, device=device)
    settings = {"num_stuff": 1, "overlap_threshold": 0.3, "stuff_area_threshold": 3}
    merged = check(masks, scores, stuff, **settings)
    assert merged.instance_ids.tolist() == [1, 2, 0]
    assert merged.stuff_ids.tolist() == [3]


def test_huge_stuff_values_are_no_stuff(device: torch.device) -> None:
    stuff = torch.tensor([[0, 2**32, -(2**40), 2**31, 1]], device=device)
    none = torch.zeros(0, 1, 5, dtype=torch.bool, device=device)
    merged = check(none, torch.zeros(0, device=device), stuff, num_stuff=2, stuff_area_threshold=0)
    assert merged.panoptic_seg.tolist() == [[1, 0, 0, 0, 2]]


def test_many_stuff_indices(device: torch.device) -> None:
    # More than are numbered at once; the first two have three pixels.
    stuff = torch.arange(299, device=device).repeat(3)[:600].sort()[0].view(1, 600)
    none = torch.zeros(0, 1, 600, dtype=torch.bool, device=device)
    merged = check(
        none, torch.zeros(0, device=device), stuff, num_stuff=300, stuff_area_threshold=3
    )
    assert merged.stuff_ids.max() == 2


def test_views_of_a_larger_tensor(device: torch.device) -> None:
    masks, scores, stuff_index = scene(5, 6, 7, 19, 2)
    packed = pack_bits(masks).to(device)
    arguments = (19, scores[1::2].to(device), stuff_index.to(device).mT.contiguous().mT)
    with use_kernels("torch"):
        expected = merge_panoptic(packed[1::2], *arguments, num_stuff=2, stuff_area_threshold=4)
    with use_kernels("triton"):
        merged = merge_panoptic(packed[1::2], *arguments, num_stuff=2, stuff_area_threshold=4)
    assert all(torch.equal(a, b) for a, b in zip(merged, expected, strict=True))


@pytest.mark.slow  # the interpreter takes seconds per picture
@pytest.mark.parametrize("file", ["panoptic_merge_a", "panoptic_merge_ties_lowthr"])
def test_equals_the_reference(
    golden: Callable[[str], dict[str, Any]], file: str, device: torch.device
) -> None:
    arrays = golden(file)
    meta = arrays["meta"]
    order = np.argsort(-arrays["inst_scores"], kind="stable")
    semantic = arrays["semantic_map"]
    stuff_index = np.full(semantic.shape, len(meta["stuff_order"]))
    for index, category_id in enumerate(meta["stuff_order"]):
        stuff_index[semantic == category_id] = index
    merged = check(
        torch.from_numpy(unpack(arrays, "inst_masks")[order]).to(device),
        torch.from_numpy(arrays["inst_scores"][order]).float().to(device),
        torch.from_numpy(stuff_index).to(device),
        num_stuff=len(meta["stuff_order"]),
        score_threshold=meta["confidence_thr"],
        overlap_threshold=meta["overlap_thr"],
        stuff_area_threshold=meta["stuff_area_limit"],
    )
    np.testing.assert_array_equal(merged.panoptic_seg.cpu(), arrays["panoptic_map"])
    areas = torch.cat([merged.instance_areas, merged.stuff_areas])
    ids = torch.cat([merged.instance_ids, merged.stuff_ids])
    expected = [(int(segment), int(area)) for segment, _, area in arrays["segments_info"]]
    assert [*zip(ids[ids > 0].tolist(), areas[ids > 0].tolist(), strict=True)] == expected


def compilations(index: str) -> list[Kernel]:
    module = "unisolo.ops.kernels.merge"
    numbers = {"instance_ids": "*i32:16", "extents": "*i32", "num_masks": "i32", "height": "i32"}
    measure = {"packed": "*u8:16", "eligible": "*u8:16", "areas": "*i32", "extents": "*i32",
               "height": "i32", "num_bytes": "i32", "tiles_x": "i32", "ROWS": 16,
               "BYTES": 128}  # fmt: skip
    paint = {**numbers, "packed": "*u8:16", "stuff_index": f"*{index}:16",
             "panoptic_seg": "*i32:16", "counts": "*i32", "width": "i32", "num_stuff": "i32",
             "ROWS": 4, "COLUMNS": 128}  # fmt: skip
    accept = {**numbers, "areas": "*i32", "instance_areas": "*i64:16", "num_things": "*i32:16",
              "overlap_threshold": "fp32", "num_bytes": "i32", "BLOCK": 4096}  # fmt: skip
    enter = {"counts": "*i32", "num_things": "*i32:16", "stuff_ids": "*i32:16",
             "stuff_areas": "*i64:16", "small_stuff_areas": "*i64:16", "num_stuff": "i32",
             "stuff_area_threshold": "i32", "BLOCK": 256}  # fmt: skip
    number = {"panoptic_seg": "*i32:16", "stuff_ids": "*i32:16", "size": "i32", "BLOCK": 1024}
    walks = [
        {**accept, "words": f"*{kind}:16", "union": f"*{kind}:16", "num_words": words,
         "WORD_BYTES": size}
        for kind, size, words in (("i32", 4, "i32:16"), ("i32", 4, "i32"), ("u8", 1, "i32"))
    ]  # fmt: skip
    return [
        Kernel(module, "_measure", measure),
        *(Kernel(module, "_accept", walk, {"num_warps": 16}) for walk in walks),
        *(Kernel(module, "_paint", {**paint, "HAS_STUFF": has}) for has in (False, True)),
        Kernel(module, "_enter_stuff", enter),
        Kernel(module, "_number_stuff", number),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("index", ["i16", "i64", "u8"])
def test_compiles_without_spills(index: str, capability: int) -> None:
    pytest.importorskip("triton")
    for made in compile_kernels(compilations(index), capability):
        assert made.spilled == 0, made.name
        assert made.registers <= 128, made.name  # 16 warps have 128 each


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("size", [(800, 1333), (427, 603)])
def test_full_size_on_a_gpu_in_a_graph_and_without_a_wait(size: tuple[int, int]) -> None:
    masks, scores, stuff_index = (part.cuda() for part in scene(1, 100, *size, 53))
    settings: dict[str, Any] = {"num_stuff": 53, "score_threshold": 0.2}
    expected = check(masks, scores, stuff_index, **settings)
    packed = pack_bits(masks)
    with use_kernels("triton"):
        torch.cuda.set_sync_debug_mode("error")
        try:
            merge_panoptic(packed, size[1], scores, stuff_index, **settings)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            replayed = merge_panoptic(packed, size[1], scores, stuff_index, **settings)
    for _ in range(3):
        for tensor in replayed:
            tensor.zero_()
        graph.replay()
        for found, wanted in zip(replayed, expected, strict=True):
            assert torch.equal(found, wanted)
