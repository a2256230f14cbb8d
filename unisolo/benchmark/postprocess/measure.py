"""How long the post-process takes: this package's against the reference-style chain, in one run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import get_args

import torch

from unisolo.benchmark.gpu_timing import peak_bytes, tf32, time_on_gpu
from unisolo.benchmark.machine import describe_machine
from unisolo.benchmark.postprocess.checks import compare_answers, count_wrong
from unisolo.benchmark.postprocess.floor import Work, floors, measure_ceilings
from unisolo.benchmark.postprocess.goals import OURS
from unisolo.benchmark.postprocess.pruning import (
    OUR_NMS,
    WITHOUT_WAITING,
    PruningInputs,
    pruning_calls,
    pruning_inputs,
)
from unisolo.benchmark.postprocess.report import (
    Mode,
    PostprocessReport,
    PostprocessRow,
    PruningRow,
    StageRow,
)
from unisolo.benchmark.postprocess.scenes import (
    SCENES,
    Scene,
    SceneName,
    check_candidates,
    make_scene,
)
from unisolo.benchmark.postprocess.stages import (
    KernelStages,
    cpu_wrong_intersections,
    operation_calls,
)
from unisolo.benchmark.postprocess.ways import (
    PLACES,
    Answer,
    Problem,
    Start,
    package_call,
    reference_call,
)
from unisolo.benchmark.timing import Timing, time_in_turns
from unisolo.ops.backend import backend_for, use_kernels
from unisolo.ops.masks import mask_intersections

__all__ = ["measure_postprocess"]

REFERENCE, REFERENCE_TF32, DEFINITION = "reference", "reference, TF32", "ours, torch"
"""Ways; the fastest reference is what the others are compared with."""

TWINS = {"cpu": OURS["cpu"], "triton": OURS["cuda"]}
CHANNELS = 256

Call = Callable[[], Answer]


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
    check_candidates(candidates)
    image_size = image_size or ((800, 1333) if on_gpu else (608, 800))
    if min(image_size) < 1:
        raise ValueError(f"the image must be at least 1 x 1, got {image_size[0]} x {image_size[1]}")
    dtype = dtype or (torch.bfloat16 if on_gpu else torch.float32)
    rows: list[PostprocessRow] = []
    stages: list[StageRow] = []
    pruning: list[PruningRow] = []
    wrong: dict[str, int] = {}
    with _settings(device, threads):
        machine = describe_machine()  # of the device that is measured
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
                    found = _rows(problem, start, least[count], repeat)
                    for row in found:
                        tell(
                            f"  from {start}, {row.way}, {row.mode}: "
                            f"{row.timing.median:.3g} ms, {row.speedup:.2f} x"
                        )
                    rows += found
                stages += _stage_rows(problem, least[count], repeat)
                inputs = pruning_inputs(scene)
                pruning += _pruning_rows(name, inputs, repeat)
                wrong[f"{name}, {count}"] = _wrong_intersections(scene, inputs)
    return PostprocessReport(
        machine=machine,
        device=device.type,
        threads=threads,
        dtype=str(dtype).removeprefix("torch."),
        image_size=image_size,
        feature_size=(scene.outputs.mask_features.shape[-2], scene.outputs.mask_features.shape[-1]),
        channels=CHANNELS,
        ceilings=ceilings,
        floors=least,
        rows=tuple(rows),
        stages=tuple(stages),
        wrong_intersections=wrong,
        pruning=tuple(pruning),
    )


@contextmanager
def _settings(device: torch.device, threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    current = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
    try:
        with current, torch.no_grad(), tf32(False), use_kernels("auto"):
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
    backend = backend_for(device)
    if backend == "triton" and start == "candidates":
        calls[TWINS[backend]] = KernelStages(problem.scene).answer
    elif backend in TWINS:
        calls[TWINS[backend]] = ours
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
            of_floor=_cost(timing, on_gpu) / floor,
            agreement=agreements[name],
        )
        for (name, mode), timing in timings.items()
    ]


def _stage_rows(problem: Problem, least: Mapping[str, float], repeat: int) -> list[StageRow]:
    scene = problem.scene
    device = scene.outputs.kernels.device
    triton = backend_for(device) == "triton"
    calls = KernelStages(scene).calls() if triton else operation_calls(problem)
    on_gpu = device.type == "cuda"
    modes: dict[Mode, dict[str, Timing]] = {"eager": _time(calls, repeat, on_gpu)}
    if triton:
        modes["graph"] = time_on_gpu(calls, repeat, graph=True)
    return [
        StageRow(scene.name, len(scene.candidates.scores), stage, mode, timing, least.get(stage))
        for mode, timings in modes.items()
        for stage, timing in timings.items()
    ]


def _wrong_intersections(scene: Scene, inputs: PruningInputs) -> int:
    if backend_for(inputs.masks.device) == "triton":
        return KernelStages(scene).wrong_intersections()
    if inputs.masks.is_cuda:  # the definition
        flat = inputs.masks.flatten(1)
        return count_wrong(mask_intersections(flat), flat, inputs.labels)
    return cpu_wrong_intersections(inputs.masks, inputs.labels)


def _pruning_rows(scene: str, inputs: PruningInputs, repeat: int) -> list[PruningRow]:
    on_gpu = inputs.masks.is_cuda
    calls = pruning_calls(inputs)
    modes: dict[Mode, dict[str, Timing]] = {"eager": _time(calls, repeat, on_gpu)}
    if on_gpu:
        captured = {name: calls[name] for name in WITHOUT_WAITING}
        modes["graph"] = time_on_gpu(captured, repeat, graph=True)
    return [
        PruningRow(
            scene=scene,
            masks=len(inputs.scores),
            way=name,
            mode=mode,
            timing=timing,
            of_ours=_cost(timing, on_gpu) / _cost(timings[OUR_NMS], on_gpu),
        )
        for mode, timings in modes.items()
        for name, timing in timings.items()
    ]


def _cost(timing: Timing, on_gpu: bool) -> float:
    """Milliseconds of the GPU, or of the processor: others may take the cores in between."""
    return timing.median if on_gpu else timing.cpu


def _time(
    calls: Mapping[str, Callable[[], object]], repeat: int, on_gpu: bool
) -> dict[str, Timing]:
    return time_on_gpu(calls, repeat, graph=False) if on_gpu else time_in_turns(calls, repeat)
