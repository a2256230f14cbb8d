"""OpenVINO files (`.xml` with its `.bin` beside it)."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unisolo.graphs.base import Arrays, Graph, GraphError, read_facts
from unisolo.graphs.facts import KEY

__all__ = ["OpenVinoGraph"]


class OpenVinoGraph(Graph):
    """An `.xml` file.

    Args:
        path: The file.
        device: "auto" or "cpu" = the CPU; or any OpenVINO device, e.g. "GPU" or "NPU".
        threads: Threads on the CPU; None = the runtime's choice.

    Raises:
        GraphError: If the file is damaged or not from this package.
        ValueError: If the device is not there.
        ImportError: If openvino is not installed.
    """

    def __init__(self, path: Path, *, device: str = "auto", threads: int | None = None) -> None:
        try:
            import openvino
        except ImportError:
            raise ImportError(
                f'{path}: OpenVINO files need openvino: pip install "unisolo[export]"'
            ) from None
        core = openvino.Core()
        name = "CPU" if device in ("auto", "cpu") else device
        if name.partition(".")[0] not in {found.partition(".")[0] for found in _devices(core)}:
            raise ValueError(
                f"device {device!r} cannot be used for an OpenVINO file here; it sees "
                f"{', '.join(_devices(core))}"
            )
        try:
            model = core.read_model(str(path))
        except Exception as error:  # RuntimeError with a long trace of its own
            raise GraphError(
                f"{path}: OpenVINO cannot open it; is the .bin file beside it? ({error})"
            ) from None
        text = model.get_rt_info([KEY]).astype(str) if model.has_rt_info([KEY]) else None
        super().__init__(path, read_facts(path, text))
        # Its own default may be bf16, which moves scores.
        options: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
        if name == "CPU":
            options["INFERENCE_PRECISION_HINT"] = "f32"
            if threads is not None:
                options["INFERENCE_NUM_THREADS"] = threads
        try:
            self._compiled = core.compile_model(model, name, options)
        except Exception as error:  # as above
            raise GraphError(f"{path}: OpenVINO cannot compile it for {name} ({error})") from None
        self._local = threading.local()  # a request belongs to one thread

    def _run(self, inputs: Arrays) -> list[NDArray[np.generic]]:
        request = getattr(self._local, "request", None)
        if request is None:
            request = self._local.request = self._compiled.create_infer_request()
        found = request.infer(inputs)
        return [found[name] for name in self.facts.outputs]


def _devices(core: Any) -> list[str]:
    return [str(name) for name in core.available_devices]
