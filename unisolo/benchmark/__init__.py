"""Measurements of this package on this machine: the work of `tools/benchmark.py`."""

from __future__ import annotations
