"""The command that trains."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unisolo.cli.common import (
    TRAINING,
    DebugOption,
    JsonOption,
    Overrides,
    TaskOption,
    answer,
    app,
    check_folder,
    examples,
    friendly,
)
from unisolo.cli.metrics import print_metrics
from unisolo.cli.telling import counted, duration, print_table, remark

if TYPE_CHECKING:
    from unisolo.choose import Chosen
    from unisolo.config import Config

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
    data: Annotated[
        Path | None, typer.Option(help="COCO-layout folder; alone it is enough.")
    ] = None,
    task: TaskOption = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML recipe; without one all is chosen from the data.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Results folder. Default: runs/<name of the data>.")
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", metavar="", help="Go on with the run in OUT.", rich_help_panel=_GOING_ON
        ),
    ] = False,
    auto_resume: Annotated[
        bool,
        typer.Option(
            "--auto-resume",
            metavar="",
            help="Go on if OUT holds a run, else start one.",
            rich_help_panel=_GOING_ON,
        ),
    ] = False,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite", metavar="", help="Replace OUT's run.", rich_help_panel=_GOING_ON
        ),
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

    Without --config all is chosen from the data and this machine (task, splits, network, image
    size, grids, batch, length): the first lines say what and why, and OUT/chosen.yaml keeps it.
    What is given by hand wins.

    SIGTERM, SIGUSR1 and Ctrl-C end the run after the step in hand, its state saved: exit code 75,
    after Ctrl-C 130. A second Ctrl-C quits at once.
    """
    from unisolo.config import ConfigError
    from unisolo.engine.nonfinite import replay as run_replay
    from unisolo.engine.stop import TrainingStopped
    from unisolo.engine.train import train as run_training

    if sum((resume, auto_resume, overwrite)) > 1:
        raise ConfigError("give one of --resume, --auto-resume and --overwrite")
    if replay is not None:
        raise typer.Exit(0 if run_replay(replay, typer.echo) else 1)
    _check_overrides(overrides or ())
    if out is not None:
        check_folder(out, "--out")
    with answer(as_json) as found:
        values = {"task": task, "data": {"root": data}, "train": {"out": out}}
        settings, chosen = _settings(
            config,
            overrides or (),
            values,
            going_on="must" if resume else "may" if auto_resume else "",
            overwrite=overwrite,
        )
        try:
            summary = run_training(
                settings, resume="auto" if auto_resume else resume, overwrite=overwrite
            )
        except TrainingStopped as stopped:
            if _is_main_process():
                remark(str(stopped))
                found |= {"out": settings.train.out, "stopped": str(stopped)}
            raise typer.Exit(stopped.exit_code) from None
        if _is_main_process():
            print_metrics(summary.metrics)
            typer.echo(
                f"trained {counted(summary.steps, 'step')} in {duration(summary.seconds)}; "
                f"model: {summary.checkpoint}"
            )
            page = settings.train.out / "report.html"
            if page.is_file():  # a run whose report failed has warned of it
                typer.echo(f"report: {page}")
            found |= {"out": settings.train.out, **asdict(summary)}
            found["chosen"] = [] if chosen is None else [asdict(one) for one in chosen.choices]


def _check_overrides(overrides: Iterable[str]) -> None:
    """Tell a folder or a recipe that lost its option from a setting."""
    for text in overrides:
        path = Path(text)
        if "=" not in text and path.exists():
            option = "--config" if path.is_file() else "--data"
            raise ValueError(f"{text} is no setting: did you mean {option} {text}?")


def _settings(
    config: Path | None,
    overrides: Sequence[str],
    values: dict[str, Any],
    *,
    going_on: str,
    overwrite: bool,
) -> tuple[Config, Chosen | None]:
    """The settings of a recipe, of the run that goes on, or chosen (and then told and kept)."""
    from unisolo.choose import choose, default_out
    from unisolo.config import Config, ConfigError, load_config
    from unisolo.engine.run import holds_run

    given = _given(**values)
    settings = load_config(config, overrides, values=given)
    root, out = settings.data.root, settings.train.out
    if config is None and going_on:
        folder = default_out(root) if root is not None and out == Config().train.out else out
        if (folder / "config.yaml").is_file():
            values = {**values, "train": {"out": folder}}
            return load_config(folder / "config.yaml", overrides, values=_given(**values)), None
        if root is None or going_on == "must":
            raise ConfigError(
                f"{folder}: no run to go on with; give its folder: --out DIR, or start one without "
                "--resume"
            )
    if config is not None or root is None:
        return settings, None
    chosen = choose(root, task=values["task"], out=values["train"]["out"], overrides=overrides)
    # A folder that holds another run is refused in a moment; nothing is to be read or kept there.
    if _is_main_process() and (overwrite or not holds_run(chosen.config.train.out)):
        _tell(chosen)
    return chosen.config, chosen


def _tell(chosen: Chosen) -> None:
    """Print what was chosen, and keep it beside the run."""
    from rich.table import Table
    from rich.text import Text

    from unisolo.doctor.findings import printable
    from unisolo.files import write_bytes

    table = Table(title="Chosen from the data and this machine", title_justify="left", box=None)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(ratio=2, overflow="fold")
    table.add_column(ratio=3, style="dim", overflow="fold")
    for choice in chosen.choices:
        cells = (choice.what, choice.value, choice.why)
        table.add_row(*(Text(printable(cell)) for cell in cells))  # names are not markup
    print_table(table)
    out = chosen.config.train.out
    write_bytes(out / "chosen.yaml", chosen.to_yaml().encode())
    typer.echo(f"\nkept as a recipe: {out / 'chosen.yaml'}")


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
