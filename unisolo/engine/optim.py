"""Optimiser, schedule and averaged weights, from timm's parts."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from unisolo.config import TrainConfig
from unisolo.models import UniSolo

__all__ = ["build_ema", "build_optimizer", "build_schedule", "scaled_lr"]


def scaled_lr(config: TrainConfig) -> float:
    """Learning rate at the run's batch size: linear in the batch (arXiv 1706.02677)."""
    return config.lr * config.batch_size / config.lr_batch_size


def build_optimizer(model: UniSolo, config: TrainConfig) -> torch.optim.Optimizer:
    """Build a timm optimiser; norms and biases take weight decay only with `decay_norms`.

    Raises:
        ValueError: If timm has no optimiser of that name.
    """
    from timm.optim import create_optimizer_v2, list_optimizers

    groups: list[dict[str, Any]] = []
    for prefix, scale in (("backbone.", config.backbone_lr_scale), ("", 1.0)):
        parts = [
            (name, parameter)
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and name.startswith("backbone.") == bool(prefix)
        ]
        for decay in (True, False):
            chosen = [
                parameter
                for _, parameter in parts
                if (parameter.ndim > 1 or config.decay_norms) == decay
            ]
            if chosen:
                groups.append(
                    {
                        "params": chosen,
                        "lr_scale": scale,
                        "weight_decay": config.weight_decay if decay else 0.0,
                    }
                )
    try:
        optimizer: torch.optim.Optimizer = create_optimizer_v2(
            groups,
            opt=config.optimizer,
            lr=scaled_lr(config),
            weight_decay=config.weight_decay,
            momentum=config.momentum,
        )
    except (ValueError, AssertionError, KeyError) as error:
        names = ", ".join(list_optimizers()[:12])
        raise ValueError(
            f"train.optimizer={config.optimizer!r} cannot be built ({error}); timm has {names}, ..."
        ) from None
    return optimizer


def build_schedule(optimizer: torch.optim.Optimizer, config: TrainConfig, steps: int) -> Any:
    """Build a timm schedule over `steps` optimiser steps; call `step_update(step)` after each.

    In a run that follows the clock `step` is a share of `steps` and need not be whole.
    """
    from timm.scheduler import CosineLRScheduler, MultiStepLRScheduler

    lr = scaled_lr(config)
    warmup = min(config.warmup_steps, max(steps // 2, 0))
    if config.warmup_share is not None:
        warmup = round(config.warmup_share * steps)
    shared = {
        "warmup_t": warmup,
        "warmup_lr_init": lr * config.warmup_ratio,
        "t_in_epochs": False,
    }
    if config.schedule == "cosine":
        return CosineLRScheduler(optimizer, t_initial=steps, lr_min=lr * 0.01, **shared)
    # timm counts milestones from the end of the warm-up unless told not to, and compares them with
    # the number of the coming step: hence the flag and the 1.
    milestones = [round(fraction * steps) + 1 for fraction in config.milestones]
    return MultiStepLRScheduler(
        optimizer, decay_t=milestones, decay_rate=0.1, warmup_prefix=False, **shared
    )


def build_ema(model: nn.Module, config: TrainConfig) -> Any | None:
    """Build timm's averaged copy of the model, or None when `ema_decay` is 0.

    The decay is warmed up, so that a short run is not dominated by its first weights.
    """
    if config.ema_decay == 0:
        return None
    from timm.utils import ModelEmaV3

    return ModelEmaV3(model, decay=config.ema_decay, use_warmup=True, warmup_power=2 / 3)
