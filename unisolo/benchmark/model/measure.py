"""How long models take: a backbone alone, ours, and those of others, in one run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unisolo.benchmark.gpu_timing import tf32, time_on_gpu
from unisolo.benchmark.machine import describe_machine
from unisolo.benchmark.model.peers import mask2former_call, mask_rcnn_call
from unisolo.benchmark.model.report import (
    FLOOR,
    MASK2FORMER,
    MASK_RCNN,
    WHOLE,
    Mode,
    ModelReport,
    ModelRow,
)
from unisolo.benchmark.models import input_image, random_model
from unisolo.benchmark.timing import Timing, time_in_turns
from unisolo.config import InferenceConfig, load_config
from unisolo.devices import autocast_for
from unisolo.fast import FastModel, optimize
from unisolo.graphs import select
from unisolo.models import UniSolo
from unisolo.ops.masks import upsample_masks
from unisolo.structures import SIZE_DIVISOR, Outputs

__all__ = ["measure_models"]

Call = Callable[[], object]


@dataclass(frozen=True)
class _Timed:
    part: str
    mode: Mode
    dtype: str
    timing: Timing


def measure_models(
    configs: Sequence[Path],
    *,
    size: tuple[int, int],
    batches: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
    repeat: int = 20,
    compile: bool = True,
    peers: bool = True,
    tell: Callable[[str], None] = lambda text: None,
) -> ModelReport:
    """Measure models with random weights, every place of instances filled.

    Args:
        configs: Configuration files of ours.
        size: (H, W) of the images; padded to multiples of 32 as in evaluation.
        batches: Numbers of images in a call.
        dtype: Compute dtype.
        device: A CUDA device, or the CPU, which has no graphs.
        repeat: Timed runs of each.
        compile: Whether to compile; without it there is no floor.
        peers: Whether to measure models of others.
        tell: Gets one line per step.

    Returns:
        The report.

    Raises:
        ConfigError: If a file is not a configuration.
        ValueError: If there is no model or batch, a number is out of range, or the device is
            another one.
    """
    if not configs or not batches:
        raise ValueError("at least one model and one batch size are needed")
    if repeat < 1 or min(batches) < 1 or min(size) < 1:
        raise ValueError("timed runs, batch sizes and the sides of images must be at least 1")
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"models are measured on cpu or cuda, got {device}")
    for config in configs:
        load_config(config)  # what is wrong with the last shows before the first is measured
    rows: list[ModelRow] = []
    instances: dict[str, int] = {}
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        machine = describe_machine()  # of the device that is measured
        for batch in dict.fromkeys(batches):
            images, sizes = _images(size, batch, device)
            base = None
            if peers:
                others = _time_peers(images, size, dtype, repeat, tell, instances)
                base = min(row.timing.median for row in others if row.part == MASK_RCNN)
                rows += _told(_rows("", batch, others, base), tell)
            for config in configs:
                tell(f"{config.stem}, {batch} image{'s' * (batch > 1)}")
                torch.compiler.reset()  # after 8 backbones torch would silently compile no more
                subject = _Subject(config, images, sizes, dtype, compile)
                instances[config.stem] = subject.instances()
                rows += _told(_rows(config.stem, batch, subject.time(repeat), base), tell)
    return ModelReport(
        machine=machine,
        device=device.type,
        dtype=_name(dtype),
        size=size,
        instances=instances,
        rows=tuple(rows),
    )


class _Subject:
    """A model of ours in all its forms, with its inputs."""

    def __init__(
        self, config: Path, images: Tensor, sizes: Tensor, dtype: torch.dtype, compile: bool
    ) -> None:
        self.images, self.sizes = images, sizes
        self.dtype, self.compile = dtype, compile
        self.orig_size = (int(sizes[0, 0]), int(sizes[0, 1]))
        self.settings = InferenceConfig()
        self.model: UniSolo = random_model(config).to(images.device)
        self.model.to(memory_format=torch.channels_last)
        precision = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]
        # One copy for what runs as it is and one for what is compiled.
        self.plain = optimize(self.model, dtype=precision, compile=False)
        self.compiled = optimize(self.model, dtype=precision) if compile else None

    def instances(self) -> int:
        with torch.inference_mode():
            return int(self._selected(self._eager()).valid[0].sum())

    def time(self, repeat: int) -> list[_Timed]:
        """Time every form, the floor among them."""
        with torch.inference_mode():
            eager: dict[str, Call] = {
                "backbone alone": self._backbone(self.model),
                "network": self._eager,
                "network and post-process": lambda: self._finish(self._eager()),
            }
            prepared: dict[str, Call] = {
                "backbone alone, prepared": self._backbone(self.plain.network),
                "network, prepared": lambda: self._fast(self.plain),
                "network and post-process, prepared": lambda: self._finish(self._fast(self.plain)),
            }
            compiled = self.compiled
            if compiled is not None:
                prepared[FLOOR] = self._compiled_backbone(compiled)
                prepared["network, compiled"] = lambda: self._fast(compiled)
                prepared[WHOLE] = lambda: self._finish(self._fast(compiled))
            if self.images.is_cuda:
                return self._timed(eager, repeat, "eager") + self._timed(
                    {"backbone alone": eager["backbone alone"], **prepared}, repeat, "graph"
                )
            return self._timed({**eager, **prepared}, repeat, "eager")

    def _timed(self, calls: Mapping[str, Call], repeat: int, mode: Mode) -> list[_Timed]:
        if self.images.is_cuda:
            timings = time_on_gpu(calls, repeat, graph=mode == "graph")
        else:
            timings = time_in_turns(calls, repeat)
        name = _name(self.dtype)
        return [_Timed(part, mode, name, timing) for part, timing in timings.items()]

    def _eager(self) -> Outputs:
        with autocast_for(self.dtype, self.images.device):
            outputs: Outputs = self.model(self.images, self.sizes)
        return outputs

    def _fast(self, fast: FastModel) -> Outputs:
        return fast.network_outputs(self.images, self.sizes)

    def _selected(self, outputs: Outputs) -> Any:
        return select(outputs, self.model.grid, self.settings).instances

    def _finish(self, outputs: Outputs) -> object:
        """Instances and their masks at the size of the images, as bits, on the device."""
        instances = self._selected(outputs)
        padded = (self.images.shape[-2], self.images.shape[-1])
        return [
            upsample_masks(
                probs,
                padded_size=padded,
                input_size=self.orig_size,
                orig_size=self.orig_size,
                threshold=self.settings.mask_threshold,
            )
            for probs in instances.mask_probs
        ]

    def _backbone(self, model: UniSolo) -> Call:
        inputs = model.normalize(self.images, self.sizes)
        inputs = inputs.to(self.dtype).contiguous(memory_format=torch.channels_last)

        def call() -> object:
            with autocast_for(self.dtype, inputs.device):
                return model.backbone(inputs)

        return call

    def _compiled_backbone(self, fast: FastModel) -> Call:
        inputs = fast.network.normalize(self.images, self.sizes)
        inputs = inputs.to(self.dtype).contiguous(memory_format=torch.channels_last)
        backbone = torch.compile(fast.network.backbone, dynamic=False, options={"freezing": True})

        def call() -> object:
            with autocast_for(self.dtype, inputs.device):
                return backbone(inputs)

        return call


def _images(size: tuple[int, int], batch: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Images padded to multiples of 32, and the sizes of their valid parts."""
    height, width = (-(-side // SIZE_DIVISOR) * SIZE_DIVISOR for side in size)
    images = torch.cat([input_image((height, width), seed) for seed in range(batch)])
    images[..., size[0] :, :] = 0
    images[..., size[1] :] = 0
    return images.to(device), torch.tensor([size] * batch, device=device)


def _time_peers(
    images: Tensor,
    size: tuple[int, int],
    dtype: torch.dtype,
    repeat: int,
    tell: Callable[[str], None],
    instances: dict[str, int],
) -> list[_Timed]:
    """Run as their users run them: from Python; Mask R-CNN waits inside and cannot be captured."""
    precisions = dict.fromkeys([torch.float32, dtype])
    timed = []
    for precision in precisions:
        name = "tf32" if precision == torch.float32 and images.is_cuda else _name(precision)
        with torch.inference_mode(), tf32(True):
            tell(f"models of others, {name}, {len(images)} images")
            # It pads by itself, and pastes its masks into what it was given.
            run = mask_rcnn_call(images[..., : size[0], : size[1]], precision)
            calls: dict[str, Call] = {MASK_RCNN: run}
            instances[f"{MASK_RCNN}, {name}"] = run()
            other = mask2former_call(images, precision)
            if other is not None:
                calls[MASK2FORMER] = other
            if images.is_cuda:
                timings = time_on_gpu(calls, repeat, graph=False)
            else:
                timings = time_in_turns(calls, repeat)
        timed += [_Timed(part, "eager", name, timing) for part, timing in timings.items()]
    return timed


def _rows(model: str, batch: int, timed: Sequence[_Timed], base: float | None) -> list[ModelRow]:
    floor = next((row.timing.median for row in timed if row.part == FLOOR), None)
    return [
        ModelRow(
            model=model,
            batch=batch,
            part=row.part,
            mode=row.mode,
            dtype=row.dtype,
            timing=row.timing,
            of_floor=None if floor is None else row.timing.median / floor,
            over_mask_rcnn=None if base is None else base / row.timing.median,
        )
        for row in timed
    ]


def _told(rows: list[ModelRow], tell: Callable[[str], None]) -> list[ModelRow]:
    """Pass rows on and tell them: a run that is cut short has said what it found."""
    for row in rows:
        tell(f"  {row.part}, {row.mode}, {row.dtype}: {row.timing.median:.2f} ms")
    return rows


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
