"""Commands that bring weights in: the table of published models, foreign checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unisolo.cli.common import (
    MODELS,
    DebugOption,
    JsonOption,
    app,
    check_folder,
    examples,
    friendly,
)
from unisolo.cli.telling import remark

if TYPE_CHECKING:
    from unisolo.categories import Categories

__all__ = ["convert", "models"]


@app.command(
    rich_help_panel=MODELS,
    epilog=examples(
        "unisolo models", "unisolo models r50", "unisolo models --json | jq '.[].name'"
    ),
)
@friendly
def models(
    filter: Annotated[
        str, typer.Argument(help="Text in a name, source or licence.", metavar="FILTER")
    ] = "",
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """List published weights that have a name here: source, licence, accuracy, cached or not.

    A name is taken wherever a checkpoint is: evaluate, predict, export, Predictor, load_model.
    """
    from unisolo.zoo import list_models, print_models

    if not list_models(filter):
        raise ValueError(f"no model has {filter!r} in its name, source or licence")
    print_models(filter, json=as_json)


@app.command(
    rich_help_panel=MODELS,
    epilog=examples(
        "unisolo convert solov2_r50_fpn_3x_coco.pth --out solov2_r50.safetensors",
        "unisolo convert mine.pth --out mine.safetensors --categories classes.json",
    ),
)
@friendly
def convert(
    source: Annotated[
        Path, typer.Argument(help="A .pth, .pt or .safetensors file of SOLOv2.", metavar="SOURCE")
    ],
    out: Annotated[Path, typer.Option(help="The checkpoint to write, model.safetensors.")],
    source_format: Annotated[
        str, typer.Option("--format", help="auto, solo, mmdetection or adelaidet.")
    ] = "auto",
    categories: Annotated[
        Path | None, typer.Option(help="COCO annotation file that names the classes.")
    ] = None,
    debug: DebugOption = False,
) -> None:
    """Convert a SOLOv2 checkpoint of SOLO, mmdetection or AdelaiDet; nothing in it is executed."""
    from unisolo.convert import convert_checkpoint

    check_folder(out.parent, "--out")
    names = None if categories is None else _read_categories(categories)
    report = convert_checkpoint(source, out, categories=names, source_format=source_format)
    typer.echo(f"{report.source}: {report.format}, {report.variant}")
    typer.echo(f"classes: {report.class_names}")
    for ignored in report.ignored:
        typer.echo(f"left out: {ignored}")
    for warning in report.warnings:
        remark(f"warning: {warning}")
    typer.echo(f"{report.tensors} tensors: {report.path}")


def _read_categories(path: Path) -> Categories:
    from unisolo.categories import Categories
    from unisolo.reading import file_problem, parse_json

    problem = file_problem(path, "annotation file")
    if problem is not None:
        raise ValueError(f"{path}: {problem}")
    try:
        tree = parse_json(path.read_bytes())
        entries = tree["categories"] if isinstance(tree, dict) else tree
        return Categories.from_coco(entries)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: holds no COCO categories ({error})") from None
