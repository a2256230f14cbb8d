"""What the shell offers after TAB: tasks, devices, settings. Nothing here may import torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

__all__ = ["DEVICES", "TASK_NAMES", "complete_devices", "complete_settings", "complete_tasks"]

TASK_NAMES = ("panoptic", "instance", "detection")
"""The keys of `unisolo.tasks.TASKS`, which cannot be read without torch."""

DEVICES = ("auto", "cpu", "cuda", "mps")


def complete_tasks(incomplete: str) -> list[str]:
    """Offer the tasks."""
    return [name for name in TASK_NAMES if name.startswith(incomplete)]


def complete_devices(incomplete: str) -> list[str]:
    """Offer the devices."""
    return [name for name in DEVICES if name.startswith(incomplete)]


def complete_settings(incomplete: str) -> list[str]:
    """Offer every key of the configuration, ready for its value."""
    from unisolo.config import Config

    return [f"{key}=" for key in _keys(Config) if key.startswith(incomplete)]


def _keys(section: Any, prefix: str = "") -> Iterator[str]:
    for name, field in section.model_fields.items():
        if hasattr(field.annotation, "model_fields"):
            yield from _keys(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"
