"""A model small enough to train and save inside a test."""

from __future__ import annotations

from typing import Any

import torch

from unisolo import Categories, Category, Config, UniSolo, build_model, load_config

CATEGORIES = Categories(
    [
        Category(7, "box"),
        Category(3, "ball"),
        Category(92, "sky", isthing=False),
        Category(107, "grass", isthing=False),
    ]
)

VALUES: dict[str, Any] = {
    "model": {
        "backbone": "test_resnet",
        "pretrained": False,
        "fpn_channels": 16,
        "fpn_norm": "batch",
        "head_channels": 16,
        "head_convs": 1,
        "kernel_channels": 16,
        "mask_channels": 16,
        "stuff_channels": 16,
        "grid_sizes": [8, 6, 4, 3, 2],
    },
    "data": {"image_size": 64, "max_size": 96, "workers": 0},
    "train": {
        "steps": 2,
        "batch_size": 2,
        "optimizer": "adamw",
        "lr": 0.002,
        "lr_batch_size": 2,
        "warmup_steps": 1,
        "schedule": "cosine",
        "log_every": 1,
        "device": "cpu",
        "tensorboard": False,
    },
    "inference": {"stuff_area_threshold": 16},
}


def tiny_config(*overrides: str, **values: Any) -> Config:
    return load_config(None, overrides, values={**VALUES, **values})


def tiny_model(*overrides: str, categories: Categories = CATEGORIES) -> UniSolo:
    return build_model(tiny_config(*overrides), categories)


def lively_model(*overrides: str, categories: Categories = CATEGORIES) -> UniSolo:
    """An untrained model with many confident, distinct instances; the same at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = tiny_model(*overrides, categories=categories).eval()
        for parameter in model.solo_head.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, 0, 0.3)
        torch.nn.init.constant_(model.solo_head.category_out.bias, 0.0)
    return model
