"""int8 for exported ONNX graphs: static quantisation of the network's convolutions.

The file keeps its inputs, outputs and post-process. Convolutions are wrapped in pairs of
QuantizeLinear and DequantizeLinear (QDQ), which ONNX Runtime and OpenVINO read. TensorRT does not:
it wants ranges that are symmetric around 0, which waste half of the values behind a ReLU.
"""

from __future__ import annotations

import io
import itertools
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unisolo.data.images import ImageInput
from unisolo.data.loader import collate
from unisolo.export.command import image_samples
from unisolo.files import write_atomically
from unisolo.graphs import GraphError, GraphFacts, fit_images, open_graph
from unisolo.graphs.facts import KEY
from unisolo.structures import Sample

__all__ = ["KEPT", "QuantizeReport", "quantize_onnx"]

KEPT = ("solo_head.category_out", "solo_head.kernel_out", "stuff_logits.out")
"""Convolutions that stay in fp32 beside the first, by parts of their weights' names.

docs/deploy.md says what that is worth. Only the network's ends are kept: a convolution in fp32
between two int8 ones was measured to come out worse in ONNX Runtime than in int8.
"""

_METHODS = {"minmax": "MinMax", "percentile": "Percentile", "entropy": "Entropy"}

_ACTIVATIONS = ("Relu", "Clip")
"""What a convolution's range can be measured behind: its own values below are never seen."""


@dataclass(frozen=True)
class QuantizeReport:
    """What was quantised.

    Attributes:
        path: The int8 file.
        facts: What it says about itself.
        images: Images that the ranges were measured on.
        quantized: Convolutions in int8.
        kept: Convolutions left in fp32.
        seconds: Time of calibration and writing.
        size: Bytes of the file.
        size_before: Bytes of the fp32 file.
    """

    path: Path
    facts: GraphFacts
    images: int
    quantized: int
    kept: int
    seconds: float
    size: int
    size_before: int


def quantize_onnx(
    source: Path,
    out: Path,
    images: Iterable[ImageInput],
    *,
    max_images: int = 100,
    method: str = "minmax",
) -> QuantizeReport:
    """Quantise an exported graph's convolutions to int8.

    Activations get one unsigned 8-bit range per tensor, measured on images that are prepared as
    `Predictor` prepares them; weights one signed 8-bit range per output channel.

    Args:
        source: An fp32 `.onnx` file from `unisolo export`, of any task and size.
        out: The `.onnx` file to write.
        images: Like those that the model will see, best from its training split.
        max_images: Most images to measure on; the rest is not read.
        method: How ranges follow from values: "minmax"; "percentile" (99.999 % of them) or
            "entropy", which cut outliers off.

    Returns:
        The report.

    Raises:
        ValueError: If there are no images, an argument is out of range, or `out` is `source`.
        GraphError: If the source is not an fp32 graph from this package, or an image does not fit
            its fixed size.
        ImportError: If onnx or onnxruntime is not installed.
        OSError: If the file cannot be written; what was there before is untouched.
    """
    source, out = Path(source), Path(out)
    facts = _checked_facts(source, out, max_images, method)
    import onnx

    start = time.perf_counter()
    model = onnx.load(str(source))
    wanted, kept = _convolutions(model)
    samples = _samples(images, facts, max_images)
    ranges, count = _ranges(model, wanted, _inputs(samples, source, facts), method)
    quantized = _quantized(model, ranges, wanted)
    facts = facts.with_precision("int8")
    _write(quantized, facts, out)
    return QuantizeReport(
        path=out,
        facts=facts,
        images=count,
        quantized=sum(node.op_type == "Conv" for node in wanted),
        kept=kept,
        seconds=time.perf_counter() - start,
        size=out.stat().st_size,
        size_before=source.stat().st_size,
    )


def _checked_facts(source: Path, out: Path, max_images: int, method: str) -> GraphFacts:
    for path in (source, out):
        if path.suffix.lower() != ".onnx":
            raise ValueError(
                f"{path}: only .onnx files are quantised; export to .onnx, quantise that, and turn "
                "the int8 file into .xml with `unisolo export` where it is wanted"
            )
    if out.exists() and source.exists() and out.samefile(source):
        raise ValueError(f"{out}: is the source itself; give another --out")
    if max_images < 1:
        raise ValueError(f"the number of calibration images must be at least 1, got {max_images}")
    if method not in _METHODS:
        raise ValueError(f"method must be {', '.join(_METHODS)}, got {method!r}")
    facts = open_graph(source, device="cpu").facts
    if facts.precision == "int8":
        raise GraphError(f"{source}: is int8 already; give the fp32 file it was made from")
    if facts.precision != "fp32":
        raise GraphError(
            f"{source}: is {facts.precision}; int8 is made from an fp32 file: export again with "
            "--precision fp32"
        )
    return facts


def _samples(images: Iterable[ImageInput], facts: GraphFacts, most: int) -> Iterator[Sample]:
    """Prepare images one at a time: only one is in memory."""
    for image in itertools.islice(images, most):
        yield from image_samples([image], facts.config)


def _inputs(
    samples: Iterable[Sample], source: Path, facts: GraphFacts
) -> Iterator[dict[str, NDArray[np.generic]]]:
    """A graph's inputs, each image alone; fixed sizes are padded, fixed batches filled up."""
    for sample in samples:
        batch = collate([sample])
        pixels = fit_images(batch.images, facts, source).numpy()
        count = facts.batch or 1
        yield {
            "images": np.repeat(pixels, count, axis=0).astype(facts.image_dtype),
            "image_sizes": np.repeat(batch.image_sizes.numpy(), count, axis=0),
        }


def _convolutions(model: Any) -> tuple[list[Any], int]:
    """Nodes to quantise (convolutions, and activations that only follow one), and how many not."""
    constants = {tensor.name for tensor in model.graph.initializer}
    uses: dict[str, list[Any]] = {}
    for node in model.graph.node:
        for name in node.input:
            uses.setdefault(name, []).append(node)
    outputs = {output.name for output in model.graph.output}
    wanted, kept = [], 0
    behind: set[str] = set()  # tensors that follow from a convolution; nodes are in order
    for node in model.graph.node:
        first = behind.isdisjoint(node.input)
        if node.op_type == "Conv" or not first:
            behind.update(node.output)
        if node.op_type != "Conv" or node.input[1] not in constants:
            continue
        if first or any(part in node.input[1] for part in KEPT):
            kept += 1
            continue
        wanted.append(node)
        followers = uses.get(node.output[0], [])
        alone = len(followers) == 1 and node.output[0] not in outputs
        if alone and followers[0].op_type in _ACTIVATIONS:
            wanted.append(followers[0])
    return wanted, kept


class _Reader:
    """Hands inputs on in ONNX Runtime's way, one image per collection: few activations at once."""

    def __init__(self, inputs: dict[str, NDArray[np.generic]]) -> None:
        self._inputs: dict[str, NDArray[np.generic]] | None = inputs

    def get_next(self) -> dict[str, NDArray[np.generic]] | None:
        inputs, self._inputs = self._inputs, None
        return inputs


def _ranges(
    model: Any, wanted: list[Any], inputs: Iterator[dict[str, NDArray[np.generic]]], method: str
) -> tuple[Any, int]:
    """Measure the activations of the nodes; the post-process is cut off and not run."""
    import onnx
    from onnxruntime.quantization import CalibrationMethod, create_calibrator

    names = [given.name for given in model.graph.input]
    network = onnx.utils.Extractor(model).extract_model(
        names, list(dict.fromkeys(node.output[0] for node in wanted))
    )
    count = 0
    with tempfile.TemporaryDirectory(prefix="unisolo-int8-") as folder:
        path = Path(folder) / "network.onnx"
        onnx.save(network, str(path))
        calibrator = create_calibrator(
            path,
            ["Conv", *_ACTIVATIONS],
            augmented_model_path=str(Path(folder) / "augmented.onnx"),
            calibrate_method=CalibrationMethod[_METHODS[method]],
        )
        with redirect_stdout(io.StringIO()):  # the library talks about itself
            for values in inputs:
                calibrator.collect_data(_Reader(values))
                count += 1
            if count == 0:
                raise ValueError("no calibration images; give some like those the model will see")
            return calibrator.compute_data(), count


def _quantized(model: Any, ranges: Any, wanted: list[Any]) -> Any:
    from onnxruntime.quantization import QDQQuantizer, QuantType

    quantizer = QDQQuantizer(
        model,
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8,
        tensors_range=ranges,
        nodes_to_quantize=[node.name for node in wanted],
        nodes_to_exclude=[],
        op_types_to_quantize=["Conv", *_ACTIVATIONS],
        extra_options={},
    )
    quantizer.quantize_model()
    return quantizer.model.model


def _write(model: Any, facts: GraphFacts, out: Path) -> None:
    import onnx

    onnx.helper.set_model_props(model, {KEY: facts.to_json()})
    write_atomically(out, lambda temporary: onnx.save(model, temporary))
