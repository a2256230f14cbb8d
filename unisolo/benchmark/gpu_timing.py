"""Timing on a GPU: several ways to do one thing, launched eagerly or replayed from CUDA graphs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch

from unisolo.benchmark.timing import TURN, Timing

__all__ = ["peak_bytes", "tf32", "time_on_gpu"]

CAPTURED = 10
"""Calls in one graph: what starting the graph costs is shared by so many."""

WARM_UP = 3
"""Calls before anything is captured or timed: kernels are compiled and tuned in the first ones."""


def time_on_gpu(
    calls: Mapping[str, Callable[[], object]], repeat: int, *, graph: bool
) -> dict[str, Timing]:
    """Time each of some calls `repeat` times between CUDA events on the current device.

    Eager: one call from Python between two events on an idle GPU, so the time holds what launching
    costs, and any wait inside the call. Graph: `CAPTURED` calls are captured once in a CUDA graph;
    a timed run is one replay, started while an untimed replay still keeps the GPU busy, divided by
    their number: what the kernels and the gaps between them take. The calls take turns as in
    `unisolo.benchmark.timing.time_in_turns`.

    Args:
        calls: What to time, by name. For a graph they must not wait for the device.
        repeat: Timed runs of each, at least 1.
        graph: Replay CUDA graphs instead of calling.

    Returns:
        Timings by name, in milliseconds per call; `cpu` is the processor time of one call or of its
        share of a replay.

    Raises:
        ValueError: If there is no CUDA device or `repeat` is below 1.
        RuntimeError: If a call cannot be captured.
    """
    if not torch.cuda.is_available():
        raise ValueError("timing on a GPU needs a CUDA device, and torch finds none")
    if repeat < 1:
        raise ValueError(f"the number of timed runs must be at least 1, got {repeat}")
    runs = {name: _graph_run(name, call) if graph else _eager(call) for name, call in calls.items()}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for start in range(0, repeat, TURN):
        for name, run in runs.items():
            run()
            times[name] += [run() for _ in range(min(TURN, repeat - start))]
    return {name: _summary(found) for name, found in times.items()}


def peak_bytes(call: Callable[[], object]) -> int:
    """Return what a call allocates at most on the current CUDA device, beyond what was there.

    Args:
        call: Run twice; kernels that are compiled in the first run do not count.

    Returns:
        Bytes of torch's allocator, outputs included.
    """
    call()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Allow or forbid TF32 in float32 matrix products and convolutions inside.

    Args:
        allowed: True rounds float32 inputs to 10 bits of mantissa, as tensor cores take them.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32, cudnn.allow_tf32 = allowed, allowed
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


Run = Callable[[], tuple[float, float]]
"""One timed run: milliseconds per call on the GPU, and of the processor."""


def _eager(call: Callable[[], object]) -> Run:
    for _ in range(WARM_UP):
        call()

    def run() -> tuple[float, float]:
        start, end = _events()
        torch.cuda.synchronize()
        cpu = time.process_time()
        start.record()
        call()
        end.record()
        cpu = time.process_time() - cpu
        end.synchronize()
        return start.elapsed_time(end), 1e3 * cpu

    return run


def _graph_run(name: str, call: Callable[[], object]) -> Run:
    captured = _capture(name, call)

    def run() -> tuple[float, float]:
        start, end = _events()
        torch.cuda.synchronize()
        captured.replay()  # keeps the GPU busy until everything below has been submitted
        start.record()
        cpu = time.process_time()
        captured.replay()
        cpu = time.process_time() - cpu
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / CAPTURED, 1e3 * cpu / CAPTURED

    return run


def _capture(name: str, call: Callable[[], object]) -> torch.cuda.CUDAGraph:
    # A stream of its own for the warm-up, as torch's notes on CUDA graphs ask for.
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            call()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    captured = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(captured):
            for _ in range(CAPTURED):
                call()
    except RuntimeError as error:
        raise RuntimeError(
            f"{name} cannot be captured in a CUDA graph (does it wait for the device?): {error}"
        ) from error
    return captured


def _events() -> tuple[torch.cuda.Event, torch.cuda.Event]:
    start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    return start, end


def _summary(times: list[tuple[float, float]]) -> Timing:
    gpu, cpu = zip(*times, strict=True)
    return Timing(
        median=statistics.median(gpu),
        least=min(gpu),
        most=max(gpu),
        cpu=statistics.median(cpu),
        calls=len(times),
    )
