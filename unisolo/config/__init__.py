"""Configuration: the settings, and how files, values and overrides become them."""

from __future__ import annotations

from unisolo.config.load import ConfigError, config_to_dict, load_config
from unisolo.config.sections import (
    SHOWN_SCORE,
    AugmentConfig,
    Config,
    DataConfig,
    InferenceConfig,
    ModelConfig,
    TrainConfig,
)

__all__ = [
    "SHOWN_SCORE",
    "AugmentConfig",
    "Config",
    "ConfigError",
    "DataConfig",
    "InferenceConfig",
    "ModelConfig",
    "TrainConfig",
    "config_to_dict",
    "load_config",
]
