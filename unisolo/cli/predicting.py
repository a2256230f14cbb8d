"""The command that predicts images and videos."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unisolo.cli.common import (
    OUTPUT,
    USE,
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
from unisolo.cli.progress import bar_over_images
from unisolo.cli.telling import counted, remark

if TYPE_CHECKING:
    from unisolo.predictor import Predictor
    from unisolo.results import Result

__all__ = ["predict"]

_THRESHOLDS = "Thresholds"


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
    compile: Annotated[
        bool,
        typer.Option(
            "--compile",
            metavar="",
            help="Faster for many images of few sizes; slow for the first of each.",
        ),
    ] = False,
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
    """Predict images and videos: overlays, COCO results and, for panoptic, PNG and JSON.

    A video gives an annotated video and a line of JSON a frame, with track ids. Images that cannot
    be read are listed at the end, and the exit code is then 1, as it is for a video that breaks
    off.
    """
    from unisolo.predict_files import find_images
    from unisolo.predictor import Predictor
    from unisolo.video import is_video

    check_folder(out, "--out")
    run = _predict_video if is_video(source) else _predict_images
    if run is _predict_images:
        find_images(source, without=out)  # a wrong path is told before the model is loaded
    how: dict[str, Any] = {
        "score_threshold": score_threshold,
        "candidate_threshold": candidate_threshold,
        "limit": limit,
        "scale": scale,
    }
    with answer(as_json) as found:
        predictor = Predictor(checkpoint, task=task, device=device, compile=compile)
        found |= {"source": source, "checkpoint": checkpoint, "out": out}
        whole, facts = run(predictor, source, out, explain, how)
        found |= facts
        if not whole:
            raise typer.Exit(1)


def _predict_images(
    predictor: Predictor, source: Path, out: Path, explain: bool, how: dict[str, Any]
) -> tuple[bool, dict[str, Any]]:
    """Predict an image or a folder; return whether all could be read, and the facts."""
    from unisolo.predict_files import predict_files

    def tell(path: Path, result: Result) -> None:
        if explain:
            typer.echo(f"{path}: {result.explain()}")

    with bar_over_images() as advance:
        report = predict_files(predictor, source, out, on_image=advance, on_result=tell, **how)
    typer.echo(
        f"{counted(report.predicted, 'image')}, {counted(report.instances, 'instance')}: {out}"
    )
    if report.without:
        # The reason names arguments of Python; two of them are options here.
        reason = re.sub(
            r"lower (score|candidate)_threshold=", r"lower --\1-threshold", report.reason
        )
        sentence = f"{counted(report.without, 'image')} without an instance: {reason}"
        remark(sentence)
    for sentence in report.broken:
        remark(f"skipped: {sentence}")
    return not report.broken, asdict(report)


def _predict_video(
    predictor: Predictor, source: Path, out: Path, explain: bool, how: dict[str, Any]
) -> tuple[bool, dict[str, Any]]:
    """Predict a video; return whether it was read to its end, and the facts."""
    from unisolo.video import predict_video

    def tell(frame: int, result: Result) -> None:
        if explain:
            typer.echo(f"frame {frame}: {result.explain()}")

    with bar_over_images() as advance:
        seen = predict_video(predictor, source, out, on_frame=advance, on_result=tell, **how)
    typer.echo(
        f"{counted(seen.frames, 'frame')}, {counted(seen.instances, 'instance')}, "
        f"{counted(seen.tracks, 'track')}: {seen.video}"
    )
    if seen.trouble:
        remark(seen.trouble)
    return not seen.trouble, asdict(seen)
