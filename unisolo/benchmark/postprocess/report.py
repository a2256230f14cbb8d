"""What `benchmark postprocess` found, as values."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from unisolo.benchmark.postprocess.checks import Agreement
from unisolo.benchmark.postprocess.floor import Ceilings
from unisolo.benchmark.postprocess.ways import Start
from unisolo.benchmark.timing import Timing

__all__ = ["Mode", "PostprocessReport", "PostprocessRow", "PruningRow", "StageRow"]

Mode = Literal["eager", "graph"]
"""Launched from Python, or replayed from a CUDA graph."""


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
class StageRow:
    """One stage of this package's post-process from given candidates.

    Attributes:
        scene: A key of `SCENES`.
        candidates: How many.
        stage: Triton's stages, or the public operations.
        mode: Launched from Python, or replayed from a CUDA graph.
        timing: In milliseconds.
        floor: Milliseconds that it takes at least (see `unisolo.benchmark.postprocess.floor`); None
            where it is no stage of that list.
    """

    scene: str
    candidates: int
    stage: str
    mode: Mode
    timing: Timing
    floor: float | None


@dataclass(frozen=True)
class PruningRow:
    """One way to prune the masks of one scene, overlaps included.

    Attributes:
        scene: A key of `SCENES`.
        masks: How many entered.
        way: Which.
        mode: Launched from Python, or replayed from a CUDA graph.
        timing: In milliseconds.
        of_ours: This median over that of our Matrix NMS in the same mode; on a CPU both are
            processor time.
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
        stages: Of its stages.
        wrong_intersections: Pairs whose counted pixels differ from 64-bit counting, by scene and
            number of candidates.
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
    stages: tuple[StageRow, ...]
    wrong_intersections: dict[str, int]
    pruning: tuple[PruningRow, ...]

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return asdict(self)
