"""The command line. `tools/*.py` and the `unisolo` command are doors to these functions."""

from __future__ import annotations

from unisolo.cli.common import app
from unisolo.cli.data import convert_data
from unisolo.cli.demo import demo
from unisolo.cli.examining import doctor
from unisolo.cli.generating import shapes
from unisolo.cli.measuring import benchmark
from unisolo.cli.predicting import predict
from unisolo.cli.report import report
from unisolo.cli.running import compare, evaluate
from unisolo.cli.training import train
from unisolo.cli.transfer import export, quantize
from unisolo.cli.weights import convert, models

__all__ = [
    "app",
    "benchmark",
    "compare",
    "convert",
    "convert_data",
    "demo",
    "doctor",
    "evaluate",
    "export",
    "models",
    "predict",
    "quantize",
    "report",
    "shapes",
    "train",
]
