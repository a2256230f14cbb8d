from __future__ import annotations

import pytest
import torch
from compiling import Kernel, compile_kernels
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")
from unisolo.ops.kernels.intersections import packed_intersections, pair_intersections
from unisolo.ops.kernels.packed import pack_masks


@pytest.fixture(autouse=True)
def _poison(poisoned):
    with poisoned():
        yield


def expected(masks, labels, scores):
    """Shared pixels of every two masks [B, N, P], counted in int64."""
    flat = masks.long()
    takes_part = scores > 0
    meets = takes_part[:, :, None] & takes_part[:, None] & (labels[:, :, None] == labels[:, None])
    return torch.where(meets, flat @ flat.mT, 0)


def scene(batch_size, count, num_pixels, num_labels):
    """Masks of one run of pixels each, some empty or full; some candidates without a score."""
    position = torch.arange(num_pixels)
    begin = torch.randint(0, num_pixels, (batch_size, count, 1))
    end = begin + torch.randint(0, num_pixels, begin.shape)
    masks = (position >= begin) & (position < end) & (torch.rand(end.shape) > 0.2)
    masks[:, -1] = True
    labels = torch.randint(0, num_labels, (batch_size, count))
    scores = torch.randint(0, 8, (batch_size, count)) / 8
    return masks, labels, scores


@pytest.mark.parametrize(
    ("batch_size", "count", "num_pixels", "num_labels"),
    [(1, 1, 1, 1), (2, 2, 70, 1), (1, 31, 513, 12), (2, 33, 40, 30), (1, 70, 1100, 60)],
)
def test_every_pair_of_a_label_is_counted_exactly(
    device, batch_size, count, num_pixels, num_labels
):
    masks, labels, scores = scene(batch_size, count, num_pixels, num_labels)
    packed = pack_masks(masks.to(device))
    found = pair_intersections(packed, labels.to(device), scores.to(device))

    assert found.dtype == torch.int32
    assert torch.equal(found.cpu().long(), expected(masks, labels, scores))


@settings(max_examples=10)
@given(data=st.data())
def test_any_small_scene(device, data):
    count = data.draw(st.integers(1, 6))
    num_pixels = data.draw(st.integers(1, 300))
    num_labels = data.draw(st.integers(1, 3))
    masks, labels, scores = scene(1, count, num_pixels, num_labels)
    found = packed_intersections(pack_masks(masks.to(device)), labels.to(device), scores.to(device))
    assert torch.equal(found.cpu().long(), expected(masks, labels, scores))


def test_every_pair_has_a_place_in_the_list(device):
    masks = torch.ones(2, 9, 33, dtype=torch.bool, device=device)
    labels = torch.zeros(2, 9, dtype=torch.int64, device=device)
    assert (packed_intersections(pack_masks(masks), labels) == 33).all()


def test_a_second_run_gives_the_same_numbers(device):
    masks, labels, scores = (field.to(device) for field in scene(2, 9, 300, 2))
    packed = pack_masks(masks)
    runs = [packed_intersections(packed, labels, scores) for _ in range(2)]
    assert torch.equal(*runs)


def test_empty_masks_share_nothing(device):
    masks = torch.zeros(1, 5, 100, dtype=torch.bool, device=device)
    masks[0, 2, 99] = True
    labels = torch.zeros(1, 5, dtype=torch.int64, device=device)
    found = packed_intersections(pack_masks(masks), labels)
    assert found.sum() == found[0, 2, 2] == 1


def test_without_scores_all_take_part_and_labels_may_be_any_integer(device):
    masks, labels, scores = scene(1, 9, 200, 2)
    packed = pack_masks(masks.to(device))
    found = packed_intersections(packed, (labels.int() - 1).to(device))
    assert torch.equal(found.cpu().long(), expected(masks, labels, torch.ones_like(scores)))


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_compile_without_spills(capability):
    words, numbers = "*i32:16", "i32"
    listing = {
        "labels_ptr": "*i64:16",
        "scores_ptr": "*fp32:16",
        **dict.fromkeys(("areas_ptr", "first_ptr", "last_ptr", "out_ptr", "pairs_ptr"), words),
        "lengths_ptr": "*i32",
        **dict.fromkeys(("num_masks", "capacity"), numbers),
        "BLOCK": 32,
    }
    counting = {
        **dict.fromkeys(("bits_ptr", "first_ptr", "last_ptr", "out_ptr", "pairs_ptr"), words),
        "lengths_ptr": "*i32",
        **dict.fromkeys(("num_masks", "capacity"), numbers),
        "num_words": "i32:16",
        "BLOCK_WORDS": 2,
        "WIDTH": 128,
    }
    module = "unisolo.ops.kernels.intersections"
    listed, counted = compile_kernels(
        [
            Kernel(module, "_list_pairs", listing, {"num_warps": 4}),
            Kernel(module, "_count_pairs", counting, {"num_warps": 1}),
        ],
        capability,
    )
    assert listed.spilled == counted.spilled == 0
    assert "popc.b32" in counted.ptx
    assert counted.ptx.count("ld.global.v4.b32") == 2  # a mask's words 16 bytes at a time
