"""The ways to run a model that are measured: each takes an image and gives the instances."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unisolo.benchmark.models import input_image, random_model
from unisolo.export import convert_graph, export_checkpoint
from unisolo.export.quantize import quantize_onnx
from unisolo.graphs import open_graph, select
from unisolo.models import UniSolo

__all__ = ["ENGINES", "Call", "Subject"]

Call = Callable[[Tensor, Tensor], int]
"""Runs images [1, 3, H, W] with their sizes [1, 2]; gives the number of instances."""

CALIBRATION_IMAGES = 2
"""For int8: ranges of random weights mean nothing, and the time does not depend on them."""


@dataclass(frozen=True)
class Subject:
    """One model at one size, and where its graphs lie.

    Attributes:
        config: The model's configuration file.
        size: (H, W) of the input.
        fixed: Whether graphs are made for this size and one image alone.
        folder: For the graphs. Those that are there already are used.
    """

    config: Path
    size: tuple[int, int]
    fixed: bool
    folder: Path

    @cached_property
    def model(self) -> UniSolo:
        """The model; built when first asked for."""
        return random_model(self.config)

    def build(self) -> None:
        """Build the model now."""
        _ = self.model

    def graph(self, suffix: str) -> Path:
        """Export the model to a file of this ending, unless it is there."""
        path = self._path("", ".onnx")
        if not path.exists():
            fixed: dict[str, Any] = {"image_size": self.size, "batch": 1} if self.fixed else {}
            export_checkpoint(self.model, path, images=None, **fixed)
        return _converted(path, suffix)

    def int8_graph(self, suffix: str) -> Path:
        """Make the int8 file of this ending, unless it is there."""
        path = self._path("-int8", ".onnx")
        if not path.exists():
            images = [
                input_image(self.size, seed)[0].permute(1, 2, 0).numpy()
                for seed in range(1, CALIBRATION_IMAGES + 1)
            ]
            quantize_onnx(self.graph(".onnx"), path, images)
        return _converted(path, suffix)

    def _path(self, kind: str, suffix: str) -> Path:
        size = f"-{self.size[0]}x{self.size[1]}" if self.fixed else ""
        return self.folder / f"{self.config.stem}{size}{kind}{suffix}"


@dataclass(frozen=True)
class Engine:
    """One way to run a model.

    Attributes:
        prepare: Makes the files it needs.
        open: Makes it ready, for a number of threads.
    """

    prepare: Callable[[Subject], object]
    open: Callable[[Subject, int], Call]


def _eager(subject: Subject, threads: int) -> Call:
    return _torch_call(subject.model, subject.model)


def _compiled(subject: Subject, threads: int) -> Call:
    # The network alone: the post-process compiles too but does not gain from it.
    return _torch_call(subject.model, torch.compile(subject.model))


def _torch_call(model: UniSolo, network: Callable[..., Any]) -> Call:
    if model.config is None:
        raise ValueError("this model carries no configuration; build it with unisolo.build_model")
    settings = model.config.inference

    @torch.inference_mode()
    def call(images: Tensor, image_sizes: Tensor) -> int:
        found = select(network(images, image_sizes), model.grid, settings)
        return int(found.instances.valid.sum())

    return call


def _graph_call(path: Path, threads: int) -> Call:
    graph = open_graph(path, device="cpu", threads=threads)

    def call(images: Tensor, image_sizes: Tensor) -> int:
        return int(graph.run(images, image_sizes)["count"][0])

    return call


def _converted(path: Path, suffix: str) -> Path:
    """An `.onnx` file in the format of this ending; converted unless it is there."""
    wanted = path.with_suffix(suffix)
    if not wanted.exists():
        convert_graph(path, wanted)
    return wanted


def _nothing(subject: Subject) -> None:
    """Torch needs no file."""


ENGINES: dict[str, Engine] = {
    "eager": Engine(_nothing, _eager),
    "compiled": Engine(_nothing, _compiled),
    "onnxruntime": Engine(
        lambda subject: subject.graph(".onnx"),
        lambda subject, threads: _graph_call(subject.graph(".onnx"), threads),
    ),
    "openvino": Engine(
        lambda subject: subject.graph(".xml"),
        lambda subject, threads: _graph_call(subject.graph(".xml"), threads),
    ),
    "onnxruntime-int8": Engine(
        lambda subject: subject.int8_graph(".onnx"),
        lambda subject, threads: _graph_call(subject.int8_graph(".onnx"), threads),
    ),
    "openvino-int8": Engine(
        lambda subject: subject.int8_graph(".xml"),
        lambda subject, threads: _graph_call(subject.int8_graph(".xml"), threads),
    ),
}
"""Engines by name. "eager" is what the others are compared with."""
