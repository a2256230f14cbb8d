"""Tracing a graph and writing it as ONNX, `.pt2` or OpenVINO, its facts inside the file."""

from __future__ import annotations

import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unisolo.export.graph import ExportGraph
from unisolo.files import write_atomically
from unisolo.graphs.facts import KEY, GraphFacts
from unisolo.graphs.torch_program import EXTRA_FILE
from unisolo.structures import GridSpec

__all__ = ["WRITERS", "onnx_to_openvino"]

OPSET = 18
"""ONNX operator set: the lowest with all that is needed, so that most runtimes know it."""

MAX_SIDE = 4096
"""Largest side that a graph with free sizes takes, in pixels."""


def write_onnx(graph: ExportGraph, facts: GraphFacts, path: Path) -> None:
    """Write an `.onnx` file, weights inside.

    Raises:
        ImportError: If onnx or onnxscript is not installed.
        OSError: If the file cannot be written.
    """
    program = _onnx_program(graph, facts)
    for node in program.model.graph:
        node.metadata_props.clear()  # the exporter's notes name files of this machine
    program.model.metadata_props[KEY] = facts.to_json()
    write_atomically(path, lambda temporary: program.save(temporary, external_data=False))


def write_torch(graph: ExportGraph, facts: GraphFacts, path: Path) -> None:
    """Write a `.pt2` file.

    Raises:
        OSError: If the file cannot be written.
    """
    inputs = _example_inputs(graph.model.grid, facts)
    with _quiet(), torch.no_grad():
        program = torch.export.export(
            graph, inputs, dynamic_shapes=_dynamic_shapes(facts), strict=False
        )
    extra = {EXTRA_FILE: facts.to_json()}
    write_atomically(
        path, lambda temporary: torch.export.save(program, temporary, extra_files=extra)
    )


def write_openvino(graph: ExportGraph, facts: GraphFacts, path: Path) -> None:
    """Write an `.xml` file and the weights beside it as `.bin`.

    Raises:
        ImportError: If openvino, onnx or onnxscript is not installed.
        OSError: If the files cannot be written.
    """
    with tempfile.TemporaryDirectory() as folder:
        middle = Path(folder) / "graph.onnx"
        write_onnx(graph, facts, middle)
        onnx_to_openvino(middle, facts, path)


def onnx_to_openvino(source: Path, facts: GraphFacts, path: Path) -> None:
    """Write an exported `.onnx` file, of any precision, as `.xml` and `.bin`.

    Raises:
        ImportError: If openvino is not installed.
        OSError: If the files cannot be written.
    """
    try:
        import openvino
    except ImportError:
        raise ImportError(
            'the OpenVINO format needs openvino: pip install "unisolo[export]"'
        ) from None
    path.parent.mkdir(parents=True, exist_ok=True)
    # Beside the final place, so that the files can be renamed into it.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}-") as folder:
        try:
            model = openvino.convert_model(str(source))
        except RuntimeError as error:  # with a long trace of its own
            raise ValueError(f"{source}: OpenVINO cannot convert it ({error})") from None
        model.set_rt_info(facts.to_json(), [KEY])
        made = Path(folder) / path.name
        openvino.save_model(model, str(made), compress_to_fp16=facts.precision == "fp16")
        # The .xml last: where it is, its weights are.
        for suffix in (".bin", ".xml"):
            os.replace(made.with_suffix(suffix), path.with_suffix(suffix))


WRITERS: dict[str, tuple[str, Callable[[ExportGraph, GraphFacts, Path], None]]] = {
    "onnx": (".onnx", write_onnx),
    "torch": (".pt2", write_torch),
    "openvino": (".xml", write_openvino),
}
"""Ending and writer of each format. A new format is one line here, and one where it is opened
(`unisolo.graphs.open`)."""


def _onnx_program(graph: ExportGraph, facts: GraphFacts) -> Any:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f'exporting to ONNX needs {error.name}: pip install "unisolo[export]"'
        ) from None
    with _quiet(), torch.no_grad():
        return torch.onnx.export(
            graph,
            _example_inputs(graph.model.grid, facts),
            dynamo=True,
            dynamic_shapes=_dynamic_shapes(facts),
            input_names=["images", "image_sizes"],
            output_names=list(graph.names),
            opset_version=OPSET,
            verbose=False,
        )


def _dynamic_shapes(facts: GraphFacts) -> dict[str, dict[int, Any]] | None:
    batch = {} if facts.batch is not None else {0: torch.export.Dim("batch", min=1, max=1024)}
    sides = {}
    if facts.image_size is None:
        for place, name in ((2, "height"), (3, "width")):
            sides[place] = 32 * torch.export.Dim(f"{name}_32", min=1, max=MAX_SIDE // 32)
    return {"images": {**batch, **sides}, "image_sizes": dict(batch)}


def _example_inputs(grid: GridSpec, facts: GraphFacts) -> tuple[Tensor, Tensor]:
    """Inputs to trace with.

    Free sizes must not coincide with constants of the model: a feature map of exactly the size of a
    grid is not resized, and the graph would then never resize.
    """
    batch = facts.batch or 2
    height, width = facts.image_size or _unlike_grids(grid)
    dtype = torch.uint8 if facts.image_dtype == "uint8" else torch.float32
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (batch, 3, height, width), generator=generator).to(dtype)
    return images, torch.tensor([[height, width]]).repeat(batch, 1)


def _unlike_grids(grid: GridSpec) -> tuple[int, int]:
    def free(side: int) -> bool:
        return all(side // stride not in grid.sizes for stride in (4, 8, 16, 32, 64))

    sides = [side for side in range(160, MAX_SIDE, 32) if free(side)]
    return next((height, width) for width, height in product(sides, sides) if height < width)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' remarks about themselves off the user's screen."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
