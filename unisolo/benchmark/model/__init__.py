"""Images to masks beside a bare backbone and other models: `unisolo benchmark model`."""

from __future__ import annotations
