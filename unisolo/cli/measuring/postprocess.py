"""`benchmark postprocess`: from candidates or logits to full-size masks."""

from __future__ import annotations

from typing import Annotated

import typer

from unisolo.cli.common import DebugOption, DeviceOption, examples, friendly, parse_size
from unisolo.cli.measuring.app import JsonFileOption, benchmark, show

__all__ = ["postprocess"]


@benchmark.command(
    epilog=examples(
        "unisolo benchmark postprocess",
        "unisolo benchmark postprocess --candidates 500 --scenes coco --json figures.json",
        "unisolo benchmark postprocess --device cpu --size 608x800 --threads 2",
    ),
)
@friendly
def postprocess(
    scenes: Annotated[
        list[str] | None,
        typer.Option("--scenes", help="coco, crowd, dense or noise; again for more. Default: all."),
    ] = None,
    candidates: Annotated[
        list[int] | None,
        typer.Option(
            "--candidates",
            help="A number of candidates; again for more. Default: 100, 300, 500 and 1000 on a "
            "GPU, 100 and 300 on a CPU.",
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(help="The image as HxW; default: 800x1333 on a GPU, 608x800 on a CPU."),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            help="Of kernels and mask features: fp32, bf16 or fp16; default: bf16 on a GPU, fp32 "
            "on a CPU."
        ),
    ] = None,
    repeat: Annotated[int, typer.Option(metavar="N", help="Timed runs of each way.")] = 10,
    threads: Annotated[
        int, typer.Option(metavar="N", help="Threads of operations on the CPU.")
    ] = 1,
    device: DeviceOption = "auto",
    json_file: JsonFileOption = None,
    debug: DebugOption = False,
) -> None:
    """Time the post-process against a reference-style chain and other ways to prune, and check it.

    Scenes are drawn; every table is of one run. What is measured: masks, Matrix NMS, and masks at
    the image's size; on a GPU eagerly and from a CUDA graph, with the physical floor beside it.
    """
    import torch

    from unisolo.benchmark.postprocess.goals import failed_checks, postprocess_goals
    from unisolo.benchmark.postprocess.measure import measure_postprocess
    from unisolo.benchmark.postprocess.scenes import SCENES
    from unisolo.benchmark.postprocess.tables import postprocess_tables
    from unisolo.devices import resolve_device, resolve_precision

    if device == "auto" and not torch.cuda.is_available():
        device = "cpu"  # MPS has no timer of its own
    chosen = resolve_device(device)
    report = measure_postprocess(
        scenes=scenes or list(SCENES),
        candidates=candidates,
        image_size=None if size is None else parse_size(size, "--size"),
        dtype=None if precision is None else resolve_precision(precision, chosen),
        device=chosen,
        repeat=repeat,
        threads=threads,
        tell=lambda text: typer.echo(text, err=True),
    )
    show(
        report.to_json(),
        postprocess_tables(report),
        json_file,
        goals=postprocess_goals(report),
        failed=failed_checks(report),
    )
