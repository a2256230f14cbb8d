from __future__ import annotations

from dataclasses import replace

import assign_twin as twin
import numpy as np
import pytest
import torch

from unisolo.losses.stuff import stuff_loss
from unisolo.structures import STUFF_IGNORE, Target


def with_stuff(stuff_map: torch.Tensor) -> Target:
    empty = twin.make_target(np.zeros((0, *stuff_map.shape), bool), [])
    return replace(empty, stuff_map=stuff_map.to(torch.int16))


def test_mean_over_scored_pixels_of_the_whole_batch() -> None:
    logits = torch.randn(2, 4, 2, 3)
    maps = torch.full((2, 8, 12), STUFF_IGNORE)
    maps[0, 2, 2], maps[0, 6, 10], maps[1, 2, 6] = 0, 3, 2  # the pixels at (4 i + 2, 4 j + 2)
    maps[1, 5, 6] = 1  # not sampled
    log_probs = logits.double().log_softmax(dim=1)
    expected = -(log_probs[0, 0, 0, 0] + log_probs[0, 3, 1, 2] + log_probs[1, 2, 0, 1]) / 3
    loss = stuff_loss(logits, [with_stuff(stuff_map) for stuff_map in maps])
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_nothing_to_score_is_zero_with_a_gradient() -> None:
    logits = torch.randn(1, 4, 2, 3, requires_grad=True)
    loss = stuff_loss(logits, [with_stuff(torch.full((8, 12), STUFF_IGNORE))])
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None and not logits.grad.any()


def test_only_ignored_pixels_get_no_gradient() -> None:
    logits = torch.randn(1, 4, 2, 2, requires_grad=True)
    stuff_map = torch.zeros(8, 8)
    stuff_map[:4] = STUFF_IGNORE
    stuff_loss(logits, [with_stuff(stuff_map)]).backward()
    assert logits.grad is not None
    assert not logits.grad[:, :, 0].any() and logits.grad[:, :, 1].all()


def test_data_set_without_stuff_categories_has_one_channel() -> None:
    assert stuff_loss(torch.randn(1, 1, 2, 2), [with_stuff(torch.zeros(8, 8))]).item() == 0


def test_float32_inside_autocast() -> None:
    logits = (torch.randn(1, 5, 8, 8) * 20).bfloat16()
    targets = [with_stuff(torch.randint(0, 5, (32, 32)))]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = stuff_loss(logits, targets)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, stuff_loss(logits.float(), targets))


def test_wrong_input_is_named() -> None:
    target = with_stuff(torch.zeros(8, 8))
    with pytest.raises(ValueError, match="no stuff map"):
        stuff_loss(torch.zeros(1, 4, 2, 2), [replace(target, stuff_map=None)])
    with pytest.raises(ValueError, match=r"\(8, 8\).*\(8, 12\)"):
        stuff_loss(torch.zeros(1, 4, 2, 3), [target])
    with pytest.raises(ValueError, match="2 images need 2 targets, got 1"):
        stuff_loss(torch.zeros(2, 4, 2, 2), [target])
