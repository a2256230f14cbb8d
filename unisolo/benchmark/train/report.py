"""What `benchmark train` found, as values and as a table."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from unisolo.benchmark.goals import Goal

__all__ = ["PEER", "TrainReport", "TrainRow", "train_goals", "train_table"]

PEER = "torchvision Mask R-CNN"

RATIO, DATA_SHARE = 1.5, 0.1
"""Goals on a GPU: images per second over the peer's, and most of the time that waits for data."""


@dataclass(frozen=True)
class TrainRow:
    """One model's training.

    Attributes:
        recipe: Name of the configuration file, without its ending.
        backbone: timm name.
        model: "unisolo" or `PEER`.
        image_size: Short side in pixels.
        batch_size: Images per step.
        steps: Steps that were timed.
        objects: Mean number of objects per image in them.
        images_per_second: Of all time, waiting for data included.
        step_ms: Milliseconds per step, waiting included.
        data_share: Share of the time that the device had to wait for data, at most.
        peak_gib: Most memory of torch's allocator, GiB; None without CUDA.
        ratio: Images per second over the peer's; None for the peer.
    """

    recipe: str
    backbone: str
    model: str
    image_size: int
    batch_size: int
    steps: int
    objects: float
    images_per_second: float
    step_ms: float
    data_share: float
    peak_gib: float | None
    ratio: float | None


@dataclass(frozen=True)
class TrainReport:
    """All rows and what they were measured on.

    Attributes:
        machine: See `describe_machine`.
        device: Type of the device that trained.
        precision: Compute dtype.
        data: What was trained on.
        workers: Loader processes.
        compiled: Whether unisolo's network was compiled (`train.compile`); the peer never is.
        rows: In the order they were measured.
    """

    machine: dict[str, Any]
    device: str
    precision: str
    data: str
    workers: int
    compiled: bool
    rows: tuple[TrainRow, ...]

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return asdict(self)


def train_goals(report: TrainReport) -> list[Goal]:
    """Return the goals that a report answers: of every recipe on a GPU, nothing elsewhere.

    Args:
        report: Of any run.
    """
    goals: list[Goal] = []
    for row in report.rows:
        if report.device == "cuda" and row.model != PEER:
            name = f"{row.recipe}, {row.image_size} px, batch {row.batch_size}"
            goals += [
                Goal(f"{name}: images/s over {PEER}", row.ratio, RATIO, True, " x"),
                Goal(f"{name}: share of time spent waiting for data", row.data_share, DATA_SHARE),
            ]
    return goals


def train_table(report: TrainReport) -> str:
    """Make one table of all rows, below what they have in common."""
    place = {"cuda": "the GPU", "cpu": "the processor: no CUDA device here"}
    head = (
        f"Trained on {place.get(report.device, report.device)}, {report.precision}, "
        f"{report.data}, {report.workers} loader processes"
        f"{', unisolo compiled' if report.compiled else ''}; the peer is eager.\n\n"
    )
    lines = [
        "| recipe | backbone | model | short side | batch | objects per image | images/s | of "
        "Mask R-CNN | ms per step | waiting for data | peak GiB |",
        "|" + "---|" * 11,
    ]
    return head + "\n".join(lines + [_line(row) for row in report.rows])


def _line(row: TrainRow) -> str:
    cells = [
        row.recipe,
        row.backbone,
        row.model,
        str(row.image_size),
        str(row.batch_size),
        f"{row.objects:.0f}",
        f"{row.images_per_second:.3g}",
        "-" if row.ratio is None else f"{row.ratio:.2f} x",
        f"{row.step_ms:.0f}",
        f"{row.data_share:.1%}",
        "-" if row.peak_gib is None else f"{row.peak_gib:.1f}",
    ]
    return f"| {' | '.join(cells)} |"
