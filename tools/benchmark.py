"""Measure this package on this machine: `python tools/benchmark.py latency --json figures.json`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from unisolo.files import write_json

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
LATENCY_MODELS = (
    "coco_instance_light448_r18.yaml",
    "coco_instance_light448_r50.yaml",
    "small_efficientnet_lite0_512.yaml",
)

app = typer.Typer(
    help="Measurements of this package on this machine.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.callback()
def main() -> None:
    """Measurements of this package on this machine."""


@app.command()
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
    repeat: Annotated[int, typer.Option(help="Timed runs of each engine.")] = 20,
    size: Annotated[
        str | None, typer.Option(help="Input as HxW; default: data.image_size, square.")
    ] = None,
    fixed: Annotated[bool, typer.Option(help="Export graphs for this size alone.")] = False,
    graphs: Annotated[
        Path | None,
        typer.Option(help="Folder for the exported graphs; those it holds are used again."),
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Write the figures to this file.")] = None,
) -> None:
    """Time from the image tensor to the instances, of every engine, with random weights."""
    # Read when torch is first imported: threads that spin while they wait take the cores of others.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        from unisolo.benchmark.engines import ENGINES
        from unisolo.benchmark.latency import measure_latency
        from unisolo.benchmark.tables import latency_table, machine_lines

        report = measure_latency(
            models or [CONFIGS / name for name in LATENCY_MODELS],
            engines=engines or list(ENGINES),
            threads=threads or [1, 2],
            repeat=repeat,
            size=None if size is None else _size(size),
            fixed=fixed,
            graphs=graphs,
            tell=lambda text: typer.echo(text, err=True),
        )
        if json is not None:
            write_json(json, report.to_json())
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        typer.secho(f"error: {error}", fg="red", err=True)
        raise typer.Exit(2) from None
    typer.echo(f"{machine_lines(report.machine)}\n\n{latency_table(report)}")


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise ValueError(f"--size must be HxW, e.g. 448x768, got {text!r}")
    return int(height), int(width)


if __name__ == "__main__":
    app()
