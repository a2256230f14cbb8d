"""Exported graphs, opened by their runtimes, in the place of a model."""

from __future__ import annotations

from unisolo.graphs.base import Graph, GraphError, Selected, fit_images
from unisolo.graphs.facts import GraphFacts, Size
from unisolo.graphs.open import SUFFIXES, is_graph, open_graph, select

__all__ = [
    "SUFFIXES",
    "Graph",
    "GraphError",
    "GraphFacts",
    "Selected",
    "Size",
    "fit_images",
    "is_graph",
    "open_graph",
    "select",
]
