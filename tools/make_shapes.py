"""Write the embedded data set: `python tools/make_shapes.py OUT --train 600 --val 100`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unisolo.data.shapes import generate_shapes


def main(
    out: Annotated[Path, typer.Argument(help="Folder to write; empty, absent or written before.")],
    train: Annotated[int, typer.Option(help="Number of training images.")] = 600,
    val: Annotated[int, typer.Option(help="Number of validation images.")] = 100,
    size: Annotated[int, typer.Option(help="Height and width in pixels.")] = 192,
    seed: Annotated[int, typer.Option(help="Seed, 0 or more.")] = 0,
) -> None:
    """Generate scenes of shapes as a COCO panoptic data set."""
    try:
        root = generate_shapes(
            out, num_train=train, num_val=val, image_size=(size, size), seed=seed
        )
    except (ValueError, NotADirectoryError) as error:
        raise typer.BadParameter(str(error)) from error
    typer.echo(f"{root}: {train} training and {val} validation images, {size} x {size}")


if __name__ == "__main__":
    typer.run(main)
