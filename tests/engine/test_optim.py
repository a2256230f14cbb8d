from __future__ import annotations

import pytest
import torch
from tiny_model import tiny_config, tiny_model

from unisolo.engine.optim import build_ema, build_optimizer, build_schedule, scaled_lr


def rates(*overrides: str, steps: int) -> list[float]:
    """The learning rate in effect at each optimiser step."""
    config = tiny_config(*overrides).train
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=scaled_lr(config))
    schedule = build_schedule(optimizer, config, steps)
    found = []
    for step in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        schedule.step_update(step + 1)
    return found


MULTISTEP = ("train.schedule=multistep", "train.lr=1", "train.warmup_ratio=0.1")


def test_multistep_divides_by_ten_at_the_fractions_of_the_run() -> None:
    found = rates(*MULTISTEP, "train.warmup_steps=10", "train.milestones=[0.5, 0.8]", steps=100)
    assert found[0] == pytest.approx(0.1)
    assert found[10:50] == pytest.approx([1.0] * 40)
    assert found[50:80] == pytest.approx([0.1] * 30)
    assert found[80:] == pytest.approx([0.01] * 20)


def test_a_short_run_still_decays() -> None:
    # The warm-up is cut to half the run, and milestones do not move behind it.
    found = rates(*MULTISTEP, "train.warmup_steps=500", "train.milestones=[0.75]", steps=100)
    assert found[60] == pytest.approx(1.0)
    assert found[80] == pytest.approx(0.1)


def test_cosine_falls_to_a_hundredth() -> None:
    found = rates("train.lr=1", "train.warmup_steps=5", "train.warmup_ratio=0", steps=100)
    assert found[0] == 0
    assert max(found) <= 1
    assert found[5:] == sorted(found[5:], reverse=True)
    assert found[-1] == pytest.approx(0.01, abs=2e-3)


def test_lr_is_linear_in_the_batch() -> None:
    config = tiny_config("train.lr=0.01", "train.batch_size=64", "train.lr_batch_size=16").train
    assert scaled_lr(config) == pytest.approx(0.04)


@pytest.mark.parametrize("name", ["adamw", "momentum", "sgd"])
def test_groups_hold_every_parameter_once_with_its_rate_and_decay(name: str) -> None:
    model = tiny_model()
    config = tiny_config(
        f"train.optimizer={name}", "train.backbone_lr_scale=0.5", "train.weight_decay=0.1"
    ).train
    optimizer = build_optimizer(model, config)
    build_schedule(optimizer, config, 10).step_update(5)
    head = optimizer.param_groups[-1]["lr"]
    found: dict[int, dict] = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            assert id(parameter) not in found
            found[id(parameter)] = group
    for parameter_name, parameter in model.named_parameters():
        group = found[id(parameter)]
        in_backbone = parameter_name.startswith("backbone.")
        assert group["lr"] == pytest.approx(head * (0.5 if in_backbone else 1))
        assert group["weight_decay"] == (0.1 if parameter.ndim > 1 else 0)


def test_norms_decay_where_asked() -> None:
    config = tiny_config("train.decay_norms=true", "train.weight_decay=0.1").train
    groups = build_optimizer(tiny_model(), config).param_groups
    assert {group["weight_decay"] for group in groups} == {0.1}


def test_momentum_is_plain_sgd() -> None:
    config = tiny_config("train.optimizer=momentum").train
    defaults = build_optimizer(tiny_model(), config).defaults
    assert defaults["momentum"] == 0.9
    assert not defaults["nesterov"]


def test_averaged_weights_follow() -> None:
    model = tiny_model()
    assert build_ema(model, tiny_config().train) is None
    ema = build_ema(model, tiny_config("train.ema_decay=0.9").train)
    with torch.no_grad():
        model.neck.outputs[0][0].weight.add_(1)
    before = ema.module.neck.outputs[0][0].weight.clone()
    ema.update(model, step=1000)
    after = ema.module.neck.outputs[0][0].weight
    assert torch.allclose(after - before, torch.full_like(after, 0.1), atol=1e-4)
    assert ema.module.categories == model.categories
