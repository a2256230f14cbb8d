"""The two recipes that a choice starts from; `configs/` is not part of an installed package.

Everything that depends on the data or the machine is left out here. A test holds the values against
the files they are from.
"""

from __future__ import annotations

from typing import Any

__all__ = ["FOR_CPU", "FOR_GPU"]

FOR_GPU: dict[str, Any] = {
    "model.backbone": "tf_efficientnet_lite0",
    "model.fpn_channels": 128,
    "model.fpn_norm": "batch",
    "model.head_channels": 128,
    "model.head_convs": 2,
    "model.kernel_channels": 128,
    "model.scale_ranges": "auto",
    "data.augment.scale_jitter": [0.5, 1.5],
    "data.augment.color": 0.3,
    "train.optimizer": "adamw",
    "train.lr": 0.0006,
    "train.lr_batch_size": 16,
    "train.weight_decay": 0.05,
    "train.schedule": "cosine",
    "train.warmup_steps": 100,
    "train.clip_norm": 10,
    "train.ema_decay": 0.998,
}
"""configs/small_efficientnet_lite0_512.yaml."""

FOR_CPU: dict[str, Any] = {
    "model.backbone": "regnetx_002",
    "model.fpn_channels": 48,
    "model.fpn_norm": "batch",
    "model.head_channels": 48,
    "model.head_convs": 2,
    "model.kernel_channels": 48,
    "model.mask_channels": 48,
    "model.stuff_channels": 48,
    "model.scale_ranges": "auto",
    "train.optimizer": "adamw",
    "train.lr": 0.002,
    "train.lr_batch_size": 8,
    "train.weight_decay": 0.05,
    "train.schedule": "cosine",
    "train.warmup_steps": 50,
    "train.clip_norm": 10,
    "train.ema_decay": 0.998,
}
"""configs/quickstart.yaml."""
