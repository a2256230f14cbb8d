"""The command that writes the embedded data set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unisolo.cli.common import DATA, DebugOption, app, examples, friendly

__all__ = ["shapes"]


@app.command(
    rich_help_panel=DATA,
    epilog=examples(
        "unisolo shapes my_shapes",
        "unisolo shapes my_shapes --train 1000 --val 100 --size 192",
        "unisolo shapes tiny --train 20 --val 5 --size 96 && unisolo train --data tiny",
    ),
)
@friendly
def shapes(
    out: Annotated[
        Path,
        typer.Argument(help="Folder to write; empty, absent or written before.", metavar="OUT"),
    ],
    train: Annotated[
        int, typer.Option(min=0, metavar="N", help="Number of training images.")
    ] = 600,
    val: Annotated[
        int, typer.Option(min=0, metavar="N", help="Number of validation images.")
    ] = 100,
    size: Annotated[
        int, typer.Option(min=32, metavar="N", help="Height and width in pixels.")
    ] = 192,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Other scenes for each.")] = 0,
    debug: DebugOption = False,
) -> None:
    """Generate scenes of shapes as a COCO panoptic data set: something to try everything on."""
    from unisolo.data.shapes import generate_shapes

    root = generate_shapes(out, num_train=train, num_val=val, image_size=(size, size), seed=seed)
    typer.echo(f"{root}: {train} training and {val} validation images, {size} x {size}")
