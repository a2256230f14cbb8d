"""Checkpoints of other SOLOv2 codes in: SOLO, mmdetection and AdelaiDet."""

from __future__ import annotations

from unisolo.convert.conversion import ConversionReport, convert_checkpoint, convert_weights
from unisolo.convert.reading import ConversionError

__all__ = ["ConversionError", "ConversionReport", "convert_checkpoint", "convert_weights"]
