"""CUDA graphs of a function, one per shape of its inputs, the most recently used kept."""

from __future__ import annotations

import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["CapturedCalls", "copied"]

WARM_UP = 3
"""Calls before a capture: kernels are compiled and tuned in them, which a capture cannot hold."""


class _Captured(NamedTuple):
    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    answer: Any


class CapturedCalls:
    """Replays a function of tensors from CUDA graphs; several threads and streams may share it.

    A graph reads and writes fixed memory, so inputs are copied in and the answer is copied out
    before anybody else may replay. All graphs share one pool of memory for what lies between.

    Args:
        device: A CUDA device.
        keep: Most graphs kept; the one used longest ago is dropped for a new one.
    """

    def __init__(self, device: torch.device, keep: int) -> None:
        self._device = device
        self._keep = keep
        self._captured: OrderedDict[Hashable, _Captured] = OrderedDict()
        self._lock = threading.Lock()
        # After it, no stream touches the memory of the graphs.
        self._free = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()
        self._works = True

    def __len__(self) -> int:
        return len(self._captured)

    def __call__(self, key: Hashable, call: Callable[..., Any], inputs: tuple[Tensor, ...]) -> Any:
        """Return what `call(*inputs)` returns.

        Args:
            key: Whatever, besides the inputs' shapes and dtypes, decides what the call does.
            call: Never waits for the device. It returns tensors in tuples and dicts.
            inputs: Tensors on any device.
        """
        with self._lock, torch.cuda.device(self._device):
            if not self._works:
                return call(*(value.to(self._device) for value in inputs))
            key = (key, *((tuple(value.shape), value.dtype) for value in inputs))
            stream = torch.cuda.current_stream()
            stream.wait_event(self._free)
            captured = self._captured.pop(key, None)
            if captured is None:
                captured = self._capture(call, inputs)
            if captured is None:
                return call(*(value.to(self._device) for value in inputs))
            self._captured[key] = captured
            for ours, theirs in zip(captured.inputs, inputs, strict=True):
                ours.copy_(theirs)
            captured.graph.replay()
            answer = copied(captured.answer)
            self._free.record(stream)
            return answer

    def _capture(self, call: Callable[..., Any], inputs: tuple[Tensor, ...]) -> _Captured | None:
        """Capture the call; None, with a warning, if it cannot be captured."""
        if len(self._captured) >= self._keep:
            torch.cuda.synchronize()  # a graph that runs must not be dropped
            self._captured.popitem(last=False)
        ours = tuple(value.to(self._device, copy=True) for value in inputs)
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        current = torch.cuda.current_stream()
        side.wait_stream(current)
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                call(*ours)
        current.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        try:
            # "thread_local": what other threads do on the device meanwhile is not our capture's.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                answer = call(*ours)
        # It has just run three times: whatever is wrong now is so of capturing it.
        except Exception as error:
            torch.cuda.set_stream(current)  # a capture that fails leaves its own
            self._works = False
            reason = str(error).splitlines()[0]
            warnings.warn(
                f"CUDA graphs are not used, every kernel is launched by itself: {reason}",
                stacklevel=2,
            )
            return None
        return _Captured(graph, ours, answer)


def copied(value: Any) -> Any:
    """Return a copy of tensors in (named) tuples and dicts."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {name: copied(item) for name, item in value.items()}
    items = [copied(item) for item in value]
    return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
