"""ONNX files by ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unisolo.graphs.base import Arrays, Graph, GraphError, read_facts
from unisolo.graphs.facts import KEY

__all__ = ["OnnxGraph"]

_PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}


class OnnxGraph(Graph):
    """An `.onnx` file.

    Args:
        path: The file.
        device: "auto" (CUDA where the runtime has it), "cpu", "cuda", "cuda:1" or "tensorrt".
        threads: Threads inside operators on the CPU; None = the runtime's choice.

    Raises:
        GraphError: If the file is damaged or not from this package.
        ValueError: If the installed runtime does not have the device.
        ImportError: If onnxruntime is not installed.
    """

    def __init__(self, path: Path, *, device: str = "auto", threads: int | None = None) -> None:
        try:
            import onnxruntime
        except ImportError:
            raise ImportError(
                f'{path}: ONNX files need onnxruntime: pip install "unisolo[export]"'
            ) from None
        options = onnxruntime.SessionOptions()
        if threads is not None:
            options.intra_op_num_threads = threads
            options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors; warnings are about its own optimisations
        providers = _providers(device, onnxruntime.get_available_providers())
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        # Its own errors have no common base.
        except Exception as error:
            raise GraphError(f"{path}: ONNX Runtime cannot open it ({error})") from None
        used = self._session.get_providers()
        if device != "auto" and providers and _name(providers[0]) not in used:
            raise ValueError(
                f"device {device!r} was refused by ONNX Runtime, which would run on "
                f"{', '.join(used)} instead; its libraries (CUDA, cuDNN, TensorRT) are missing or "
                "of another version"
            )
        text = self._session.get_modelmeta().custom_metadata_map.get(KEY)
        super().__init__(path, read_facts(path, text))

    def _run(self, inputs: Arrays) -> list[NDArray[np.generic]]:
        outputs: list[NDArray[np.generic]] = self._session.run(list(self.facts.outputs), inputs)
        return outputs


def _name(provider: Any) -> str:
    return provider if isinstance(provider, str) else str(provider[0])


def _providers(device: str, available: list[str]) -> list[Any]:
    name, _, number = device.partition(":")
    if device == "auto":
        name = "cuda" if _PROVIDERS["cuda"] in available else "cpu"
    provider = _PROVIDERS.get(name)
    if provider is None or provider not in available or (number and not number.isdecimal()):
        raise ValueError(
            f"device {device!r} cannot be used for an ONNX file here; this onnxruntime has "
            f"{', '.join(key for key, value in _PROVIDERS.items() if value in available)}"
        )
    chosen: list[Any] = [(provider, {"device_id": int(number)}) if number else provider]
    # Operators that the first does not have run on the next.
    if name == "tensorrt" and _PROVIDERS["cuda"] in available:
        chosen.append(_PROVIDERS["cuda"])
    return chosen if name == "cpu" else [*chosen, _PROVIDERS["cpu"]]
