"""Commands that judge a model: evaluate, compare."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from unisolo.cli.common import (
    OUTPUT,
    TRAINING,
    CheckpointOption,
    DebugOption,
    DeviceOption,
    JsonOption,
    TaskOption,
    answer,
    app,
    check_folder,
    examples,
    friendly,
)
from unisolo.cli.completion import complete_settings
from unisolo.cli.metrics import print_metrics
from unisolo.cli.progress import bar_over_images

__all__ = ["compare", "evaluate"]


class BackendChoice(str, Enum):
    """The evaluation back ends."""

    hotcoco = "hotcoco"
    official = "official"


@app.command(
    rich_help_panel=TRAINING,
    epilog=examples(
        "unisolo evaluate --checkpoint runs/my_data/model.safetensors --data my_data",
        "unisolo evaluate --checkpoint model.onnx --data my_data --split test --json",
        "unisolo evaluate --checkpoint solov2_r50_fpn_3x_coco --data /data/coco",
    ),
)
@friendly
def evaluate(
    checkpoint: CheckpointOption,
    data: Annotated[Path, typer.Option(help="COCO-layout folder.")],
    split: Annotated[str | None, typer.Option(help="Default: the checkpoint's val split.")] = None,
    task: TaskOption = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            help="Settings as key.sub=value, e.g. inference.max_instances=50",
            metavar="KEY=VALUE",
            autocompletion=complete_settings,
        ),
    ] = None,
    device: DeviceOption = "auto",
    batch_size: Annotated[
        int, typer.Option(min=1, metavar="N", help="Images per forward pass.")
    ] = 8,
    backend: Annotated[
        BackendChoice, typer.Option(help="official = pycocotools and panopticapi.")
    ] = BackendChoice.hotcoco,
    out: Annotated[
        Path,
        typer.Option(help="Folder for metrics.json and predictions.", rich_help_panel=OUTPUT),
    ] = Path("runs/evaluation"),
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Evaluate a checkpoint: PQ, mask AP and box AP in one pass over the images.

    Settings may be of data.*, inference.* and train.precision; the others belong to training.
    """
    from unisolo.build import build_dataset
    from unisolo.checkpoint import model_facts
    from unisolo.engine.distributed import join_world
    from unisolo.engine.evaluate import evaluate as run_evaluation
    from unisolo.engine.evaluate import evaluation_config
    from unisolo.graphs import Graph, is_graph
    from unisolo.tasks import get_task
    from unisolo.zoo import open_model

    check_folder(out, "--out")
    # A graph's results are on the CPU, and its devices are not torch's.
    place = "cpu" if is_graph(checkpoint) else device
    with answer(as_json) as found, join_world(place) as world:
        _check_overrides(overrides or ())
        model = open_model(
            checkpoint, task=task, device=device if is_graph(checkpoint) else world.device
        )
        config, categories = model_facts(model)
        settings = evaluation_config(
            config, data, task=task, split=split, overrides=overrides or ()
        )
        if isinstance(model, Graph):
            model.check_settings(settings.inference)
        model.config = settings
        dataset = build_dataset(settings, split="val")
        with bar_over_images(shown=world.is_main) as advance:
            metrics = run_evaluation(
                model,
                dataset,
                task=get_task(settings.task)(categories),
                world=world,
                precision=settings.train.precision,
                batch_size=batch_size,
                workers=settings.data.workers,
                backend=backend.value,
                out=out,
                on_image=advance,
            )
        if world.is_main:
            print_metrics(metrics)
            typer.echo(f"metrics, predictions and report.html: {out}")
            split = settings.data.val_split
            found |= {"checkpoint": checkpoint, "data": data, "split": split}
            found |= {"task": settings.task, "metrics": metrics, "out": out}


@app.command(
    rich_help_panel=TRAINING,
    epilog=examples(
        "unisolo compare --checkpoint model.safetensors --data my_data --out sheet.jpg",
        "unisolo compare --checkpoint model.onnx --data my_data --limit 12 --out s.png",
    ),
)
@friendly
def compare(
    checkpoint: CheckpointOption,
    data: Annotated[Path, typer.Option(help="COCO-layout folder with the task's annotations.")],
    out: Annotated[Path, typer.Option(help="The picture to write, .jpg or .png.")],
    task: TaskOption = None,
    split: Annotated[str | None, typer.Option(help="Default: the checkpoint's val split.")] = None,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="How many images.")] = 6,
    device: DeviceOption = "auto",
    debug: DebugOption = False,
) -> None:
    """Draw image, ground truth and prediction side by side on one sheet."""
    from unisolo.compare import comparison_data, comparison_sheet
    from unisolo.files import write_atomically
    from unisolo.predictor import Predictor

    if out.suffix.lower() not in (".jpg", ".jpeg", ".png"):
        raise ValueError(f"--out {out}: give a name that ends in .jpg or .png")
    check_folder(out.parent, "--out")
    predictor = Predictor(checkpoint, task=task, device=device)
    dataset = comparison_data(predictor, data, split or predictor.config.data.val_split)
    sheet = comparison_sheet(predictor, dataset, limit=limit)
    write_atomically(out, lambda temporary: sheet.save(temporary, quality=90))
    typer.echo(f"image, ground truth, prediction: {out}")


def _check_overrides(overrides: Iterable[str]) -> None:
    """Refuse settings that would change nothing in an evaluation."""
    from unisolo.config import ConfigError

    for override in overrides:
        if not override.startswith(("data.", "inference.", "train.precision=")):
            raise ConfigError(
                f"{override!r} changes nothing in an evaluation; settings of data.*, inference.* "
                "and train.precision do"
            )
