"""The post-process beside the reference-style chain: `unisolo benchmark postprocess`."""

from __future__ import annotations
