"""`benchmark train`: training steps against torchvision's Mask R-CNN."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unisolo.cli.common import DebugOption, examples, friendly
from unisolo.cli.measuring.app import CONFIGS, JsonFileOption, benchmark, show

__all__ = ["train"]

RECIPES = ("coco_instance_r50_1x.yaml", "small_efficientnet_lite0_512.yaml")

PROCESSOR = {"batch": 2, "size": 64, "steps": 2, "warm_up": 1}
"""What a machine without CUDA trains by default, in place of a GPU's."""

GPU = {"batch": 16, "size": None, "steps": 40, "warm_up": 10}


@benchmark.command(
    epilog=examples(
        "unisolo benchmark train",
        "unisolo benchmark train --recipes my.yaml --data my_data --json figures.json",
        "unisolo benchmark train --set train.compile=true --set data.augment.crop=[800,800]",
    ),
)
@friendly
def train(
    recipes: Annotated[
        list[Path] | None,
        typer.Option("--recipes", help="Configuration file; again for more. Default: two."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="COCO data set to train on. Default: generated crowded images."),
    ] = None,
    batch: Annotated[
        int | None, typer.Option(metavar="N", help="Images per step. Default: 16; 2 without CUDA.")
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(metavar="N", help="Short side. Default: the recipe's; 64 without CUDA."),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(metavar="N", help="Timed steps. Default: 40; 2 without CUDA.")
    ] = None,
    warm_up: Annotated[
        int | None,
        typer.Option(metavar="N", help="Steps before them. Default: 10; 1 without CUDA."),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(metavar="N", help="Loader processes. Default: the cores but two, at most 16."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Another setting; again for more."),
    ] = None,
    device: Annotated[str, typer.Option(help="Where to train.")] = "auto",
    json_file: JsonFileOption = None,
    debug: DebugOption = False,
) -> None:
    """Time training steps, loader included, and those of Mask R-CNN on the same backbone."""
    from unisolo.benchmark.machine import usable_cores
    from unisolo.benchmark.train.measure import measure_training
    from unisolo.benchmark.train.report import train_goals, train_table
    from unisolo.devices import resolve_device

    usual = GPU if resolve_device(device).type == "cuda" else PROCESSOR
    report = measure_training(
        recipes or _own_recipes(),
        data=data,
        batch_size=_given(batch, usual["batch"]) or 0,
        steps=_given(steps, usual["steps"]) or 0,
        warm_up=_given(warm_up, usual["warm_up"]) or 0,
        image_size=_given(size, usual["size"]),
        workers=min(16, max(0, usable_cores() - 2)) if workers is None else workers,
        overrides=settings or (),
        device=device,
        tell=lambda text: typer.echo(text, err=True),
    )
    show(report.to_json(), train_table(report), json_file, goals=train_goals(report))


def _given(value: int | None, usual: int | None) -> int | None:
    return usual if value is None else value


def _own_recipes() -> list[Path]:
    if not CONFIGS.is_dir():
        raise ValueError(
            "this installation came without the folder configs/: give --recipes FILE, again for "
            "more"
        )
    return [CONFIGS / name for name in RECIPES]
