from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from unisolo.losses.functional import dice_loss, sigmoid_focal_loss


@pytest.mark.parametrize("alpha, gamma", [(0.25, 2.0), (0.5, 0.0), (0.9, 1.0), (0.1, 3.5)])
@given(data=st.data())
def test_focal_follows_the_formula(alpha: float, gamma: float, data: st.DataObject) -> None:
    logit = data.draw(st.floats(-30, 30, width=32))
    positive = data.draw(st.booleans())
    p_t = 1 / (1 + math.exp(-logit if positive else logit))
    one_minus = 1 / (1 + math.exp(logit if positive else -logit))
    expected = (alpha if positive else 1 - alpha) * one_minus**gamma * -math.log(p_t)
    loss = sigmoid_focal_loss(
        torch.tensor([logit]), torch.tensor([positive]), alpha=alpha, gamma=gamma
    )
    assert loss.item() == pytest.approx(expected, rel=1e-4, abs=1e-12)


def test_focal_without_focus_is_cross_entropy() -> None:
    logits, targets = torch.randn(5, 7) * 4, torch.rand(5, 7) < 0.3
    loss = sigmoid_focal_loss(logits, targets, alpha=0.5, gamma=0)
    expected = 0.5 * F.binary_cross_entropy_with_logits(logits, targets.float(), reduction="none")
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0])
def test_focal_is_finite_at_extreme_logits(gamma: float) -> None:
    logits = torch.tensor([-1e4, -200.0, 0.0, 200.0, 1e4]).repeat(2, 1).requires_grad_()
    targets = torch.tensor([[True], [False]]).expand(2, 5)
    loss = sigmoid_focal_loss(logits, targets, gamma=gamma)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert logits.grad is not None and logits.grad.isfinite().all()


def test_dice_by_hand() -> None:
    logits = torch.tensor([[100.0, 100.0, -100.0, -100.0]] * 4)
    targets = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]]).bool()
    expected = [1 - 4 / 4.002, 1.0, 1 - 2 / 3.002, 1.0]
    torch.testing.assert_close(dice_loss(logits, targets), torch.tensor(expected))


def test_dice_of_nothing_against_nothing_is_finite() -> None:
    logits = torch.full((1, 9), -200.0, requires_grad=True)
    loss = dice_loss(logits, torch.zeros(1, 9, dtype=torch.bool))
    loss.sum().backward()
    assert loss.item() == 1.0
    assert logits.grad is not None and logits.grad.isfinite().all()


def test_no_rows() -> None:
    assert dice_loss(torch.zeros(0, 9), torch.zeros(0, 9)).shape == (0,)
    assert sigmoid_focal_loss(torch.zeros(0, 3), torch.zeros(0, 3)).shape == (0, 3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_cast_first(dtype: torch.dtype) -> None:
    logits = (torch.randn(3, 4096) * 3).to(dtype)
    targets = torch.rand(3, 4096) < 0.5
    with torch.autocast("cpu", dtype=torch.bfloat16):
        focal, dice = sigmoid_focal_loss(logits, targets), dice_loss(logits, targets)
    assert focal.dtype == dice.dtype == torch.float32
    assert torch.equal(focal, sigmoid_focal_loss(logits.float(), targets))
    assert torch.equal(dice, dice_loss(logits.float(), targets))


def test_wrong_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(2, 4\)"):
        sigmoid_focal_loss(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"gamma.*0\.5"):
        sigmoid_focal_loss(torch.zeros(2), torch.zeros(2), gamma=0.5)
    with pytest.raises(ValueError, match=r"\[P, M\].*\(2, 3, 4\)"):
        dice_loss(torch.zeros(2, 3, 4), torch.zeros(2, 3, 4))
