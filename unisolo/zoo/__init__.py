"""Models by path, or by the name of published weights."""

from __future__ import annotations

from unisolo.zoo.load import cache_home, cached_path, load_model, model_path, open_model
from unisolo.zoo.show import print_models
from unisolo.zoo.table import MODELS, ModelEntry, list_models

__all__ = [
    "MODELS",
    "ModelEntry",
    "cache_home",
    "cached_path",
    "list_models",
    "load_model",
    "model_path",
    "open_model",
    "print_models",
]
