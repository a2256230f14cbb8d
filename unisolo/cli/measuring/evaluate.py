"""`benchmark evaluate`: the evaluators against the official tools."""

from __future__ import annotations

from typing import Annotated

import typer

from unisolo.cli.common import DebugOption, examples, friendly
from unisolo.cli.measuring.app import JsonFileOption, benchmark, show

__all__ = ["evaluate"]


@benchmark.command(
    epilog=examples(
        "unisolo benchmark evaluate",
        "unisolo benchmark evaluate --images 500 --json figures.json",
    ),
)
@friendly
def evaluate(
    images: Annotated[int, typer.Option(metavar="N", help="Generated images.")] = 5000,
    predictions: Annotated[int, typer.Option(metavar="N", help="Detections of each.")] = 50,
    seed: Annotated[int, typer.Option(metavar="N", help="Of the generated scenes.")] = 0,
    json_file: JsonFileOption = None,
    debug: DebugOption = False,
) -> None:
    """Time AP and PQ of generated results against pycocotools and panopticapi."""
    from unisolo.benchmark.evaluate import (
        evaluate_goals,
        evaluate_table,
        failed_checks,
        measure_evaluation,
    )

    report = measure_evaluation(
        images=images,
        predictions=predictions,
        seed=seed,
        tell=lambda text: typer.echo(text, err=True),
    )
    show(
        report.to_json(),
        evaluate_table(report),
        json_file,
        goals=evaluate_goals(report),
        failed=failed_checks(report),
    )
