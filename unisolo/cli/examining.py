"""The command that examines a data set."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
from unisolo.cli.telling import remark

if TYPE_CHECKING:
    from unisolo.config import Config

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
    if overfit is not None:
        from unisolo.overfit import check_learning

        if split or json_file or html or fix:
            raise ValueError(
                "--overfit trains instead of examining: give it without --split, "
                "--json, --html and --fix"
            )
        given = [*_splits_there(data, config), *(overrides or ())]
        verdict = check_learning(
            data, task=task, images=overfit, steps=steps, config=config, overrides=given
        )
        typer.echo(verdict.sentence)
        healthy = verdict.learned
    else:
        from unisolo.doctor.command import run_doctor

        settings = _settings(data, task, config, overrides or ())
        healthy = run_doctor(settings, splits=split, json_file=json_file, html=html, fix=fix)
    if not healthy:
        raise typer.Exit(1)


def _settings(
    data: Path, task: str | None, config: Path | None, overrides: Iterable[str]
) -> Config:
    """The settings to examine with: those that training would have, so that the grids are its."""
    from unisolo.build import build_dataset, build_grid, with_grid
    from unisolo.choose import choose
    from unisolo.config import ConfigError
    from unisolo.doctor.command import doctor_config
    from unisolo.doctor.coverage import object_sides

    if config is not None:
        return doctor_config(data, task=task, config=config, overrides=overrides)
    given = [*_splits_there(data, config), *overrides]
    usual = doctor_config(data, task=task, config=None, overrides=given)
    try:
        # Whether there are weights to start from is asked of the network, and is nothing to us.
        settings = choose(data, task=task, overrides=["model.pretrained=false", *given]).config
        # Ranges are fitted to the training split; the others are looked at with the same.
        sides = object_sides(build_dataset(settings, split="train"), settings)
        settings = with_grid(settings, build_grid(settings, sides))
    except ConfigError as error:  # no data set in this layout: what to do about it
        if not data.is_dir():
            raise
        remark(str(error))
        return usual
    except ValueError:  # damaged data, which is what the report is about
        typer.echo("sizes and grids of the default settings: the data are too damaged", err=True)
        return usual
    typer.echo(
        f"sizes and grids as `unisolo train` would choose: image size {settings.data.image_size}",
        err=True,
    )
    return settings


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
