"""CUDA graphs of a function, one per shape of its inputs, the most used kept."""

from __future__ import annotations

import threading
import warnings
from collections import Counter
from collections.abc import Callable, Hashable
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

__all__ = ["CapturedCalls", "MostUsed", "copied", "first_line"]

WARM_UP = 3
"""Calls before a capture: kernels are compiled and tuned in them, which a capture cannot hold."""

_one_capture = threading.Lock()
"""A wait for the whole device, which a warm-up may contain, would break the capture of another
model in another thread."""

Value = TypeVar("Value")


class MostUsed(Generic[Value]):
    """A few values by key: those of the keys asked for most often.

    Making a CUDA graph costs several runs. Were the one used longest ago dropped, then shapes that
    take turns, one more than are kept, would each be captured at every call. Here a key takes the
    place of another only when it has been asked for more often.

    Args:
        keep: Most values kept.
    """

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self._values: dict[Hashable, Value] = {}
        self._asked: Counter[Hashable] = Counter()

    def __len__(self) -> int:
        return len(self._values)

    def ask(self, key: Hashable) -> Value | None:
        """Count the key, and return its value if there is one."""
        self._asked[key] += 1
        return self._values.get(key)

    def would_keep(self, key: Hashable) -> bool:
        """Whether a value of the key would be kept."""
        return not self.is_full() or self._asked[key] > self._asked[self._least()]

    def is_full(self) -> bool:
        """Whether a new value takes the place of another."""
        return len(self._values) >= self._keep

    def drop_least(self) -> None:
        """Drop the value of the key asked for least often."""
        del self._values[self._least()]

    def put(self, key: Hashable, value: Value) -> None:
        """Keep a value; there must be room."""
        self._values[key] = value

    def _least(self) -> Hashable:
        return min(self._values, key=self._asked.__getitem__)


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
        keep: Most graphs kept, see `MostUsed`; other calls launch every kernel by itself.
    """

    def __init__(self, device: torch.device, keep: int) -> None:
        self._device = device
        self._captured: MostUsed[_Captured] = MostUsed(keep)
        self._lock = threading.Lock()
        # After it, no stream touches the memory of the graphs.
        self._free = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()
        # Torch's own stream for captures is one for the process, on the device that came first.
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
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
            captured = self._captured.ask(key)
            if captured is None and self._captured.would_keep(key):
                with _one_capture:
                    captured = self._capture(key, call, inputs)
            if captured is None:
                return call(*(value.to(self._device) for value in inputs))
            for ours, theirs in zip(captured.inputs, inputs, strict=True):
                ours.copy_(theirs)
            captured.graph.replay()
            answer = copied(captured.answer)
            self._free.record(stream)
            return answer

    def _capture(
        self, key: Hashable, call: Callable[..., Any], inputs: tuple[Tensor, ...]
    ) -> _Captured | None:
        """Capture the call and keep it; None, with a warning, if it cannot be captured."""
        if self._captured.is_full():
            torch.cuda.synchronize()  # a graph that runs must not be dropped
            self._captured.drop_least()
        ours = tuple(value.to(self._device, copy=True) for value in inputs)
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            for _ in range(WARM_UP):
                call(*ours)
        current.wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        try:
            # "thread_local": what other threads do on the device meanwhile is not our capture's.
            with torch.cuda.graph(
                graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
            ):
                answer = call(*ours)
        # It has just run three times: whatever is wrong now is so of capturing it.
        except Exception as error:
            torch.cuda.set_stream(current)  # a capture that fails leaves its own
            self._works = False
            # Ending a capture that was broken fails too, and says less than what broke it.
            reason = first_line(error.__context__ or error)
            warnings.warn(
                f"CUDA graphs are not used, every kernel is launched by itself: {reason}",
                stacklevel=2,
            )
            return None
        captured = _Captured(graph, ours, answer)
        self._captured.put(key, captured)
        return captured


def first_line(error: BaseException) -> str:
    """Return what an error says, in short; its type where it says nothing."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")


def copied(value: Any) -> Any:
    """Return a copy of tensors in (named) tuples and dicts."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {name: copied(item) for name, item in value.items()}
    items = [copied(item) for item in value]
    return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
