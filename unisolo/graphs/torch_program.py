"""`.pt2` files by torch alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from unisolo.devices import resolve_device
from unisolo.graphs.base import Arrays, Graph, GraphError, read_facts
from unisolo.graphs.facts import KEY

__all__ = ["EXTRA_FILE", "TorchGraph"]

EXTRA_FILE = f"{KEY}.json"
"""Name of the facts inside a `.pt2` file."""


class TorchGraph(Graph):
    """A `.pt2` file, made by `torch.export`.

    Args:
        path: The file.
        device: "auto" or any torch device.
        threads: Not used: torch's threads belong to the process (`torch.set_num_threads`).

    Raises:
        GraphError: If the file is damaged or not from this package.
        ValueError: If the device is not there.
    """

    def __init__(self, path: Path, *, device: str = "auto", threads: int | None = None) -> None:
        extra = {EXTRA_FILE: ""}
        try:
            program = torch.export.load(str(path), extra_files=extra)
        # Damaged archives raise many types.
        except Exception as error:
            raise GraphError(f"{path}: torch.export cannot open it ({error})") from None
        text: str | bytes = extra[EXTRA_FILE]
        super().__init__(path, read_facts(path, text if isinstance(text, str) else text.decode()))
        self._place = resolve_device(device)
        if self._place.type != "cpu":
            from torch.export.passes import move_to_device_pass

            program = move_to_device_pass(program, str(self._place))
        # Its guards take one-pixel feature maps (inputs of 32 or 64) for another memory layout and
        # refuse them; the operators themselves take any size.
        try:
            self._module = program.module(check_guards=False)
        except TypeError:
            raise ImportError(f"{path}: .pt2 files need torch 2.9 or later") from None

    def _run(self, inputs: Arrays) -> list[NDArray[np.generic]]:
        with torch.inference_mode():
            tensors = [torch.from_numpy(value).to(self._place) for value in inputs.values()]
            return [output.cpu().numpy() for output in self._module(*tensors)]
