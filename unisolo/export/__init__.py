"""Trained models as graphs that run without this package: ONNX, `torch.export` and OpenVINO."""

from __future__ import annotations

from unisolo.export.command import ExportReport, convert_graph, export_checkpoint
from unisolo.export.graph import ExportGraph
from unisolo.export.quantize import QuantizeReport, quantize_onnx

__all__ = [
    "ExportGraph",
    "ExportReport",
    "QuantizeReport",
    "convert_graph",
    "export_checkpoint",
    "quantize_onnx",
]
