"""Commands that write exported graphs: any format, and int8."""

from __future__ import annotations

from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unisolo.cli.common import (
    MODELS,
    DebugOption,
    JsonOption,
    TaskOption,
    answer,
    app,
    check_folder,
    examples,
    friendly,
    parse_size,
)
from unisolo.cli.completion import complete_settings
from unisolo.cli.telling import print_table, remark

if TYPE_CHECKING:
    from unisolo.config import Config
    from unisolo.export import ExportReport
    from unisolo.graphs import Size

__all__ = ["export", "quantize"]

_FORM, _CHECK = "Form of the file", "Comparison with the model"


class FormatChoice(str, Enum):
    """The formats of `unisolo.export.formats.WRITERS`, and a web page (`unisolo.export.web`)."""

    onnx = "onnx"
    torch = "torch"
    openvino = "openvino"
    web = "web"


class PrecisionChoice(str, Enum):
    """Precisions of an exported network."""

    fp32 = "fp32"
    fp16 = "fp16"


class ImageChoice(str, Enum):
    """Kinds of the image input."""

    uint8 = "uint8"
    float32 = "float32"


@app.command(
    rich_help_panel=MODELS,
    epilog=examples(
        "unisolo export runs/my_data/model.safetensors --out model.onnx",
        "unisolo export model.safetensors --out model.onnx --size input --fixed 448x768",
        "unisolo export model.safetensors --out model.xml --precision fp16",
        "unisolo export model.int8.onnx --out model.int8.xml",
        "unisolo export model.safetensors --out page/ --format web",
    ),
)
@friendly
def export(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            help="A model.safetensors, a model's name, or an exported .onnx.", metavar="CHECKPOINT"
        ),
    ],
    out: Annotated[
        Path, typer.Option(help="The file to write: .onnx, .pt2 or .xml; or a folder for web.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            help="Settings of inference.* and data.*, e.g. inference.max_instances=50",
            metavar="KEY=VALUE",
            autocompletion=complete_settings,
        ),
    ] = None,
    task: TaskOption = None,
    format: Annotated[
        FormatChoice | None,
        typer.Option(help="Default: by the ending of OUT.", rich_help_panel=_FORM),
    ] = None,
    size: Annotated[
        str,
        typer.Option(
            help="Of masks and maps: stride4 (for Predictor), input (final), or HxW.",
            rich_help_panel=_FORM,
        ),
    ] = "stride4",
    precision: Annotated[
        PrecisionChoice,
        typer.Option(help="Of the network; the post-process stays fp32.", rich_help_panel=_FORM),
    ] = PrecisionChoice.fp32,
    images_as: Annotated[
        ImageChoice,
        typer.Option(help="Kind of the image input, 0..255.", rich_help_panel=_FORM),
    ] = ImageChoice.uint8,
    fixed: Annotated[
        str | None,
        typer.Option(
            help="HxW of the input, multiples of 32. Default: free.", rich_help_panel=_FORM
        ),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Images per run. Default: free.", rich_help_panel=_FORM
        ),
    ] = None,
    runtime: Annotated[
        Path | None,
        typer.Option(
            help="Of web: onnxruntime-web as a .tgz or folder. Default: fetched by npm.",
            rich_help_panel=_FORM,
        ),
    ] = None,
    verify: Annotated[
        bool,
        typer.Option(
            help="Compare the file with the checkpoint on images.", rich_help_panel=_CHECK
        ),
    ] = True,
    images: Annotated[
        Path | None,
        typer.Option(
            help="Folder to compare on. Default: the val images, or generated scenes.",
            rich_help_panel=_CHECK,
        ),
    ] = None,
    limit: Annotated[
        int,
        typer.Option(min=1, metavar="N", help="Most images to compare on.", rich_help_panel=_CHECK),
    ] = 8,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Export a model with Matrix NMS and the panoptic merge inside, and compare it with the model.

    Thresholds become constants: change them here, e.g. inference.max_instances=50. If the
    comparison fails the exit code is 1; the file stays for inspection.
    """
    from unisolo.export import convert_graph, export_checkpoint
    from unisolo.export.web import export_web, graph_to_web
    from unisolo.graphs import is_graph
    from unisolo.zoo import load_model

    check_folder(out.parent, "--out")
    web = format is FormatChoice.web
    if web and (size != "stride4" or batch not in (None, 1)):
        raise ValueError("a web page needs --size stride4 and --batch 1, its defaults")
    if runtime is not None and not web:
        raise ValueError("--runtime belongs to --format web")
    page: dict[str, Any] = {"name": checkpoint.stem, "runtime": runtime}
    with answer(as_json) as found:
        if is_graph(checkpoint):
            changed = (task, fixed, batch, overrides, images)
            defaults = (
                size == "stride4" and precision.value == "fp32" and images_as.value == "uint8"
            )
            if any(changed) or not defaults:
                raise ValueError(
                    f"{checkpoint} is exported already; only its format can change (.onnx to .xml "
                    "or a web page)"
                )
            report = (
                graph_to_web(checkpoint, out, **page) if web else convert_graph(checkpoint, out)
            )
            typer.echo(f"{report.path}: {report.facts.task}, {report.facts.precision}")
            found |= _export_facts(report)
            return
        model = load_model(checkpoint, task=task)
        place, paths = "generated scenes", list[Path]()
        if verify:
            place, paths = _images(images, limit, model.config)
        settings: dict[str, Any] = {
            "task": task,
            "precision": precision.value,
            "image_dtype": images_as.value,
            "image_size": None if fixed is None else parse_size(fixed, "--fixed"),
            "overrides": overrides or (),
            "images": list(paths) if verify else None,
        }
        if web:
            report = export_web(model, out, **page, **settings)
        else:
            report = export_checkpoint(
                model,
                out,
                format=None if format is None else format.value,
                size=_size_of_masks(size),
                batch=batch,
                **settings,
            )
        found |= _export_facts(report)
        _tell_export(report, place)


def _size_of_masks(text: str) -> Size:
    if text == "stride4":
        return "stride4"
    return "input" if text == "input" else parse_size(text, "--size")


def _tell_export(report: ExportReport, place: str) -> None:
    """Say what was exported; exit with 1 if it does not agree with the model."""
    typer.echo(
        f"{report.path}: {report.facts.task}, {report.facts.precision}, "
        f"{report.size / 2**20:.1f} MiB, {report.seconds:.0f} s"
    )
    typer.echo(f"outputs: {', '.join(report.facts.outputs)}")
    if report.difference is not None:
        typer.echo(f"compared with the model on {place}: {report.difference}")
    if report.passed is False:
        remark("the file does not agree with the model", "red")
        raise typer.Exit(1)


def _export_facts(report: ExportReport) -> dict[str, Any]:
    return {
        "out": report.path,
        "task": report.facts.task,
        "precision": report.facts.precision,
        "outputs": list(report.facts.outputs),
        "bytes": report.size,
        "seconds": report.seconds,
        "difference": None if report.difference is None else asdict(report.difference),
        "passed": report.passed,
    }


@app.command(
    rich_help_panel=MODELS,
    epilog=examples(
        "unisolo quantize model.onnx --calibration data/train2017 --out model.int8.onnx",
        "unisolo quantize model.onnx --calibration photos/ --out s.onnx --data my_data",
    ),
)
@friendly
def quantize(
    source: Annotated[Path, typer.Argument(help="An exported fp32 .onnx file.", metavar="SOURCE")],
    calibration: Annotated[Path, typer.Option(help="Folder of images like those in use.")],
    out: Annotated[Path, typer.Option(help="The int8 .onnx file to write.")],
    limit: Annotated[
        int, typer.Option(min=1, metavar="N", help="Most images to measure ranges on.")
    ] = 100,
    data: Annotated[
        Path | None, typer.Option(help="COCO-layout folder: evaluate both files on it.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Of --data. Default: the val split.")] = None,
    debug: DebugOption = False,
) -> None:
    """Make an int8 file: convolutions in 8 bits, the post-process in fp32.

    With --data both files are evaluated on it, and what the smaller one costs is shown.
    """
    from unisolo.export.accuracy import compare_accuracy
    from unisolo.export.quantize import quantize_onnx
    from unisolo.graphs import open_graph
    from unisolo.predict_files import find_images

    check_folder(out.parent, "--out")
    if split is not None and data is None:
        raise ValueError("--split belongs to --data: give both, or neither")
    if data is not None:
        open_graph(source, device="cpu").check_unfinished()  # told before the work, not after it
    paths = find_images(calibration)[:limit]
    report = quantize_onnx(source, out, paths, max_images=limit)
    typer.echo(
        f"{report.path}: {report.quantized} convolutions in int8, {report.kept} in fp32, ranges "
        f"from {report.images} images, {report.size_before / 2**20:.1f} -> "
        f"{report.size / 2**20:.1f} MiB, {report.seconds:.0f} s"
    )
    if data is None:
        return
    from rich.table import Table

    change = compare_accuracy(source, out, data, split=split)
    table = Table(title="Accuracy (percent)", title_justify="left")
    for column in ("", "before", "int8", "change"):
        table.add_column(column, justify="right" if column else "left")
    for name, before, after, difference in change.rows():
        table.add_row(name, f"{before:.2f}", f"{after:.2f}", f"{difference:+.2f}")
    print_table(table)


def _images(folder: Path | None, limit: int, config: Config | None) -> tuple[str, list[Path]]:
    """Where to take images from for a comparison, and which."""
    from unisolo.predict_files import find_images

    if folder is None and config is not None and config.data.root is not None:
        own = config.data.root / config.data.val_split
        folder = own if own.is_dir() else None
    if folder is None:
        return "generated scenes", []
    paths = find_images(folder)[:limit]
    return f"{len(paths)} images of {folder}", paths
