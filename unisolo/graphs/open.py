"""Opening exported files by their endings, and selecting instances from either kind of model."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from unisolo.config import InferenceConfig
from unisolo.graphs.base import Graph, GraphError, Selected
from unisolo.ops.select import select_instances
from unisolo.reading import file_problem
from unisolo.structures import GridSpec, Outputs

__all__ = ["SUFFIXES", "is_graph", "open_graph", "select"]


def _onnx(path: Path, device: str, threads: int | None) -> Graph:
    from unisolo.graphs.onnx import OnnxGraph

    return OnnxGraph(path, device=device, threads=threads)


def _openvino(path: Path, device: str, threads: int | None) -> Graph:
    from unisolo.graphs.openvino import OpenVinoGraph

    return OpenVinoGraph(path, device=device, threads=threads)


def _torch(path: Path, device: str, threads: int | None) -> Graph:
    from unisolo.graphs.torch_program import TorchGraph

    return TorchGraph(path, device=device, threads=threads)


_OPENERS: dict[str, Callable[[Path, str, int | None], Graph]] = {
    ".onnx": _onnx,
    ".xml": _openvino,
    ".pt2": _torch,
}

SUFFIXES = tuple(_OPENERS)
"""Endings of exported files."""


def is_graph(path: str | os.PathLike[str]) -> bool:
    """Tell by its ending whether a path is that of an exported graph."""
    return Path(path).suffix.lower() in _OPENERS


def open_graph(
    path: str | os.PathLike[str], *, device: str = "auto", threads: int | None = None
) -> Graph:
    """Open an exported graph with its runtime.

    Args:
        path: An `.onnx` (ONNX Runtime), `.xml` (OpenVINO) or `.pt2` (torch) file.
        device: "auto"; "cpu"; for ONNX "cuda", "cuda:1" or "tensorrt"; for OpenVINO any of its
            devices, e.g. "GPU"; for `.pt2` any torch device.
        threads: Threads of one run on the CPU; None = the runtime's choice.

    Raises:
        GraphError: If the file is missing, damaged or not from this package.
        ValueError: If the device is not there.
        ImportError: If the runtime is not installed.
    """
    path = Path(path)
    problem = file_problem(path, "exported graph")
    if problem is not None:
        raise GraphError(f"{path}: {problem}")
    if not is_graph(path):
        raise GraphError(
            f"{path}: no exported graph has this ending; they are {', '.join(SUFFIXES)}"
        )
    return _OPENERS[path.suffix.lower()](path, device, threads)


def select(
    outputs: Outputs | Selected, grid: GridSpec | None, settings: InferenceConfig
) -> Selected:
    """Select instances, unless a graph has done it.

    Args:
        outputs: Of a model or of a graph.
        grid: The model's; not read for a graph.
        settings: Thresholds.
    """
    if isinstance(outputs, Selected):
        return outputs
    if grid is None:
        raise ValueError("raw outputs need the model's grid")
    instances = select_instances(
        outputs, grid, chunk_pixels=settings.chunk_pixels, **settings.select_arguments()
    )
    return Selected(instances, outputs.extras)
