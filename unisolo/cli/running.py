"""Commands that run a model: evaluate, predict, compare."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from unisolo.cli.common import (
    OUTPUT,
    TRAINING,
    USE,
    DebugOption,
    DeviceOption,
    JsonOption,
    TaskOption,
    answer,
    app,
    examples,
    friendly,
)
from unisolo.cli.completion import complete_settings
from unisolo.cli.metrics import print_metrics

__all__ = ["compare", "evaluate", "predict"]

CheckpointOption = Annotated[
    Path, typer.Option(help="A model.safetensors, an exported graph, or a model's name.")
]
_THRESHOLDS = "Thresholds"


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
        metrics = run_evaluation(
            model,
            build_dataset(settings, split="val"),
            task=get_task(settings.task)(categories),
            world=world,
            precision=settings.train.precision,
            batch_size=batch_size,
            workers=settings.data.workers,
            backend=backend.value,
            out=out,
        )
        if world.is_main:
            print_metrics(metrics)
            typer.echo(f"metrics and predictions: {out}")
            split = settings.data.val_split
            found |= {"checkpoint": checkpoint, "data": data, "split": split}
            found |= {"task": settings.task, "metrics": metrics, "out": out}


@app.command(
    rich_help_panel=USE,
    epilog=examples(
        "unisolo predict photos/ --checkpoint runs/my_data/model.safetensors --out seen",
        "unisolo predict a.jpg --checkpoint model.onnx --out seen --score-threshold 0.5",
        "unisolo predict photos/ --checkpoint model.safetensors --out seen --explain",
        "unisolo predict clip.mp4 --checkpoint model.safetensors --out seen",
    ),
)
@friendly
def predict(
    source: Annotated[
        Path, typer.Argument(help="An image, a folder of images, or a video.", metavar="SOURCE")
    ],
    checkpoint: CheckpointOption,
    out: Annotated[Path, typer.Option(help="Folder for overlays and JSON files.")],
    task: TaskOption = None,
    score_threshold: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            metavar="",
            help="Instances scored lower are left out.",
            rich_help_panel=_THRESHOLDS,
        ),
    ] = 0.3,
    candidate_threshold: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            metavar="",
            help="Least category probability. Default: the checkpoint's.",
            rich_help_panel=_THRESHOLDS,
        ),
    ] = None,
    device: DeviceOption = "auto",
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Only the first N images.")
    ] = None,
    scale: Annotated[
        int,
        typer.Option(
            min=1, metavar="N", help="Enlarge the overlays N times.", rich_help_panel=OUTPUT
        ),
    ] = 1,
    explain: Annotated[
        bool,
        typer.Option(
            "--explain",
            metavar="",
            help="Say of each image what every threshold left.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Predict images: overlays, COCO results and, for panoptic, PNG and JSON.

    A video gives an annotated video and a line of JSON a frame, with track ids. Images that cannot
    be read are listed at the end, and the exit code is then 1, as it is for a video that breaks
    off.
    """
    from unisolo.predict_files import find_images, predict_files
    from unisolo.predictor import Predictor
    from unisolo.video import is_video, predict_video

    if is_video(source):
        with answer(as_json) as found:
            predictor = Predictor(checkpoint, task=task, device=device)
            with _bar_over_images() as advance:
                seen = predict_video(
                    predictor,
                    source,
                    out,
                    score_threshold=score_threshold,
                    candidate_threshold=candidate_threshold,
                    limit=limit,
                    scale=scale,
                    on_frame=advance,
                    on_result=lambda frame, result: (
                        typer.echo(f"frame {frame}: {result.explain()}") if explain else None
                    ),
                )
            typer.echo(
                f"{seen.frames} frames, {seen.instances} instances, {seen.tracks} tracks: "
                f"{seen.video}"
            )
            found |= {"source": source, "checkpoint": checkpoint, "out": out, **asdict(seen)}
            if seen.trouble:
                typer.secho(seen.trouble, fg="yellow", err=True)
                raise typer.Exit(1)
        return
    find_images(source, without=out)  # a wrong path is told before the model is loaded
    with answer(as_json) as found:
        predictor = Predictor(checkpoint, task=task, device=device)
        with _bar_over_images() as advance:
            report = predict_files(
                predictor,
                source,
                out,
                score_threshold=score_threshold,
                candidate_threshold=candidate_threshold,
                limit=limit,
                scale=scale,
                on_image=advance,
                on_result=lambda path, result: (
                    typer.echo(f"{path}: {result.explain()}") if explain else None
                ),
            )
        typer.echo(f"{report.predicted} images, {report.instances} instances: {out}")
        if report.without:
            typer.secho(
                f"{report.without} images without an instance: {report.reason}",
                fg="yellow",
                err=True,
            )
        for sentence in report.broken:
            typer.secho(f"skipped: {sentence}", fg="yellow", err=True)
        found |= {"source": source, "checkpoint": checkpoint, "out": out, **asdict(report)}
        if report.broken:
            raise typer.Exit(1)


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


@contextmanager
def _bar_over_images() -> Iterator[Callable[[int, int], None]]:
    """A progress bar on stderr, in a terminal; gives what is called with (done, all)."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("")
        yield lambda done, total: progress.update(bar, completed=done, total=total)
