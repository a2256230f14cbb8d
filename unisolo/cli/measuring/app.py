"""The group of commands that measure this package on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unisolo.cli.common import MODELS, OUTPUT, answer, app
from unisolo.cli.telling import remark

if TYPE_CHECKING:  # measurements are imported by the commands that make them
    from unisolo.benchmark.goals import Goal

__all__ = ["CONFIGS", "JsonFileOption", "benchmark", "show"]

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
"""The repository's configurations; absent from an installed package."""

benchmark = typer.Typer(
    no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="rich"
)
app.add_typer(benchmark, name="benchmark", rich_help_panel=MODELS)


@benchmark.callback()
def main() -> None:
    """Measure this package on this machine."""


JsonFileOption = Annotated[
    str | None,
    typer.Option(
        "--json", help="Write the figures to this file; - prints them.", rich_help_panel=OUTPUT
    ),
]


def show(
    figures: dict[str, Any],
    table: str,
    json_file: str | None,
    *,
    goals: Sequence[Goal] | None = None,
    failed: Sequence[str] = (),
) -> None:
    """Print a report's tables below the machine's description, or its figures as JSON.

    Args:
        figures: The report as JSON values; `machine` is that of `describe_machine`.
        table: Its tables as Markdown.
        json_file: "-" prints the figures instead; another path gets them beside the tables.
        goals: What the run's figures are judged by, printed last and written to "goals"; None where
            a command has none. A goal that is missed is no failure: machines differ.
        failed: A sentence for each check that does not hold.

    Raises:
        typer.Exit: With code 1, after everything is written, if a check failed.
    """
    from unisolo.benchmark.goals import goals_table
    from unisolo.benchmark.tables import machine_lines
    from unisolo.files import write_json

    if goals is not None:
        figures = {**figures, "goals": [{**asdict(goal), "met": goal.met} for goal in goals]}
        table = f"{table}\n\n{goals_table(goals)}"
    if json_file == "-":
        with answer(True) as values:
            values.update(figures)
    else:
        if json_file is not None:
            write_json(Path(json_file), figures)
        typer.echo(f"{machine_lines(figures['machine'])}\n\n{table}")
    for sentence in failed:
        remark(f"wrong: {sentence}", "red")
    if failed:
        raise typer.Exit(1)
