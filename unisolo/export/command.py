"""From a checkpoint to a verified file: the work of `unisolo export`."""

from __future__ import annotations

import copy
import os
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from unisolo.checkpoint import check_task, model_facts
from unisolo.config import Config, ConfigError, config_to_dict, load_config
from unisolo.data.images import ImageInput, read_image, to_rgb_array
from unisolo.data.raw import RawSample
from unisolo.data.transforms import EvalTransform
from unisolo.export.difference import Difference
from unisolo.export.formats import WRITERS, onnx_to_openvino
from unisolo.export.graph import ExportGraph
from unisolo.export.padding import fix_padding
from unisolo.export.verify import LIMITS, verify
from unisolo.graphs import GraphFacts, Size, open_graph
from unisolo.models import UniSolo
from unisolo.structures import SIZE_DIVISOR, ImageMeta, Sample

__all__ = [
    "ExportReport",
    "convert_graph",
    "export_checkpoint",
    "image_samples",
    "prepare",
    "verification_images",
]


@dataclass(frozen=True)
class ExportReport:
    """What was exported.

    Attributes:
        path: The file.
        facts: What it says about itself.
        seconds: Time of tracing and writing.
        size: Bytes, with the weights.
        difference: From the model, on images; None where that was not asked for.
        passed: Whether it is within the limits (`unisolo.export.verify.LIMITS`); None where there
            is no difference or the precision has no limits.
    """

    path: Path
    facts: GraphFacts
    seconds: float
    size: int
    difference: Difference | None
    passed: bool | None


def export_checkpoint(
    model: UniSolo,
    out: str | os.PathLike[str],
    *,
    format: str | None = None,
    task: str | None = None,
    size: Size = "stride4",
    precision: str = "fp32",
    image_dtype: str = "uint8",
    batch: int | None = None,
    image_size: tuple[int, int] | None = None,
    overrides: Iterable[str] = (),
    images: Sequence[ImageInput] | None = (),
) -> ExportReport:
    """Export a model with its post-process, and compare the file with it.

    Args:
        model: From `load_model`, on the CPU; it is put in evaluation mode.
        out: The file to write, ending in .onnx, .pt2 or .xml (a .bin is written beside it).
        format: "onnx", "torch" or "openvino"; None = by the ending.
        task: "instance", "detection" or "panoptic"; None = the model's.
        size: Of masks and maps: "stride4" (what `Predictor` needs), "input", or (H, W).
        precision: "fp32", or "fp16" for the network; the post-process stays fp32.
        image_dtype: "uint8" or "float32" (0..255), of the input.
        batch: Images per run; None = free.
        image_size: (H, W) of the input, multiples of 32; None = free.
        overrides: Settings `inference.*` and `data.*` as `key.sub=value`; thresholds become
            constants of the graph.
        images: To compare on; empty = generated scenes, None = no comparison.

    Returns:
        The report.

    Raises:
        ValueError: If an argument is out of range or the model cannot answer the task.
        ImportError: If a package that the format needs is not installed.
        OSError: If the file cannot be written; what was there before is untouched.
    """
    path = Path(out)
    ending, write = WRITERS[_format_of(path, format)]
    if path.suffix != ending:  # OpenVINO takes no ".XML"
        raise ValueError(f"{path}: files of this format end in {ending}")
    _check(precision, image_dtype, batch, image_size, size)
    facts, module = prepare(
        model,
        task=task,
        size=size,
        precision=precision,
        image_dtype=image_dtype,
        batch=batch,
        image_size=image_size,
        overrides=overrides,
    )
    samples = None
    if images is not None:
        samples = image_samples(images or verification_images(), facts.config)
        _check_fit(samples, image_size)  # before the minute that tracing can take
    start = time.perf_counter()
    write(module, facts, path)
    seconds = time.perf_counter() - start
    difference, passed = None, None
    if samples is not None:
        difference = verify(model.eval(), open_graph(path, device="cpu"), samples)
        passed = difference.within(LIMITS) if precision == "fp32" else None
    return ExportReport(path, facts, seconds, file_size(path), difference, passed)


def convert_graph(source: str | os.PathLike[str], out: str | os.PathLike[str]) -> ExportReport:
    """Write an exported ONNX file, also an int8 one, as OpenVINO.

    Args:
        source: The .onnx file.
        out: The .xml file to write; a .bin is written beside it.

    Returns:
        The report, without a comparison.

    Raises:
        ValueError: If `source` is no .onnx file of this package or `out` does not end in .xml.
        ImportError: If a package is not installed.
        OSError: If the files cannot be written.
    """
    path = Path(out)
    if Path(source).suffix.lower() != ".onnx" or path.suffix != ".xml":
        raise ValueError(
            f"{source}: of exported files only .onnx can be turned, and only into .xml; export "
            "other formats from the checkpoint"
        )
    facts = open_graph(source, device="cpu").facts
    start = time.perf_counter()
    onnx_to_openvino(Path(source), facts, path)
    return ExportReport(path, facts, time.perf_counter() - start, file_size(path), None, None)


def prepare(
    model: UniSolo,
    *,
    task: str | None,
    size: Size,
    precision: str = "fp32",
    image_dtype: str = "uint8",
    batch: int | None = None,
    image_size: tuple[int, int] | None = None,
    overrides: Iterable[str] = (),
) -> tuple[GraphFacts, ExportGraph]:
    """Return the facts and the module of an export; arguments as for `export_checkpoint`."""
    config, categories = model_facts(model)
    check_task(config, task)
    config = _with_overrides(config, task, overrides)
    network = copy.deepcopy(model).cpu().eval()
    fix_padding(network)
    if precision == "fp16":
        network.half()
    module = ExportGraph(network, config.task, size, config.inference).eval()
    facts = GraphFacts(
        config=config,
        categories=categories,
        size=size,
        outputs=module.names,
        image_dtype=image_dtype,
        precision=precision,
        batch=batch,
        image_size=image_size,
    )
    return facts, module


def image_samples(images: Iterable[ImageInput], config: Config) -> list[Sample]:
    """Bring images to the model's input as `Predictor` does."""
    data = config.data
    transform = EvalTransform(data.image_size, data.max_size, resize=data.resize)
    samples = []
    for image in images:
        array = to_rgb_array(image)
        size = (array.shape[0], array.shape[1])
        meta = ImageMeta(image_id="", file_name="", orig_size=size, input_size=size)
        samples.append(transform(RawSample(image=array, meta=meta)))
    return samples


def verification_images() -> list[ImageInput]:
    """Generated scenes, wide and tall, for a comparison without a data set."""
    from unisolo.data.shapes import generate_shapes

    with tempfile.TemporaryDirectory() as folder:
        found: list[ImageInput] = []
        for seed, scene in enumerate([(240, 320), (320, 240)]):
            root = generate_shapes(
                Path(folder) / str(seed), num_train=1, num_val=4, image_size=scene, seed=seed
            )
            found += [read_image(path) for path in sorted((root / "val2017").iterdir())]
        return found


def file_size(path: Path) -> int:
    """Bytes of an exported file and of its weights beside it."""
    beside = path.with_suffix(".bin")
    both = [path, beside] if path.suffix == ".xml" else [path]
    return sum(part.stat().st_size for part in both)


def _format_of(path: Path, format: str | None) -> str:
    if format is None:
        by_ending = {ending: name for name, (ending, _) in WRITERS.items()}
        format = by_ending.get(path.suffix.lower())
        if format is None:
            raise ValueError(
                f"{path}: no format has this ending; use {', '.join(by_ending)} or give --format"
            )
    if format not in WRITERS:
        raise ValueError(f"unknown format {format!r}; choose from {', '.join(WRITERS)}")
    return format


def _with_overrides(config: Config, task: str | None, overrides: Iterable[str]) -> Config:
    for override in overrides:
        if not override.startswith(("inference.", "data.")):
            raise ConfigError(
                f"{override!r} changes nothing in an export; settings of inference.* and data.* do"
            )
    values = config_to_dict(config)
    if task is not None:
        values["task"] = task
    # Files are given away: places on this machine stay here.
    values["data"]["root"] = values["model"]["backbone_weights"] = None
    values["train"].pop("out")
    return load_config(None, overrides, values=values)


def _check_fit(samples: Sequence[Sample], image_size: tuple[int, int] | None) -> None:
    if image_size is None:
        return
    for sample in samples:
        size = sample.meta.input_size
        if size[0] > image_size[0] or size[1] > image_size[1]:
            raise ValueError(
                f"the input is fixed to {image_size[0]} x {image_size[1]}, and an image to compare "
                f"on becomes {size[0]} x {size[1]}; set data.image_size and data.max_size so that "
                "images fit"
            )


def _check(
    precision: str,
    image_dtype: str,
    batch: int | None,
    image_size: tuple[int, int] | None,
    size: Size,
) -> None:
    if precision not in ("fp32", "fp16"):
        raise ValueError(
            f"precision must be fp32 or fp16, got {precision!r}; int8 is made from an exported "
            "ONNX file by `unisolo quantize`"
        )
    if image_dtype not in ("uint8", "float32"):
        raise ValueError(f"the image input must be uint8 or float32, got {image_dtype!r}")
    if batch is not None and batch < 1:
        raise ValueError(f"batch must be at least 1, got {batch}")
    if image_size is not None and any(
        side < SIZE_DIVISOR or side % SIZE_DIVISOR for side in image_size
    ):
        raise ValueError(
            f"the input's sides must be multiples of {SIZE_DIVISOR}, got "
            f"{image_size[0]} x {image_size[1]}"
        )
    if isinstance(size, str):
        if size not in ("stride4", "input"):
            raise ValueError(f"size must be stride4, input or HxW, got {size!r}")
    elif any(side < 1 for side in size):
        raise ValueError(f"the size of masks must be positive, got {size[0]} x {size[1]}")
