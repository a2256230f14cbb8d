"""Unified perception: instance segmentation, box detection and panoptic segmentation in one model.

    from unisolo import Predictor
    result = Predictor("model.safetensors").predict("street.jpg")

Names load on first use, so that importing the package stays cheap.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unisolo.build import build_model
    from unisolo.categories import Categories, Category
    from unisolo.checkpoint import save_model
    from unisolo.config import Config, load_config
    from unisolo.models import UniSolo
    from unisolo.ops.matrix_nms import matrix_nms
    from unisolo.predictor import Predictor
    from unisolo.results import Result, Segment
    from unisolo.zoo import list_models, load_model

__all__ = [
    "Categories",
    "Category",
    "Config",
    "Predictor",
    "Result",
    "Segment",
    "UniSolo",
    "__version__",
    "build_model",
    "list_models",
    "load_config",
    "load_model",
    "matrix_nms",
    "optimize",
    "save_model",
]

try:
    __version__ = version("unisolo")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

_HOMES = {
    "Categories": "unisolo.categories",
    "Category": "unisolo.categories",
    "Config": "unisolo.config",
    "Predictor": "unisolo.predictor",
    "Result": "unisolo.results",
    "Segment": "unisolo.results",
    "UniSolo": "unisolo.models",
    "build_model": "unisolo.build",
    "list_models": "unisolo.zoo",
    "load_config": "unisolo.config",
    "load_model": "unisolo.zoo",
    "matrix_nms": "unisolo.ops.matrix_nms",
    "optimize": "unisolo.fast",
    "save_model": "unisolo.checkpoint",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'unisolo' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
