"""The command line. `tools/*.py` and the `unisolo` command are doors to these functions."""

from __future__ import annotations

from unisolo.cli.common import app
from unisolo.cli.running import compare, doctor, evaluate, predict
from unisolo.cli.training import train
from unisolo.cli.transfer import export, quantize
from unisolo.cli.weights import convert, models

__all__ = [
    "app",
    "compare",
    "convert",
    "doctor",
    "evaluate",
    "export",
    "models",
    "predict",
    "quantize",
    "train",
]
