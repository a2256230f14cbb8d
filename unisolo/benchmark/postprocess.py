"""How long the post-process takes: this package's against the reference-style chain, in one run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch

from unisolo.benchmark.floor import Ceilings, Work, floors, measure_ceilings
from unisolo.benchmark.gpu_timing import peak_bytes, tf32, time_on_gpu
from unisolo.benchmark.machine import describe_machine
from unisolo.benchmark.postprocess_checks import Agreement, compare_answers
from unisolo.benchmark.postprocess_ways import (
    PLACES,
    Answer,
    Problem,
    Start,
    package_call,
    reference_call,
)
from unisolo.benchmark.pruning import OURS, WITHOUT_WAITING, pruning_calls, pruning_inputs
from unisolo.benchmark.scenes import SCENES, SceneName, make_scene
from unisolo.benchmark.timing import Timing, time_in_turns
from unisolo.ops.backend import backend_for, use_kernels

__all__ = ["PostprocessReport", "PostprocessRow", "PruningRow", "measure_postprocess"]

Mode = Literal["eager", "graph"]

REFERENCE, REFERENCE_TF32, DEFINITION = "reference", "reference, TF32", "ours, torch"
"""Ways; the fastest reference is what the others are compared with."""

TWINS = {"cpu": "ours, CPU", "triton": "ours, Triton"}
CHANNELS = 256

Call = Callable[[], Answer]


@dataclass(frozen=True)
class PostprocessRow:
    """One way through the whole post-process of one scene.

    Attributes:
        scene: A key of `SCENES`.
        candidates: How many.
        start: "candidates" or "logits".
        way: Whose operations.
        mode: Launched from Python, or replayed from a CUDA graph.
        timing: In milliseconds.
        peak_mib: Device memory beyond the inputs, MiB; None on a CPU.
        speedup: Median of the fastest reference over this one.
        cpu_speedup: The same of processor time; None on a GPU.
        of_floor: This median over the floor; on a CPU both are processor time.
        agreement: With the reference in float32.
    """

    scene: str
    candidates: int
    start: Start
    way: str
    mode: Mode
    timing: Timing
    peak_mib: float | None
    speedup: float
    cpu_speedup: float | None
    of_floor: float
    agreement: Agreement


@dataclass(frozen=True)
class PruningRow:
    """One way to prune the masks of one scene, overlaps included.

    Attributes:
        scene: A key of `SCENES`.
        masks: How many entered.
        way: Which.
        mode: Launched from Python, or replayed from a CUDA graph.
        timing: In milliseconds.
        of_ours: This median over that of our Matrix NMS in the same mode.
    """

    scene: str
    masks: int
    way: str
    mode: Mode
    timing: Timing
    of_ours: float


@dataclass(frozen=True)
class PostprocessReport:
    """All rows and what they were measured on.

    Attributes:
        machine: See `describe_machine`.
        device: "cpu" or "cuda".
        threads: Of the CPU's operations.
        dtype: Of kernels and mask features.
        image_size: (H, W).
        feature_size: (h, w).
        channels: E.
        ceilings: What the device does at most.
        floors: Milliseconds of each stage at least, by number of candidates (see `floors`).
        rows: Of the whole post-process.
        pruning: Of pruning alone.
    """

    machine: dict[str, Any]
    device: str
    threads: int
    dtype: str
    image_size: tuple[int, int]
    feature_size: tuple[int, int]
    channels: int
    ceilings: Ceilings
    floors: dict[int, dict[str, float]]
    rows: tuple[PostprocessRow, ...]
    pruning: tuple[PruningRow, ...]

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return asdict(self)


def measure_postprocess(
    *,
    scenes: Sequence[str] = tuple(SCENES),
    candidates: Sequence[int] | None = None,
    image_size: tuple[int, int] | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device,
    repeat: int = 10,
    threads: int = 1,
    tell: Callable[[str], None] = lambda text: None,
) -> PostprocessReport:
    """Measure the post-process of drawn scenes from candidates and from logits to masks.

    Args:
        scenes: Keys of `SCENES`.
        candidates: Numbers of candidates; None = 100, 300, 500 and 1000 on a GPU, 100 and 300 on a
            CPU.
        image_size: (H, W); None = 800 x 1333 on a GPU, 608 x 800 on a CPU.
        dtype: Of kernels and mask features; None = bfloat16 on a GPU, float32 on a CPU.
        device: A CUDA device, or the CPU.
        repeat: Timed runs of each way.
        threads: Of torch's operations on the CPU.
        tell: Gets one line per step.

    Returns:
        The report.

    Raises:
        ValueError: If a name is unknown, a number out of range or the device another one.
    """
    unknown = [name for name in scenes if name not in SCENES]
    if unknown or not scenes:
        raise ValueError(
            f"unknown scene {', '.join(unknown) or '(none)'}; choose from {', '.join(SCENES)}"
        )
    if repeat < 1 or threads < 1:
        raise ValueError(f"timed runs and threads must be at least 1, got {repeat} and {threads}")
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"the post-process is measured on cpu or cuda, got {device}")
    chosen: list[SceneName] = [name for name in SCENES if name in scenes]
    on_gpu = device.type == "cuda"
    candidates = candidates or ((100, 300, 500, 1000) if on_gpu else (100, 300))
    image_size = image_size or ((800, 1333) if on_gpu else (608, 800))
    dtype = dtype or (torch.bfloat16 if on_gpu else torch.float32)
    rows: list[PostprocessRow] = []
    pruning: list[PruningRow] = []
    with _settings(device, threads):
        tell("measuring what the device does at most")
        ceilings = measure_ceilings(device, dtype, repeat)
        least: dict[int, dict[str, float]] = {}
        for count in dict.fromkeys(candidates):
            for name in chosen:
                tell(f"{name}, {count} candidates")
                scene = make_scene(
                    name, count, image_size, channels=CHANNELS, dtype=dtype, device=device
                )
                problem = Problem.of(scene)
                least[count] = floors(_work(problem), ceilings)
                for start in get_args(Start):
                    rows += _rows(problem, start, least[count], repeat)
                pruning += _pruning_rows(problem, repeat)
    return PostprocessReport(
        machine=describe_machine(),
        device=device.type,
        threads=threads,
        dtype=str(dtype).removeprefix("torch."),
        image_size=image_size,
        feature_size=(scene.outputs.mask_features.shape[-2], scene.outputs.mask_features.shape[-1]),
        channels=CHANNELS,
        ceilings=ceilings,
        floors=least,
        rows=tuple(rows),
        pruning=tuple(pruning),
    )


@contextmanager
def _settings(device: torch.device, threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    current = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
    try:
        with current, torch.inference_mode(), tf32(False), use_kernels("auto"):
            yield
    finally:
        torch.set_num_threads(before)


def _work(problem: Problem) -> Work:
    features = problem.scene.outputs.mask_features
    return Work(
        candidates=len(problem.scene.candidates.scores),
        places=PLACES,
        channels=features.shape[1],
        pixels=features.shape[2] * features.shape[3],
        full_pixels=problem.scene.image_size[0] * problem.scene.image_size[1],
        value_bytes=features.element_size(),
        logits=problem.scene.outputs.category_logits.numel(),
    )


def _calls(problem: Problem, start: Start) -> dict[str, Call]:
    """Every way to take; the first is the reference in float32."""
    reference = reference_call(problem, start)
    ours = package_call(problem, start)
    device = problem.scene.outputs.kernels.device

    def rounded() -> Answer:
        with tf32(True):
            return reference()

    def definition() -> Answer:
        with use_kernels("torch"):
            return ours()

    calls: dict[str, Call] = {REFERENCE: reference}
    if device.type == "cuda":
        calls[REFERENCE_TF32] = rounded
    calls[DEFINITION] = definition
    twin = TWINS.get(backend_for(device))
    if twin is not None:
        calls[twin] = ours
    return calls


def _rows(
    problem: Problem, start: Start, least: Mapping[str, float], repeat: int
) -> list[PostprocessRow]:
    calls = _calls(problem, start)
    on_gpu = problem.scene.outputs.kernels.is_cuda
    width = problem.scene.image_size[1]
    answer = calls[REFERENCE]()
    agreements = {name: compare_answers(answer, call(), width) for name, call in calls.items()}
    timings: dict[tuple[str, Mode], Timing] = {
        (name, "eager"): timing for name, timing in _time(calls, repeat, on_gpu).items()
    }
    triton = TWINS["triton"]
    if triton in calls:
        replayed = time_on_gpu({triton: calls[triton]}, repeat, graph=True)
        timings[triton, "graph"] = replayed[triton]
    peaks = {name: peak_bytes(call) / 2**20 for name, call in calls.items()} if on_gpu else {}
    base = min(
        (timings[name, "eager"] for name in (REFERENCE, REFERENCE_TF32) if name in calls),
        key=lambda timing: timing.median,
    )
    floor = sum(value for stage, value in least.items() if stage != "selection")
    if start == "logits":
        floor += least["selection"]
    return [
        PostprocessRow(
            scene=problem.scene.name,
            candidates=len(problem.scene.candidates.scores),
            start=start,
            way=name,
            mode=mode,
            timing=timing,
            peak_mib=peaks.get(name),
            speedup=base.median / timing.median,
            cpu_speedup=None if on_gpu else base.cpu / timing.cpu,
            of_floor=(timing.median if on_gpu else timing.cpu) / floor,
            agreement=agreements[name],
        )
        for (name, mode), timing in timings.items()
    ]


def _pruning_rows(problem: Problem, repeat: int) -> list[PruningRow]:
    inputs = pruning_inputs(problem.scene)
    on_gpu = inputs.masks.is_cuda
    calls = pruning_calls(inputs)
    modes: dict[Mode, dict[str, Timing]] = {"eager": _time(calls, repeat, on_gpu)}
    if on_gpu:
        captured = {name: calls[name] for name in WITHOUT_WAITING}
        modes["graph"] = time_on_gpu(captured, repeat, graph=True)
    return [
        PruningRow(
            scene=problem.scene.name,
            masks=len(inputs.scores),
            way=name,
            mode=mode,
            timing=timing,
            of_ours=timing.median / timings[OURS].median,
        )
        for mode, timings in modes.items()
        for name, timing in timings.items()
    ]


def _time(
    calls: Mapping[str, Callable[[], object]], repeat: int, on_gpu: bool
) -> dict[str, Timing]:
    return time_on_gpu(calls, repeat, graph=False) if on_gpu else time_in_turns(calls, repeat)
