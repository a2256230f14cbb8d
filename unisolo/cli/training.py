"""The command that trains."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from unisolo.cli.common import (
    TRAINING,
    DebugOption,
    JsonOption,
    Overrides,
    TaskOption,
    answer,
    app,
    examples,
    friendly,
)
from unisolo.cli.metrics import print_metrics

__all__ = ["train"]

_GOING_ON = "Going on with a run"


@app.command(
    rich_help_panel=TRAINING,
    epilog=examples(
        "unisolo train --data my_data",
        "unisolo train --data my_data --task instance --out runs/trial train.steps=500",
        "unisolo train --config runs/my_data/chosen.yaml --out runs/again",
        "unisolo train --data my_data --resume",
    ),
)
@friendly
def train(
    overrides: Overrides = None,
    task: TaskOption = None,
    config: Annotated[Path | None, typer.Option(help="YAML recipe, see configs/.")] = None,
    data: Annotated[Path | None, typer.Option(help="COCO-layout folder (data.root).")] = None,
    out: Annotated[Path | None, typer.Option(help="Results folder (train.out).")] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with the run in OUT.", rich_help_panel=_GOING_ON),
    ] = False,
    auto_resume: Annotated[
        bool,
        typer.Option(
            "--auto-resume",
            help="Go on if OUT holds a run, else start one.",
            rich_help_panel=_GOING_ON,
        ),
    ] = False,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace OUT's run.", rich_help_panel=_GOING_ON),
    ] = False,
    replay: Annotated[
        Path | None,
        typer.Option(
            help="Look into a step that was not finite: nonfinite_step*.pt.",
            rich_help_panel=_GOING_ON,
        ),
    ] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Train a model on COCO-format data and evaluate it.

    SIGTERM, SIGUSR1 and Ctrl-C end the run after the step in hand, its state saved: exit code 75,
    after Ctrl-C 130. A second Ctrl-C quits at once.
    """
    from unisolo.config import ConfigError, load_config
    from unisolo.engine.nonfinite import replay as run_replay
    from unisolo.engine.stop import TrainingStopped
    from unisolo.engine.train import train as run_training

    if sum((resume, auto_resume, overwrite)) > 1:
        raise ConfigError("give one of --resume, --auto-resume and --overwrite")
    if replay is not None:
        raise typer.Exit(0 if run_replay(replay, typer.echo) else 1)
    values = _given(task=task, data={"root": data}, train={"out": out})
    with answer(as_json) as found:
        settings = load_config(config, overrides or (), values=values)
        try:
            summary = run_training(
                settings, resume="auto" if auto_resume else resume, overwrite=overwrite
            )
        except TrainingStopped as stopped:
            if _is_main_process():
                typer.secho(str(stopped), fg="yellow", err=True)
            raise typer.Exit(stopped.exit_code) from None
        if _is_main_process():
            print_metrics(summary.metrics)
            typer.echo(
                f"trained {summary.steps} steps in {summary.seconds / 60:.1f} min; "
                f"model: {summary.checkpoint}"
            )
            found |= {"out": settings.train.out, **asdict(summary)}


def _given(**values: Any) -> dict[str, Any]:
    """Drop what was not given on the command line, so that the file's values stay."""
    tree = {}
    for key, value in values.items():
        kept = _given(**value) if isinstance(value, dict) else value
        if kept is not None and kept != {}:
            tree[key] = kept
    return tree


def _is_main_process() -> bool:
    return os.environ.get("RANK", "0") == "0"
