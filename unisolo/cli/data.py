"""The command that brings data sets of other formats."""

from __future__ import annotations

import shlex
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from unisolo.cli.common import (
    DATA,
    DebugOption,
    app,
    check_folder,
    examples,
    friendly,
)
from unisolo.cli.telling import counted, remark

__all__ = ["convert_data"]


class SourceChoice(str, Enum):
    """The formats read; auto = told by what is in the folder."""

    auto = "auto"
    yolo = "yolo"
    labelme = "labelme"
    voc = "voc"
    masks = "masks"
    coco = "coco"


@app.command(
    "convert-data",
    rich_help_panel=DATA,
    epilog=examples(
        "unisolo convert-data my_yolo --out my_data",
        "unisolo convert-data my_voc --out my_data --from voc --names names.txt",
        "unisolo convert-data my_yolo --out my_data && unisolo train --data my_data",
    ),
)
@friendly
def convert_data(
    src: Annotated[Path, typer.Argument(help="Folder of the data set.", metavar="SRC")],
    out: Annotated[Path, typer.Option(help="COCO-layout folder to write.")],
    source: Annotated[
        SourceChoice, typer.Option("--from", help="Format; auto looks into the folder.")
    ] = SourceChoice.auto,
    names: Annotated[
        Path | None, typer.Option(help="Class names, one a line (voc, masks).")
    ] = None,
    stuff: Annotated[
        list[str] | None, typer.Option(help="A class that is a region (masks); repeat it.")
    ] = None,
    val_share: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            metavar="",
            help="Share of validation images, where the source has no splits.",
        ),
    ] = 0.2,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Which images those are.")] = 0,
    boxes_as_masks: Annotated[
        bool,
        typer.Option("--boxes-as-masks", metavar="", help="Take boxes for outlines (yolo, coco)."),
    ] = False,
    link: Annotated[
        bool, typer.Option("--link", metavar="", help="Link images, do not copy.")
    ] = False,
    skip_faulty: Annotated[
        bool, typer.Option("--skip-faulty", metavar="", help="Leave out what cannot be used.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", metavar="", help="Replace an earlier conversion in OUT.")
    ] = False,
    debug: DebugOption = False,
) -> None:
    """Write a YOLO, LabelMe, VOC, mask-PNG or COCO export as a COCO-layout folder to train on.

    Whatever cannot be used is listed with its file and entry, and nothing is written.
    """
    from unisolo.convert_data import convert_data as run
    from unisolo.convert_data.source import Options

    check_folder(out.parent, "--out")
    summary = run(
        src,
        out,
        form=source.value,
        options=Options(names, tuple(stuff or ()), boxes_as_masks),
        val_share=val_share,
        seed=seed,
        link=link,
        skip_faulty=skip_faulty,
        overwrite=overwrite,
    )
    for split, count in summary.images.items():
        typer.echo(
            f"{split}: {counted(count, 'image')}, {counted(summary.objects[split], 'object')}"
        )
    for note in summary.notes:
        remark(f"note: {note}")
    for fault in summary.faults:
        remark(f"left out: {fault}")
    place = shlex.quote(str(out))
    typer.echo(f"{summary.form} data set as COCO: {out}; look at it with: unisolo doctor {place}")
