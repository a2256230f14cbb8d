"""Network parts: backbone, neck, heads, and the model that joins them."""

from __future__ import annotations

from unisolo.models.backbone import TimmBackbone
from unisolo.models.mask_head import MaskHead
from unisolo.models.neck import FPN
from unisolo.models.solo_head import SoloHead
from unisolo.models.static_masks import SeparateMaskHead
from unisolo.models.stuff_head import StuffHead
from unisolo.models.unisolo import UniSolo

__all__ = [
    "FPN",
    "MaskHead",
    "SeparateMaskHead",
    "SoloHead",
    "StuffHead",
    "TimmBackbone",
    "UniSolo",
]
