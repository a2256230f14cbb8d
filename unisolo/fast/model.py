"""`optimize`: a copy of a model that gives the same outputs sooner."""

from __future__ import annotations

import copy
import threading
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from unisolo.config import InferenceConfig
from unisolo.devices import autocast_for, resolve_precision
from unisolo.fast.captured import CapturedCalls, first_line
from unisolo.fast.fold import PLAIN_CONVOLUTIONS, fold_batch_norms
from unisolo.graphs import Selected, select
from unisolo.models import UniSolo
from unisolo.structures import GridSpec, Outputs

__all__ = ["FastModel", "optimize"]

MAX_SHAPES = 8
"""Default of `optimize`: each shape costs a compilation (a minute for a large model)."""


def optimize(
    model: UniSolo,
    *,
    dtype: str = "auto",
    compile: bool = True,
    max_shapes: int = MAX_SHAPES,
) -> FastModel:
    """Make a copy of a model that gives the same outputs sooner; the model itself stays as it is.

    Batch norms are folded into convolutions, weights lie in channels-last order and, where the
    precision is a half one, are rounded once instead of in every call; the network is compiled
    (`torch.compile`); on CUDA it runs from CUDA graphs, with or without the selection of instances.

    Both are made for one shape of input, at its first use, because padding an image further would
    change what the grids see. The first `max_shapes` shapes (batch, height, width) are compiled,
    later ones run uncompiled; of CUDA graphs the `max_shapes` used most are kept.

    The copy has the weights of this moment: after training on, or `load_state_dict`, optimise
    again. It has no gradients.

    Outputs equal the model's up to rounding: in fp32 within 1e-3 of the largest value (measured:
    1e-5), in half precision as two orders of summation differ there.

    Args:
        model: The model, on the device it is to run on. It is put in evaluation mode for the copy.
        dtype: Compute precision, as in `Predictor`.
        compile: Whether to compile the network. Where no compiler is found, a warning says so and
            the network runs uncompiled.
        max_shapes: See above; at least 1.

    Returns:
        The copy.

    Raises:
        ValueError: If the precision is unknown or `max_shapes` below 1.
    """
    if max_shapes < 1:
        raise ValueError(f"max_shapes must be at least 1, got {max_shapes}")
    precision = resolve_precision(dtype, model.mean.device)
    network = copy.deepcopy(model).eval().requires_grad_(False)
    fold_batch_norms(network)
    if precision != torch.float32:
        _round_weights(network, precision)
    network.to(memory_format=torch.channels_last)
    return FastModel(network, precision, compile=compile, max_shapes=max_shapes)


class FastModel:
    """What `optimize` makes. Several threads may share it.

    Args:
        network: A model of its own, prepared.
        dtype: The compute dtype.
        compile: Whether to compile.
        max_shapes: See `optimize`.

    Attributes:
        grid: Of the model.
        device: Where it runs.
        dtype: The compute dtype.
        network: See above.
    """

    def __init__(
        self, network: UniSolo, dtype: torch.dtype, *, compile: bool, max_shapes: int
    ) -> None:
        self.grid: GridSpec = network.grid
        self.device: torch.device = network.mean.device
        self.dtype = dtype
        self.network = network
        self._max_shapes = max_shapes
        self._compiles = compile
        self._compiled: Any = None
        self._shapes: set[tuple[object, ...]] = set()
        self._lock = threading.Lock()
        on_cuda = self.device.type == "cuda"
        self._captured = CapturedCalls(self.device, max_shapes) if on_cuda else None

    def __call__(self, images: Tensor, image_sizes: Tensor) -> Outputs:
        """Predict raw outputs for a batch.

        Args:
            images: As for the model, on any device.
            image_sizes: Likewise.

        Returns:
            Raw outputs, on the model's device; memory of the caller's own.

        Raises:
            ValueError: As the model.
        """
        outputs: Outputs = self._run(images, image_sizes, None)
        return outputs

    def select(self, images: Tensor, image_sizes: Tensor, settings: InferenceConfig) -> Selected:
        """Predict and select instances; on CUDA both are one graph.

        Args:
            images: As for the model, on any device.
            image_sizes: Likewise.
            settings: Thresholds.

        Returns:
            The instances, on the model's device.

        Raises:
            ValueError: As the model.
        """
        selected: Selected = self._run(images, image_sizes, settings)
        return selected

    @torch.inference_mode()
    def _run(self, images: Tensor, image_sizes: Tensor, settings: InferenceConfig | None) -> Any:
        def compute(images: Tensor, image_sizes: Tensor) -> Outputs | Selected:
            outputs = self.network_outputs(images, image_sizes)
            return outputs if settings is None else select(outputs, self.grid, settings)

        if self._captured is None:
            return compute(images.to(self.device), image_sizes.to(self.device))
        # What decides what is launched: the memory budget too, though it changes no result.
        decides = settings and (settings.chunk_pixels, *settings.select_arguments().items())
        return self._captured(decides, compute, (images, image_sizes))

    @torch.inference_mode()
    def network_outputs(self, images: Tensor, image_sizes: Tensor) -> Outputs:
        """Run the network, compiled or not, launch by launch: for a CUDA graph of the caller's own.

        Args:
            images: As for the model, on its device.
            image_sizes: Likewise.

        Returns:
            Raw outputs.
        """
        with autocast_for(self.dtype, self.device):
            shape = (tuple(images.shape), images.dtype)
            network = self._compiled if shape in self._shapes else self.network
            if shape not in self._shapes and self._compiles:
                with self._lock:
                    if len(self._shapes) < self._max_shapes:
                        return self._compile(shape, images, image_sizes)
            outputs: Outputs = network(images, image_sizes)
            return outputs

    def _compile(self, shape: tuple[object, ...], images: Tensor, image_sizes: Tensor) -> Outputs:
        """Run a shape for the first time."""
        if self._compiled is None:
            self._compiled = torch.compile(self.network, dynamic=False, options={"freezing": True})
        from torch._dynamo import config as compiling

        outputs: Outputs
        try:
            # Torch would give up silently after 8 shapes; `max_shapes` is the limit here.
            with compiling.patch(cache_size_limit=10**6):
                outputs = self._compiled(images, image_sizes)
        # Compilers fail with types of their own; what is wrong with the input fails again below.
        except Exception as error:
            outputs = self.network(images, image_sizes)
            self._compiles = False
            warnings.warn(
                f"the network runs uncompiled, since torch.compile failed: {first_line(error)}; on "
                "Linux it needs a C++ compiler (g++), on a GPU also the package triton",
                stacklevel=2,
            )
            return outputs
        self._shapes.add(shape)
        return outputs


def _round_weights(network: nn.Module, dtype: torch.dtype) -> None:
    """Round what autocast would round in every call."""
    for module in network.modules():
        if type(module) in (*PLAIN_CONVOLUTIONS, nn.Linear):
            module.to(dtype)
