"""Commands that train, evaluate, predict, compare and examine."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from unisolo.cli.common import DebugOption, Overrides, TaskOption, app, friendly

__all__ = ["compare", "doctor", "evaluate", "predict", "train"]


class BackendChoice(str, Enum):
    """The evaluation back ends."""

    hotcoco = "hotcoco"
    official = "official"


@app.command()
@friendly
def train(
    overrides: Overrides = None,
    task: TaskOption = None,
    config: Annotated[Path | None, typer.Option(help="YAML recipe, see configs/.")] = None,
    data: Annotated[Path | None, typer.Option(help="COCO-layout folder (data.root).")] = None,
    out: Annotated[Path | None, typer.Option(help="Results folder (train.out).")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in OUT.")] = False,
    auto_resume: Annotated[
        bool, typer.Option("--auto-resume", help="Go on if OUT holds a run, else start one.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT's run.")] = False,
    replay: Annotated[
        Path | None, typer.Option(help="Look into a step that was not finite: nonfinite_step*.pt.")
    ] = None,
    debug: DebugOption = False,
) -> None:
    """Train a model on COCO-format data and evaluate it.

    SIGTERM, SIGUSR1 and Ctrl-C end the run after the step in hand, its state saved: exit code 75,
    after Ctrl-C 130. A second Ctrl-C quits at once.

    Example: train.py --task panoptic --config configs/quickstart.yaml --data runs/shapes
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
        _print_metrics(summary.metrics)
        typer.echo(
            f"trained {summary.steps} steps in {summary.seconds / 60:.1f} min; "
            f"model: {summary.checkpoint}"
        )


@app.command()
@friendly
def evaluate(
    checkpoint: Annotated[
        Path, typer.Option(help="A model.safetensors, an exported graph, or a model's name.")
    ],
    data: Annotated[Path, typer.Option(help="COCO-layout folder.")],
    split: Annotated[str | None, typer.Option(help="Default: the checkpoint's val split.")] = None,
    task: TaskOption = None,
    out: Annotated[Path, typer.Option(help="Folder for metrics.json and predictions.")] = Path(
        "runs/evaluation"
    ),
    backend: Annotated[
        BackendChoice, typer.Option(help="official = pycocotools and panopticapi.")
    ] = BackendChoice.hotcoco,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Images per forward pass.")] = 8,
    overrides: Overrides = None,
    debug: DebugOption = False,
) -> None:
    """Evaluate a checkpoint: bbox AP, segm AP and PQ in one pass over the images.

    Settings may be of data.*, inference.* and train.precision; the others belong to training.

    Example: evaluate.py --checkpoint runs/quickstart/model.safetensors --data runs/shapes
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
    with join_world("cpu" if is_graph(checkpoint) else device) as world:
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
            _print_metrics(metrics)
            typer.echo(f"metrics and predictions: {out}")


@app.command()
@friendly
def predict(
    source: Annotated[Path, typer.Argument(help="An image, or a folder.", metavar="IMAGE|FOLDER")],
    checkpoint: Annotated[
        Path, typer.Option(help="A model.safetensors, an exported graph, or a model's name.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for overlays and JSON files.")],
    task: TaskOption = None,
    score_threshold: Annotated[
        float, typer.Option(min=0, max=1, help="Instances scored lower are left out.")
    ] = 0.3,
    candidate_threshold: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Least category probability. Default: the checkpoint's."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N images.")] = None,
    scale: Annotated[int, typer.Option(min=1, help="Enlarge the overlays N times.")] = 1,
    explain: Annotated[
        bool, typer.Option("--explain", help="Say of each image what every threshold left.")
    ] = False,
    debug: DebugOption = False,
) -> None:
    """Predict images; write overlays, COCO results and, for panoptic, PNG and JSON.

    Images that cannot be read are listed at the end, and the exit code is then 1.

    Example: predict.py photos/ --checkpoint runs/quickstart/model.safetensors --out runs/photos
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    from unisolo.predict_files import find_images, predict_files
    from unisolo.predictor import Predictor

    find_images(source, without=out)  # a wrong path is told before the model is loaded
    predictor = Predictor(checkpoint, task=task, device=device)
    console = Console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("")
        report = predict_files(
            predictor,
            source,
            out,
            score_threshold=score_threshold,
            candidate_threshold=candidate_threshold,
            limit=limit,
            scale=scale,
            on_image=lambda done, total: progress.update(bar, completed=done, total=total),
            on_result=lambda path, result: (
                typer.echo(f"{path}: {result.explain()}") if explain else None
            ),
        )
    typer.echo(f"{report.predicted} images, {report.instances} instances: {out}")
    if report.without:
        typer.secho(
            f"{report.without} images without an instance: {report.reason}", fg="yellow", err=True
        )
    for sentence in report.broken:
        typer.secho(f"skipped: {sentence}", fg="yellow", err=True)
    if report.broken:
        raise typer.Exit(1)


@app.command()
@friendly
def compare(
    checkpoint: Annotated[
        Path, typer.Option(help="A panoptic model.safetensors, or a panoptic exported graph.")
    ],
    data: Annotated[Path, typer.Option(help="COCO-layout folder with panoptic annotations.")],
    out: Annotated[Path, typer.Option(help="The picture to write, .jpg or .png.")],
    split: Annotated[str, typer.Option(help="Which part of the data.")] = "val2017",
    limit: Annotated[int, typer.Option(min=1, help="How many images.")] = 6,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    debug: DebugOption = False,
) -> None:
    """Draw image, ground truth and prediction side by side on one sheet.

    Example: compare.py --checkpoint C --data DIR --out sheet.jpg
    """
    from unisolo.compare import comparison_sheet
    from unisolo.data import CocoPanoptic
    from unisolo.files import write_atomically
    from unisolo.predictor import Predictor

    dataset = CocoPanoptic.from_root(data, split)
    predictor = Predictor(checkpoint, task="panoptic", device=device)
    sheet = comparison_sheet(predictor, dataset, limit=limit)
    write_atomically(out, lambda temporary: sheet.save(temporary, quality=90))
    typer.echo(f"image, ground truth, prediction: {out}")


@app.command()
@friendly
def doctor(
    data: Annotated[Path, typer.Argument(help="COCO-layout folder.", metavar="DATA")],
    overrides: Overrides = None,
    task: TaskOption = None,
    split: Annotated[
        list[str] | None, typer.Option(help="Split to check; repeat it. Default: train and val.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML recipe: image size, grids.")] = None,
    json_file: Annotated[
        str | None, typer.Option("--json", help="Write everything found as JSON; - = print it.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write one page with pictures.")] = None,
    fix: Annotated[Path | None, typer.Option(help="Write a repaired copy to this folder.")] = None,
    overfit: Annotated[
        int | None, typer.Option(min=1, help="Instead: can N training images be learned at all?")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Training steps of --overfit.")] = 150,
    debug: DebugOption = False,
) -> None:
    """Check a data set: everything wrong with it, how to mend it, and what the grids make of it.

    The exit code is 1 if there are errors (with --overfit: if the images cannot be learned).

    Example: unisolo doctor my_data --html report.html --fix my_data_mended
    """
    if overfit is not None:
        from unisolo.overfit import check_learning

        if split or json_file or html or fix:
            raise ValueError(
                "--overfit trains instead of examining: give it without --split, "
                "--json, --html and --fix"
            )
        verdict = check_learning(
            data, task=task, images=overfit, steps=steps, config=config, overrides=overrides or ()
        )
        typer.echo(verdict.sentence)
        healthy = verdict.learned
    else:
        from unisolo.doctor.command import doctor_config, run_doctor

        settings = doctor_config(data, task=task, config=config, overrides=overrides or ())
        healthy = run_doctor(settings, splits=split, json_file=json_file, html=html, fix=fix)
    if not healthy:
        raise typer.Exit(1)


def _check_overrides(overrides: Iterable[str]) -> None:
    """Refuse settings that would change nothing in an evaluation."""
    from unisolo.config import ConfigError

    for override in overrides:
        if not override.startswith(("data.", "inference.", "train.precision=")):
            raise ConfigError(
                f"{override!r} changes nothing in an evaluation; settings of data.*, inference.* "
                "and train.precision do"
            )


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


def _print_metrics(metrics: dict[str, float]) -> None:
    """Print metrics as one table: a row per kind, a column per number."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 100)
    panoptic = {name: value for name, value in metrics.items() if name.startswith("panoptic/")}
    table = Table(title="Evaluation (percent)")
    for column in ("", "all", "things", "stuff"):
        table.add_column(column, justify="left" if not column else "right")
    for metric in ("PQ", "SQ", "RQ"):
        if f"panoptic/{metric}" in panoptic:
            cells = [panoptic[f"panoptic/{metric}{suffix}"] for suffix in ("", "_th", "_st")]
            table.add_row(f"panoptic {metric}", *map(_percent, cells))
    for kind in ("bbox", "segm"):
        for suffix in ("AP", "AP50", "AP75", "APs", "APm", "APl"):
            if f"{kind}/{suffix}" in metrics:
                table.add_row(f"{kind} {suffix}", _percent(metrics[f"{kind}/{suffix}"]), "", "")
    console.print(table)


def _percent(value: float) -> str:
    """One decimal; a dash where there is no ground truth to score (NaN)."""
    return f"{value:.1f}" if value == value else "-"
