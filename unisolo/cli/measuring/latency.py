"""`benchmark latency`: every engine on a processor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unisolo.cli.common import OUTPUT, DebugOption, examples, friendly, parse_size
from unisolo.cli.measuring.app import CONFIGS, JsonFileOption, benchmark, show
from unisolo.cli.telling import remark

__all__ = ["latency"]

LATENCY_MODELS = (
    "coco_instance_light448_r18.yaml",
    "coco_instance_light448_r50.yaml",
    "small_efficientnet_lite0_512.yaml",
)


@benchmark.command(
    epilog=examples(
        "unisolo benchmark latency",
        "unisolo benchmark latency --engines eager --engines openvino --threads 1",
        "unisolo benchmark latency --models my.yaml --size 448x768 --json figures.json",
        "unisolo benchmark latency --json - > figures.json",
    ),
)
@friendly
def latency(
    models: Annotated[
        list[Path] | None,
        typer.Option("--models", help="Configuration file; again for more. Default: three."),
    ] = None,
    engines: Annotated[
        list[str] | None,
        typer.Option("--engines", help="An engine; again for more. Default: all."),
    ] = None,
    threads: Annotated[
        list[int] | None,
        typer.Option("--threads", help="A number of threads; again for more. Default: 1 and 2."),
    ] = None,
    repeat: Annotated[int, typer.Option(metavar="N", help="Timed runs of each engine.")] = 20,
    size: Annotated[
        str | None, typer.Option(help="Input as HxW; default: data.image_size, square.")
    ] = None,
    fixed: Annotated[
        bool, typer.Option("--fixed", metavar="", help="Export graphs for this size alone.")
    ] = False,
    graphs: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the exported graphs; those it holds are used again.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    json_file: JsonFileOption = None,
    debug: DebugOption = False,
) -> None:
    """Time from the image tensor to the instances, of every engine, with random weights."""
    from unisolo.benchmark.engines import ENGINES
    from unisolo.benchmark.latency import measure_latency
    from unisolo.benchmark.tables import latency_table

    pair = None if size is None else parse_size(size, "--size")
    if pair is not None and any(side < 32 or side % 32 for side in pair):
        raise ValueError(f"--size: the input's sides must be multiples of 32, got {size}")
    try:
        report = measure_latency(
            models or _own_models(),
            engines=engines or list(ENGINES),
            threads=threads or [1, 2],
            repeat=repeat,
            size=pair,
            fixed=fixed,
            graphs=graphs,
            tell=lambda text: typer.echo(text, err=True),
        )
    except RuntimeError as error:  # a measuring process failed; its last line is in the message
        remark(f"error: {error}", "red")
        raise typer.Exit(1) from None
    show(report.to_json(), latency_table(report), json_file)


def _own_models() -> list[Path]:
    if not CONFIGS.is_dir():
        raise ValueError(
            "this installation came without the folder configs/: give --models FILE, again for more"
        )
    return [CONFIGS / name for name in LATENCY_MODELS]
