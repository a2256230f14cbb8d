"""What `benchmark model` found, as values and as a table."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from unisolo.benchmark.goals import Goal
from unisolo.benchmark.timing import Timing

__all__ = [
    "FLOOR",
    "MASK2FORMER",
    "MASK_RCNN",
    "WHOLE",
    "Mode",
    "ModelReport",
    "ModelRow",
    "model_goals",
    "model_table",
]

Mode = Literal["eager", "graph"]
"""Launched from Python, or replayed from a CUDA graph."""

MASK_RCNN = "torchvision Mask R-CNN R50, end to end"
MASK2FORMER = "HF Mask2Former R50, forward"
WHOLE = "network and post-process, compiled"
FLOOR = "backbone alone, compiled"
"""What a model can hardly be faster than: its backbone with folded norms, compiled."""

FULL, SIZE = "coco_instance_r50_3x", (800, 1333)
OF_FLOOR, OVER_MASK_RCNN = 2.8, 15.0
"""Goals of this model with its post-process in one graph, one image in bfloat16: at most so many
times the floor, and at least so many times as fast as Mask R-CNN."""


@dataclass(frozen=True)
class ModelRow:
    """One thing that was timed.

    Attributes:
        model: Name of the configuration file without its ending; empty for a model of others.
        batch: Images in a call.
        part: What was run.
        mode: Launched from Python, or replayed from a CUDA graph.
        dtype: Compute dtype; "tf32" for float32 in which TF32 is allowed.
        timing: Of a whole batch, in milliseconds.
        of_floor: This median over that of `FLOOR` of the same model and batch, replayed from a
            graph (on a CPU: run); None for a model of others.
        over_mask_rcnn: Median of the faster Mask R-CNN of this batch over this one; None where it
            was not measured.
    """

    model: str
    batch: int
    part: str
    mode: Mode
    dtype: str
    timing: Timing
    of_floor: float | None
    over_mask_rcnn: float | None


@dataclass(frozen=True)
class ModelReport:
    """All rows and what they were measured on.

    Attributes:
        machine: See `describe_machine`.
        device: "cpu" or "cuda".
        dtype: Compute dtype.
        size: (H, W) of the images, before padding to multiples of 32.
        instances: Instances that our models select from an image, and that Mask R-CNN finds in the
            first one, by name.
        rows: In the order they were measured.
    """

    machine: dict[str, Any]
    device: str
    dtype: str
    size: tuple[int, int]
    instances: dict[str, int]
    rows: tuple[ModelRow, ...]

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return asdict(self)


def model_goals(report: ModelReport) -> list[Goal]:
    """Return the goals that a report answers; none for other sizes, precisions or devices.

    Args:
        report: Of any run.
    """
    goals: list[Goal] = []
    if (report.device, report.dtype, report.size) != ("cuda", "bfloat16", SIZE):
        return goals
    for row in report.rows:
        if (row.model, row.batch, row.part, row.mode) == (FULL, 1, WHOLE, "graph"):
            goals += [
                Goal(f"{WHOLE}: multiple of {FLOOR}, both graphs", row.of_floor, OF_FLOOR),
                Goal(
                    f"{WHOLE}, graph: {MASK_RCNN}, eager, over it",
                    row.over_mask_rcnn,
                    OVER_MASK_RCNN,
                    at_least=True,
                    unit=" x",
                ),
            ]
    return goals


def model_table(report: ModelReport) -> str:
    """Make one table of all rows, with what it means below."""
    lines = [
        "| model | batch | what | mode | dtype | ms | min - max | CPU ms | per image | of floor | "
        "Mask R-CNN over it |",
        "|" + "---|" * 11,
    ]
    for row in report.rows:
        timing = row.timing
        cells = [
            row.model or "-",
            str(row.batch),
            row.part,
            row.mode,
            row.dtype,
            f"{timing.median:.2f}",
            f"{timing.least:.2f} - {timing.most:.2f}",
            f"{timing.cpu:.2f}",
            f"{timing.median / row.batch:.2f}",
            "-" if row.of_floor is None else f"{row.of_floor:.2f}",
            "-" if row.over_mask_rcnn is None else f"{row.over_mask_rcnn:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    height, width = report.size
    graphs = (
        '"graph" is the replay of a CUDA graph, "eager" a call from Python.'
        if report.device == "cuda"
        else "Measured on a CPU, which has no CUDA graphs; it says nothing of a GPU."
    )
    found = ", ".join(f"{name}: {count}" for name, count in report.instances.items())
    return "\n".join(
        [
            *lines,
            "",
            f"Images of {height} x {width}, random weights. {graphs} "
            '"CPU ms" is processor time. The floor is the row '
            f'"{FLOOR}" of the same model and batch. "Prepared" is `unisolo.optimize` without '
            "compilation. Models of others run as their users run them, eagerly; the faster Mask "
            f"R-CNN counts. Instances in the first image: {found}.",
        ]
    )
