from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unisolo.ops.backend import use_kernels
from unisolo.ops.cpu import upsample
from unisolo.ops.masks import resize_to_original, upsample_masks

KINDS = ["blobs", "noise", "binary", "threshold", "empty", "full", "pixel", "signed"]


def make_probs(kind: str, count: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(count, height, width, generator=generator)
    if kind == "blobs":
        y, x = torch.arange(height).view(-1, 1), torch.arange(width)
        cy, cx, size = (torch.rand(3, count, 1, 1, generator=generator) * 1.2 - 0.1).unbind()
        distance = ((y / height - cy) ** 2 + (x / width - cx) ** 2).sqrt()
        return ((size.abs() * 0.4 - distance) * 30).sigmoid()
    if kind == "pixel":
        return torch.where(noise == noise.amax((1, 2), keepdim=True), 0.9, 0.0)
    constant = {"threshold": 0.5, "empty": 0.0, "full": 1.0}
    if kind in constant:
        return torch.full_like(noise, constant[kind])
    return {"noise": noise, "binary": noise.round(), "signed": noise * 60 - 30}[kind]


def assert_equal_to_the_definition(probs, **settings):
    with use_kernels("torch"):
        expected = upsample_masks(probs, **settings)
    with use_kernels("auto"):
        ours = upsample_masks(probs, **settings)
    for field, ours_, expected_ in zip(expected._fields, ours, expected, strict=True):
        assert ours_.dtype == expected_.dtype, field
        assert torch.equal(ours_, expected_), field
    return ours


@st.composite
def frames(draw):
    """Sizes of maps, padded input, its valid part and the original; mostly maps at stride 4."""
    sizes = []
    for _ in range(2):
        size = draw(st.integers(1, 40))
        padded = draw(st.sampled_from([4 * size, 4 * size, size, 3 * size + 1, max(1, size // 2)]))
        valid = padded - draw(st.integers(0, min(padded - 1, 31)))
        orig = draw(st.one_of(st.integers(1, 300), st.just(valid), st.just(padded)))
        sizes.append((size, padded, valid, orig))
    return list(zip(*sizes, strict=True))


@given(
    st.integers(0, 10**6),
    frames(),
    st.sampled_from(KINDS),
    st.integers(0, 4),
    st.sampled_from([0.5, 0.5, 0.3, 0.0, 1.0]),
)
def test_equals_the_definition_bit_for_bit(seed, sizes, kind, count, threshold):
    size, padded, valid, orig = sizes
    assert_equal_to_the_definition(
        make_probs(kind, count, *size, seed),
        padded_size=padded,
        input_size=valid,
        orig_size=orig,
        threshold=threshold,
    )


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100))
def test_equals_the_definition_on_many_sizes(seed):
    generator = torch.Generator().manual_seed(seed)
    size = torch.randint(20, 120, (2,), generator=generator).tolist()
    padded = [4 * side for side in size]
    valid = [side - int(torch.randint(32, (1,), generator=generator)) for side in padded]
    orig = torch.randint(50, 700, (2,), generator=generator).tolist()
    for kind in ("blobs", "noise"):
        assert_equal_to_the_definition(
            make_probs(kind, 12, *size, seed),
            padded_size=tuple(padded),
            input_size=tuple(valid),
            orig_size=tuple(orig),
        )


@given(st.integers(0, 10**6), frames(), st.sampled_from(["highest", "medium"]))
def test_products_are_as_close_as_they_promise(seed, sizes, precision):
    size, padded, valid, orig = sizes
    (probs,) = make_probs("noise", 1, *size, seed)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        axes = [upsample._axis(*lengths) for lengths in zip(*sizes, strict=True)]
        values = upsample._resized(probs, *axes, (0, orig[0]), (0, orig[1]))
    finally:
        torch.set_float32_matmul_precision(before)
    expected = resize_to_original(probs[None], padded_size=padded, input_size=valid, orig_size=orig)
    resizes = (size != padded) + (valid != orig)
    assert ((values - expected[0]).abs() <= resizes * upsample.ROUNDING * expected[0]).all()


def test_sure_masks_are_not_made_twice(monkeypatch):
    probs = make_probs("blobs", 30, 20, 30)
    settings = {"padded_size": (80, 120), "input_size": (75, 113), "orig_size": (150, 226)}
    expected = assert_equal_to_the_definition(probs, **settings)
    assert (expected.areas > 0).sum() > 20
    made = []

    def spy(masks, **arguments):
        made.append(len(masks))
        return upsample_masks(masks, **arguments)

    monkeypatch.setattr(upsample, "definition", spy)
    upsample_masks(probs, **settings)
    assert sum(made) <= 3
    made.clear()
    upsample_masks(make_probs("threshold", 4, 20, 30), **settings)
    assert made == [4]  # every pixel is at the threshold: only the definition can tell
    made.clear()
    tried = []
    resized = upsample._resized
    monkeypatch.setattr(upsample, "_resized", lambda *some: tried.append(1) or resized(*some))
    assert_equal_to_the_definition(make_probs("threshold", 30, 20, 30), **settings)
    assert made == [30]
    assert len(tried) == upsample.ENOUGH


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_no_numbers(value):
    probs = make_probs("blobs", 3, 12, 16)
    probs[1, 4, 5] = value
    assert_equal_to_the_definition(
        probs, padded_size=(48, 64), input_size=(48, 64), orig_size=(31, 50)
    )


def test_any_layout_dtype_and_autocast():
    probs = make_probs("blobs", 5, 12, 16).half()
    settings = {"padded_size": (48, 64), "input_size": (45, 64), "orig_size": (90, 111)}
    expected = assert_equal_to_the_definition(probs, **settings)
    torch.set_default_dtype(torch.float64)
    try:
        assert_equal_to_the_definition(probs, **settings)
    finally:
        torch.set_default_dtype(torch.float32)
    strided = probs.permute(1, 2, 0).contiguous().permute(2, 0, 1).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = upsample_masks(strided, **settings)
    for ours_, expected_ in zip(ours, expected, strict=True):
        assert torch.equal(ours_, expected_)


@pytest.mark.parametrize(
    ("probs", "valid"),
    [
        (torch.zeros(2, 3), (8, 8)),
        (torch.zeros(2, 3, 3).int(), (8, 8)),
        (torch.zeros(0, 3, 3), (13, 8)),
    ],
)
def test_refuses_what_the_definition_refuses(probs, valid):
    with pytest.raises(ValueError, match=r"resize_to_original|input_size"):
        upsample_masks(probs, padded_size=(12, 12), input_size=valid, orig_size=(5, 5))
