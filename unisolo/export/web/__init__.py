"""A folder that runs a model in the user's browser, from any server of files."""

from __future__ import annotations

from unisolo.export.web.folder import export_web, graph_to_web
from unisolo.export.web.runtime import RUNTIME_VERSION, runtime_files

__all__ = ["RUNTIME_VERSION", "export_web", "graph_to_web", "runtime_files"]
