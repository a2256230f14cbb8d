"""HTML pages that need nothing but themselves: those of the doctor and of the report."""

from __future__ import annotations

from unisolo.pages.parts import data_uri, page_environment

__all__ = ["data_uri", "page_environment"]
