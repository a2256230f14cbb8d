"""Training beside Mask R-CNN: `unisolo benchmark train`."""

from __future__ import annotations
