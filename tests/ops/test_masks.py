from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from unisolo.ops.backend import use_kernels
from unisolo.ops.masks import (
    mask_intersections,
    pack_bits,
    popcount,
    resize_to_original,
    row_chunks,
    unpack_bits,
    upsample_masks,
)

bool_masks = hnp.arrays(
    bool, hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=19), elements=st.booleans()
)


@given(bool_masks)
def test_bits_are_those_of_numpy_and_come_back(masks):
    packed = pack_bits(torch.from_numpy(masks))

    np.testing.assert_array_equal(packed, np.packbits(masks, axis=-1))
    np.testing.assert_array_equal(unpack_bits(packed, masks.shape[-1]), masks)
    np.testing.assert_array_equal(popcount(packed), masks.sum(-1))
    assert popcount(packed).dtype == torch.int64


def test_popcount_of_every_byte():
    every = torch.arange(256, dtype=torch.uint8).unsqueeze(1)
    assert popcount(every).tolist() == [byte.bit_count() for byte in range(256)]
    assert popcount(every.flatten()) == 1024  # far above what a byte holds


@given(
    hnp.arrays(bool, st.tuples(st.integers(0, 6), st.integers(0, 40)), elements=st.booleans()),
    st.integers(1, 300),
)
def test_intersections_equal_pixel_by_pixel_counting(masks, chunk_pixels):
    counts = mask_intersections(torch.from_numpy(masks), chunk_pixels=chunk_pixels)

    twin = [[int((a & b).sum()) for b in masks] for a in masks]
    assert counts.dtype == torch.float32
    assert counts.tolist() == twin


def test_intersections_stay_exact_under_autocast():
    masks = torch.ones(2, 1003, dtype=torch.bool)  # 1003 has no bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert mask_intersections(masks).tolist() == [[1003.0] * 2] * 2


@given(st.integers(0, 20), st.integers(0, 10), st.integers(1, 50))
def test_row_chunks_cover_all_rows_once_within_the_bound(num_rows, row_size, chunk_size):
    parts = list(row_chunks(num_rows, row_size, chunk_size))

    assert [row for part in parts for row in range(num_rows)[part]] == list(range(num_rows))
    for part in parts:
        rows = part.stop - part.start
        assert rows == 1 or rows * row_size <= chunk_size


def _bilinear(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Half-pixel bilinear resize of one map, a pixel at a time."""
    out = np.empty(size)
    for y, x in np.ndindex(*size):
        sy = max((y + 0.5) * image.shape[0] / size[0] - 0.5, 0)
        sx = max((x + 0.5) * image.shape[1] / size[1] - 0.5, 0)
        y0, x0 = int(sy), int(sx)
        y1, x1 = min(y0 + 1, image.shape[0] - 1), min(x0 + 1, image.shape[1] - 1)
        fy, fx = sy - y0, sx - x0
        top = image[y0, x0] * (1 - fx) + image[y0, x1] * fx
        bottom = image[y1, x0] * (1 - fx) + image[y1, x1] * fx
        out[y, x] = top * (1 - fy) + bottom * fy
    return out


def test_resize_is_two_bilinear_resizes_with_a_cut_between():
    maps = torch.rand(2, 5, 4)
    resized = resize_to_original(maps, padded_size=(20, 16), input_size=(17, 11), orig_size=(9, 23))

    for ours, original in zip(resized, maps, strict=True):
        padded = _bilinear(original.numpy().astype(np.float64), (20, 16))
        np.testing.assert_allclose(ours, _bilinear(padded[:17, :11], (9, 23)), atol=1e-5)


SIZES = [
    # orig_size, input_size
    ((1, 1), (32, 32)),  # one pixel
    ((4000, 30), (64, 1)),  # extremely long
    ((30, 4000), (1, 64)),
    ((13, 29), (64, 64)),  # width not a multiple of 8
    ((64, 64), (64, 64)),
]


@pytest.mark.usefixtures("each_twin")
@pytest.mark.parametrize(("orig_size", "input_size"), SIZES)
@pytest.mark.parametrize("num_masks", [0, 1, 5])
def test_upsampled_masks_boxes_and_areas_agree(orig_size, input_size, num_masks):
    probs = torch.rand(num_masks, 16, 16)
    if num_masks > 1:
        probs[1] = 0
    frames = {"padded_size": (64, 64), "input_size": input_size, "orig_size": orig_size}
    result = upsample_masks(probs, **frames, threshold=0.55)

    masks = resize_to_original(probs, **frames) > 0.55
    np.testing.assert_array_equal(result.packed, np.packbits(masks.numpy(), axis=-1))
    assert result.areas.tolist() == [int(mask.sum()) for mask in masks]
    assert result.areas.dtype == torch.int64
    for mask, box in zip(masks, result.boxes.tolist(), strict=True):
        rows, columns = np.nonzero(mask.numpy())
        tight = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] if len(rows) else 0
        assert box == (tight or [0, 0, 0, 0])


@pytest.mark.usefixtures("each_twin")
@pytest.mark.parametrize("chunk_pixels", [1, 4096, 10000, 10**9])
def test_upsampling_does_not_depend_on_the_chunk(chunk_pixels):
    probs = torch.rand(7, 16, 16)
    frames = {"padded_size": (64, 64), "input_size": (60, 50), "orig_size": (33, 47)}
    expected = upsample_masks(probs, **frames)
    result = upsample_masks(probs, **frames, chunk_pixels=chunk_pixels)

    for ours, theirs in zip(result, expected, strict=True):
        assert torch.equal(ours, theirs)


def test_no_float_tensor_exceeds_the_chunk(monkeypatch):
    seen = []

    def spy(maps, **frames):
        seen.append(len(maps) * 64 * 64)
        return resize_to_original(maps, **frames)

    monkeypatch.setattr("unisolo.ops.masks.resize_to_original", spy)
    with use_kernels("torch"):
        upsample_masks(
            torch.rand(7, 16, 16),
            padded_size=(64, 64),
            input_size=(64, 64),
            orig_size=(32, 32),
            chunk_pixels=3 * 64 * 64,
        )
    assert seen == [3 * 4096, 3 * 4096, 4096]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_probabilities_are_resized_in_float32(dtype):
    probs = torch.rand(3, 8, 8).to(dtype)
    frames = {"padded_size": (32, 32), "input_size": (30, 31), "orig_size": (45, 47)}
    result = upsample_masks(probs, **frames)

    assert torch.equal(result.packed, upsample_masks(probs.float(), **frames).packed)


@pytest.mark.usefixtures("each_twin")
def test_the_threshold_is_strict():
    frames = {"padded_size": (8, 8), "input_size": (8, 8), "orig_size": (8, 8)}
    half = torch.full((1, 2, 2), 0.5)
    assert upsample_masks(half, **frames, threshold=0.5).areas == 0
    assert upsample_masks(half, **frames, threshold=0.49).areas == 64


ERRORS = [
    (lambda: pack_bits(torch.zeros(2, 3)), r"bool masks.*float32 \[2, 3\]"),
    (lambda: unpack_bits(torch.zeros(2, 3, dtype=torch.uint8), 25), r"\[\.\.\., 4\].*\[2, 3\]"),
    (lambda: popcount(torch.zeros(2)), "uint8.*float32"),
    (lambda: mask_intersections(torch.zeros(1, 2, 3, 4, dtype=torch.bool)), r"\[1, 2, 3, 4\]"),
    (lambda: list(row_chunks(1, 1, 0)), "at least 1"),
    (
        lambda: resize_to_original(
            torch.zeros(1, 2, 2), padded_size=(8, 8), input_size=(8, 9), orig_size=(4, 4)
        ),
        r"\(8, 9\).*padded_size \(8, 8\)",
    ),
    (
        lambda: resize_to_original(
            torch.zeros(2, 2), padded_size=(8, 8), input_size=(8, 8), orig_size=(4, 4)
        ),
        r"\[K, h, w\].*\[2, 2\]",
    ),
]


@pytest.mark.parametrize(("call", "message"), ERRORS)
def test_wrong_shapes_and_types_name_what_came(call, message):
    with pytest.raises(ValueError, match=message):
        call()
