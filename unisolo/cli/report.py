"""The command that makes a report of what a run left."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unisolo.cli.common import (
    OUTPUT,
    TRAINING,
    DebugOption,
    JsonOption,
    answer,
    app,
    examples,
    friendly,
)

__all__ = ["report"]


@app.command(
    rich_help_panel=TRAINING,
    epilog=examples(
        "unisolo report runs/my_data",
        "unisolo report runs/evaluation --out report.html",
        "unisolo report runs/my_data --data /new/place/my_data",
    ),
)
@friendly
def report(
    run: Annotated[
        Path, typer.Argument(help="Folder of a training or an evaluation.", metavar="RUN")
    ],
    data: Annotated[
        Path | None, typer.Option(help="COCO-layout folder, where it has moved since.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Default: the split evaluated.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="The page to write. Default: report.html in RUN.", rich_help_panel=OUTPUT
        ),
    ] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Make report.html again: curves, metrics, categories, calibration, confusion, images.

    Training and evaluation leave this page by themselves. It needs the predictions in RUN and the
    data set they are of; the model is not run.
    """
    from unisolo.report import write_report

    if not run.is_dir():
        raise ValueError(f"{run}: no such folder; give that of a training or of an evaluation")
    with answer(as_json) as found:
        path = write_report(run, out=out, data=data, split=split)
        typer.echo(f"report: {path}")
        found["report"] = path
