"""Commands that measure this package on this machine: one file each."""

from __future__ import annotations

from unisolo.cli.measuring.app import benchmark
from unisolo.cli.measuring.evaluate import evaluate
from unisolo.cli.measuring.latency import latency
from unisolo.cli.measuring.memory import memory
from unisolo.cli.measuring.model import model
from unisolo.cli.measuring.postprocess import postprocess
from unisolo.cli.measuring.train import train

__all__ = ["benchmark", "evaluate", "latency", "memory", "model", "postprocess", "train"]
