"""How much memory the post-process takes at worst, and what the reference's order would take."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from operator import ge
from typing import Any, Literal, get_args

import torch

from unisolo.benchmark.goals import Goal
from unisolo.benchmark.gpu_timing import peak_bytes
from unisolo.benchmark.machine import describe_machine
from unisolo.benchmark.postprocess.reference_chain import (
    ReferenceCandidates,
    reference_full_masks,
    reference_instances,
)
from unisolo.benchmark.resident import peak_resident_bytes
from unisolo.categories import Categories, Category
from unisolo.config import InferenceConfig
from unisolo.data.memory import free_memory
from unisolo.graphs import select
from unisolo.ops.backend import use_kernels
from unisolo.ops.select import category_probs, top_candidates
from unisolo.structures import MASK_STRIDE, GridSpec, ImageMeta, Outputs
from unisolo.tasks import get_task

__all__ = [
    "Crowd",
    "MemoryReport",
    "MemoryRow",
    "Way",
    "measure_memory",
    "memory_goals",
    "memory_table",
]

Way = Literal["auto", "torch", "reference"]
WAYS: tuple[Way, ...] = get_args(Way)

MIB = 2**20

GOAL = 1536
"""MiB that the worst case, a `Crowd` as it comes, may take at most."""


@dataclass(frozen=True)
class Crowd:
    """An image whose every cell is above the threshold in every category.

    Attributes:
        image: Side of the square image, which is also the model's input; a multiple of 32.
        categories: C.
        candidates: n, pairs that get a mask and enter Matrix NMS.
        instances: K, kept and brought to the size of the image.
        channels: E, of mask features and kernels.
        dtype: Of the raw outputs.
        memory_budget: MiB, see `InferenceConfig`.
    """

    image: int = 4096
    categories: int = 1203
    candidates: int = 2000
    instances: int = 100
    channels: int = 256
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    memory_budget: int = 256

    @property
    def side(self) -> int:
        """Side of the mask features."""
        return self.image // MASK_STRIDE

    @property
    def bound(self) -> int:
        """Bytes that the post-process may take beyond its inputs, as docs/concepts.md states it."""
        pixels, image_pixels = self.side**2, self.image**2
        pairs = GridSpec().num_cells * self.categories
        choosing = self.candidates * (3 * pixels // 8 + 48 * self.candidates) + 48 * pairs
        results = self.instances * (4 * pixels + image_pixels // 8 * 2)
        return max(choosing, results) + self.memory_budget * MIB

    @property
    def reference(self) -> int:
        """Bytes that the reference's order of operations takes for the same candidates.

        Either the soft masks, the masks as bool and as float, and the product of both are held at
        once (13 bytes a pixel), or the kept masks as floats at the size of the image, the resize
        that is their source's, and their bool copy.
        """
        choosing = 13 * self.candidates * self.side**2
        results = self.instances * (4 * self.side**2 + 5 * self.image**2)
        return max(choosing, results)

    @property
    def reference_uncut(self) -> int:
        """The same, with a mask for every pair above the threshold, as published."""
        return 13 * GridSpec().num_cells * self.categories * self.side**2


@dataclass(frozen=True)
class MemoryRow:
    """One way through one crowd.

    Attributes:
        way: "auto" = the kernels of this machine, "torch" = the definition, "reference".
        crowd: The case.
        computed: Bytes: `Crowd.bound`, or `Crowd.reference`.
        measured: Bytes beyond the inputs; None where it does not fit, or would not.
    """

    way: Way
    crowd: Crowd
    computed: int
    measured: int | None


@dataclass(frozen=True)
class MemoryReport:
    """What was measured, and on what.

    Attributes:
        machine: See `describe_machine`.
        device: "cuda" or "cpu".
        rows: In the order they were measured.
    """

    machine: dict[str, Any]
    device: str
    rows: tuple[MemoryRow, ...]

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return asdict(self)


def measure_memory(
    crowd: Crowd,
    *,
    device: Literal["cuda", "cpu"],
    ways: Sequence[Way] = WAYS,
    tell: Callable[[str], None] = lambda text: None,
) -> MemoryReport:
    """Measure a crowd through the definition, its twin, and the reference where that fits.

    On a GPU: torch's count of allocated memory. On a CPU: resident memory of a process of its own.
    Where the reference does not fit, a smaller image, whose side is halved until it does, is
    measured through all ways.

    Args:
        crowd: The case.
        device: Where.
        ways: Which ways.
        tell: Gets one line per step.

    Returns:
        The report.

    Raises:
        ValueError: If there is no such device.
        RuntimeError: If a measuring process fails.
        OSError: If this system does not tell the memory of a process.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("torch finds no CUDA device: measure on the CPU")
    free = torch.cuda.mem_get_info()[0] if device == "cuda" else free_memory()
    if free is None:
        raise OSError("this system does not tell how much memory is free")
    fitting = crowd
    while fitting.reference > free // 2 and fitting.image > 64:
        fitting = replace(fitting, image=fitting.image // 2)
    cases = [crowd] if fitting == crowd or "reference" not in ways else [crowd, fitting]
    jobs = [(way, case) for case in cases for way in ways]
    rows = []
    for way, case in jobs:
        computed = case.reference if way == "reference" else case.bound
        measured = None
        if way != "reference" or case == fitting:
            tell(f"{case.image} x {case.image}: measuring {way}")
            try:
                measured = _measured(way, case, device)
            except torch.OutOfMemoryError:
                if way != "reference":
                    raise
            tell("  ran out of memory" if measured is None else f"  {measured / MIB:,.0f} MiB")
        rows.append(MemoryRow(way, case, computed, measured))
    return MemoryReport(describe_machine(), device, tuple(rows))


def memory_goals(report: MemoryReport) -> list[Goal]:
    """Return what the goal asks of a report: of the worst case, nothing of a smaller one.

    Args:
        report: Of any run.
    """
    worst, rows = Crowd(), []
    for row in report.rows:
        crowd = row.crowd
        sizes = (crowd.image, crowd.categories, crowd.candidates, crowd.instances)
        least = (worst.image, worst.categories, worst.candidates, worst.instances)
        if row.way == "auto" and all(map(ge, sizes, least)):
            rows.append(row)
    return [
        Goal(
            f"{row.crowd.image} x {row.crowd.image}, {row.crowd.categories} categories, "
            f"{row.crowd.candidates} candidates: beyond the inputs",
            None if row.measured is None else row.measured / MIB,
            GOAL,
            unit=" MiB",
        )
        for row in rows
    ]


def memory_table(report: MemoryReport) -> str:
    """Make one table of all rows, and the figure of the published codes below it."""
    first = report.rows[0].crowd
    lines = [
        f"{first.categories} categories, every cell above the threshold in each, "
        f"{first.candidates} candidates, {first.instances} instances, {first.channels} channels "
        f"({first.dtype}), on the {'GPU' if report.device == 'cuda' else 'CPU'}; beyond the inputs",
        "",
        "| image | way | MiB measured | MiB stated or computed | reference's, computed, over it |",
        "|" + "---|" * 5,
    ]
    lines += [_line(row) for row in report.rows]
    tebi = first.reference_uncut / 2**40
    lines += ["", f"The published codes make a mask for every pair: {tebi:,.0f} TiB (computed)."]
    return "\n".join(lines)


def _line(row: MemoryRow) -> str:
    taken = row.measured if row.measured is not None else row.computed
    cells = [
        f"{row.crowd.image} x {row.crowd.image}",
        row.way,
        "does not fit" if row.measured is None else f"{row.measured / MIB:,.0f}",
        f"{row.computed / MIB:,.0f}",
        f"{row.crowd.reference / taken:.1f} x",
    ]
    return f"| {' | '.join(cells)} |"


def _measured(way: Way, crowd: Crowd, device: str) -> int:
    if device == "cuda":
        return peak_bytes(_call(way, crowd, torch.device("cuda")))
    done = subprocess.run(
        [sys.executable, "-c", f"from {__name__} import measure_here; measure_here()"],
        input=json.dumps({"way": way, "crowd": asdict(crowd)}),
        capture_output=True,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        check=False,
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"measuring {way} failed with exit code {done.returncode}: {last}")
    return int(done.stdout.strip().splitlines()[-1])


def measure_here() -> None:
    """Read a job from standard input, measure it in this process, print the bytes."""
    job = json.loads(sys.stdin.read())
    crowd = Crowd(**job["crowd"])
    cpu = torch.device("cpu")
    # Libraries are loaded by a small case of the same kind, which does not count.
    _call(job["way"], replace(crowd, image=64, categories=3, candidates=8, instances=4), cpu)()
    call = _call(job["way"], crowd, cpu)
    sys.stdout.write(f"{peak_resident_bytes(call)}\n")


def _call(way: Way, crowd: Crowd, device: torch.device) -> Callable[[], object]:
    """What is measured: from raw outputs, which are made here, to the masks at full size."""
    outputs = _outputs(crowd, device)
    run = _reference if way == "reference" else _ours

    def call() -> object:
        with torch.inference_mode(), use_kernels("auto" if way == "auto" else "torch"):
            return run(crowd, outputs)

    return call


def _outputs(crowd: Crowd, device: torch.device) -> Outputs:
    """Random raw outputs of one image; every category is likely in every cell."""
    generator = torch.Generator(device).manual_seed(0)
    dtype = getattr(torch, crowd.dtype)
    cells = GridSpec().num_cells

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device=device).to(dtype)

    return Outputs(
        category_logits=noise(1, cells, crowd.categories).abs(),
        kernels=noise(1, cells, crowd.channels),
        mask_features=noise(1, crowd.channels, crowd.side, crowd.side),
        extras={},
    )


def _ours(crowd: Crowd, outputs: Outputs) -> object:
    settings = InferenceConfig(
        max_candidates=crowd.candidates,
        pre_nms=crowd.candidates,
        max_instances=crowd.instances,
        update_threshold=0.0,
        memory_budget=crowd.memory_budget,
    )
    found = select(outputs, GridSpec(), settings)
    categories = Categories([Category(n, str(n), isthing=True) for n in range(crowd.categories)])
    size = (crowd.image, crowd.image)
    (result,) = get_task("instance")(categories).postprocess(
        found.instances,
        {},
        [ImageMeta("crowd", "", size, size)],
        padded_size=size,
        **settings.postprocess_arguments(),
    )
    del found  # as in `Predictor`
    return result.cpu()


def _reference(crowd: Crowd, outputs: Outputs) -> object:
    grid = GridSpec()
    # The published codes have no cut before the masks; with one they fit on some machine.
    pairs = top_candidates(
        category_probs(outputs.category_logits, grid)[0],
        score_threshold=0.1,
        max_candidates=crowd.candidates,
    )
    kernels = outputs.kernels[0, pairs.cells]
    candidates = ReferenceCandidates(
        pairs.scores, pairs.labels, pairs.cells, kernels, torch.zeros_like(pairs.cells)
    )
    kept = reference_instances(
        candidates,
        outputs.mask_features[0],
        pre_nms=crowd.candidates,
        update_threshold=0.0,
        max_instances=crowd.instances,
    )
    size = (crowd.image, crowd.image)
    return reference_full_masks(kept.mask_probs, padded_size=size, input_size=size, orig_size=size)
