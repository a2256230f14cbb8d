"""The group of commands that measure this package on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from unisolo.cli.common import MODELS, OUTPUT, app

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


def show(figures: dict[str, Any], table: str, json_file: str | None) -> None:
    """Print a report's tables below the machine's description, or its figures as JSON.

    Args:
        figures: The report as JSON values; `machine` is that of `describe_machine`.
        table: Its tables as Markdown.
        json_file: "-" prints the figures instead; another path gets them beside the tables.
    """
    from unisolo.benchmark.tables import machine_lines
    from unisolo.files import write_json

    if json_file == "-":
        typer.echo(json.dumps(figures, indent=2))
        return
    if json_file is not None:
        write_json(Path(json_file), figures)
    typer.echo(f"{machine_lines(figures['machine'])}\n\n{table}")
