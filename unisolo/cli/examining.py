"""The command that examines a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unisolo.cli.common import (
    DATA,
    OUTPUT,
    DebugOption,
    Overrides,
    TaskOption,
    app,
    check_folder,
    examples,
    friendly,
)

__all__ = ["doctor"]

_LEARNING = "Can it be learned?"


@app.command(
    rich_help_panel=DATA,
    epilog=examples(
        "unisolo doctor my_data",
        "unisolo doctor my_data --html report.html --fix my_data_mended",
        "unisolo doctor my_data --overfit 8",
        "unisolo doctor my_data --json - | jq .errors",
    ),
)
@friendly
def doctor(
    data: Annotated[Path, typer.Argument(help="COCO-layout folder.", metavar="DATA")],
    overrides: Overrides = None,
    task: TaskOption = None,
    split: Annotated[
        list[str] | None, typer.Option(help="Split to check; repeat it. Default: train and val.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML recipe: image size, grids.")] = None,
    overfit: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Instead: can N training images be learned at all?",
            rich_help_panel=_LEARNING,
        ),
    ] = None,
    steps: Annotated[
        int,
        typer.Option(
            min=1, metavar="N", help="Training steps of --overfit.", rich_help_panel=_LEARNING
        ),
    ] = 150,
    html: Annotated[
        Path | None, typer.Option(help="Write one page with pictures.", rich_help_panel=OUTPUT)
    ] = None,
    fix: Annotated[
        Path | None,
        typer.Option(help="Write a repaired copy to this folder.", rich_help_panel=OUTPUT),
    ] = None,
    json_file: Annotated[
        str | None,
        typer.Option(
            "--json",
            help="Write everything found to this file; - prints it.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    debug: DebugOption = False,
) -> None:
    """Check a data set: everything wrong with it, how to mend it, and what the grids make of it.

    The exit code is 1 if there are errors (with --overfit: if the images cannot be learned).
    """
    for path, option in ((html, "--html"), (fix, "--fix")):
        if path is not None:
            check_folder(path.parent, option)
    if json_file not in (None, "-"):
        check_folder(Path(json_file).parent, "--json")
    settings_given = [*_splits_there(data, config), *(overrides or ())]
    if overfit is not None:
        from unisolo.overfit import check_learning

        if split or json_file or html or fix:
            raise ValueError(
                "--overfit trains instead of examining: give it without --split, "
                "--json, --html and --fix"
            )
        verdict = check_learning(
            data, task=task, images=overfit, steps=steps, config=config, overrides=settings_given
        )
        typer.echo(verdict.sentence)
        healthy = verdict.learned
    else:
        from unisolo.doctor.command import doctor_config, run_doctor

        settings = doctor_config(data, task=task, config=config, overrides=settings_given)
        healthy = run_doctor(settings, splits=split, json_file=json_file, html=html, fix=fix)
    if not healthy:
        raise typer.Exit(1)


def _splits_there(data: Path, config: Path | None) -> list[str]:
    """Settings that name the folder's own splits; none where it is no data set, which is told."""
    from unisolo.choose import find_splits
    from unisolo.config import ConfigError

    if config is not None:
        return []
    try:
        found = find_splits(data)
    except ConfigError:
        return []
    return [f"data.train_split={found.train}", f"data.val_split={found.val}"]
