"""`benchmark memory`: the worst case of the post-process."""

from __future__ import annotations

from typing import Annotated

import typer

from unisolo.cli.common import DebugOption, examples, friendly
from unisolo.cli.measuring.app import JsonFileOption, benchmark, show
from unisolo.cli.telling import remark

__all__ = ["memory"]


@benchmark.command(
    epilog=examples(
        "unisolo benchmark memory",
        "unisolo benchmark memory --image 2048 --candidates 500 --json figures.json",
        "unisolo benchmark memory --cpu --image 4096",
    ),
)
@friendly
def memory(
    image: Annotated[
        int | None,
        typer.Option(metavar="N", help="Side of the image; default: 4096, on a CPU 2048."),
    ] = None,
    candidates: Annotated[
        int, typer.Option(metavar="N", help="Candidates that get a mask.")
    ] = 2000,
    categories: Annotated[int, typer.Option(metavar="N", help="Categories.")] = 1203,
    instances: Annotated[int, typer.Option(metavar="N", help="Instances kept.")] = 100,
    budget: Annotated[
        int, typer.Option(metavar="MIB", help="inference.memory_budget of the run.")
    ] = 256,
    cpu: Annotated[
        bool, typer.Option("--cpu", metavar="", help="Measure the CPU where there is a GPU.")
    ] = False,
    json_file: JsonFileOption = None,
    debug: DebugOption = False,
) -> None:
    """Peak memory of the post-process on a crowded image, and of the reference's order."""
    import torch

    from unisolo.benchmark.memory import Crowd, measure_memory, memory_goals, memory_table

    on_gpu = torch.cuda.is_available() and not cpu
    side = image if image is not None else (4096 if on_gpu else 2048)
    if side < 64 or side % 32:
        raise ValueError(f"--image must be a multiple of 32 from 64, got {side}")
    if min(candidates, categories, instances, budget) < 1:
        raise ValueError("--candidates, --categories, --instances and --budget are at least 1")
    crowd = Crowd(
        image=side,
        categories=categories,
        candidates=candidates,
        instances=instances,
        # On a CPU the time is that of the products; the channels do not change what is measured.
        channels=256 if on_gpu else 16,
        dtype="bfloat16" if on_gpu else "float32",
        memory_budget=budget,
    )
    try:
        report = measure_memory(
            crowd,
            device="cuda" if on_gpu else "cpu",
            tell=lambda text: typer.echo(text, err=True),
        )
    except RuntimeError as error:  # a measuring process failed; its last line is in the message
        remark(f"error: {error}", "red")
        raise typer.Exit(1) from None
    show(report.to_json(), memory_table(report), json_file, goals=memory_goals(report))
