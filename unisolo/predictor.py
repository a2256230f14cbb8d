"""`Predictor`: a checkpoint, images in, results out."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unisolo.checkpoint import check_task, model_facts
from unisolo.config import SHOWN_SCORE, InferenceConfig
from unisolo.data.images import ImageError, ImageInput, to_rgb_array
from unisolo.data.loader import collate, padded_size_groups
from unisolo.data.raw import RawSample
from unisolo.data.transforms import EvalTransform
from unisolo.devices import autocast_for, resolve_device, resolve_precision
from unisolo.fast import optimize
from unisolo.graphs import Graph, GraphError, Selected, select
from unisolo.hub import HubModel
from unisolo.models import UniSolo
from unisolo.results import Result
from unisolo.structures import Batch, ImageMeta, Outputs, Sample
from unisolo.tasks import get_task
from unisolo.thresholds import Thresholds, settings_of_call
from unisolo.zoo import open_model

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Predictor", "Thresholds"]


class Predictor(HubModel):
    """Answers a task for images.

        predictor = Predictor("model.safetensors", task="panoptic")
        result = predictor.predict("street.jpg", score_threshold=0.3)

    `predict` and `predict_batch` do everything. The three stages they are made of are public, so
    that one forward can serve several tasks:

        sample = predictor.preprocess("street.jpg")
        outputs = predictor.forward([sample])
        boxes = predictor.postprocess(outputs, [sample.meta], task="detection")
        panoptic = predictor.postprocess(outputs, [sample.meta], task="panoptic")

    Nothing is remembered between calls. Several threads may share a predictor. `from_pretrained`,
    `save_pretrained` and `push_to_hub` are for folders and the Hugging Face Hub (docs/hub.md).

    Args:
        model: Path of a checkpoint or of an exported graph (.onnx, .xml, .pt2); a name from
            `unisolo.list_models`, whose weights are fetched on first use; or a model made by
            `build_model` or `load_model`, or a graph from `unisolo.graphs.open_graph`. A model is
            used as it is, not copied: it is put in evaluation mode, and on `device` if one is
            named. The thresholds up to Matrix NMS are constants of a graph.
        task: "panoptic", "instance" or "detection"; None = the one it was trained for.
        device: "auto" = CUDA, else MPS, else CPU (for a model: where it is); or any torch device.
            Of a graph those of its runtime, see `unisolo.graphs.open_graph`.
        dtype: Compute precision: "auto" (fp32 on CPU; bf16 on a GPU that has it, else fp16),
            "fp32", "bf16" or "fp16". Weights stay fp32; the others work by autocast. A graph has
            its own.
        compile: Run a copy of the model made by `unisolo.optimize`, with its default of 8 shapes:
            the same answers up to rounding, sooner, after a compilation for each of the first
            shapes of input (minutes for a large model). Weights that change later are not seen.

    Attributes:
        model: The model or graph.
        task: Name of the task.
        categories: Categories of the model.
        config: Configuration of the model.
        dtype: The compute dtype.

    Raises:
        ValueError: If the task, device or precision is unknown, the file is not a checkpoint
            (`CheckpointError`) or graph (`GraphError`, which is one), or it has no head for the
            task.
        TypeError: If `model` is neither a path nor a model.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | UniSolo | Graph,
        *,
        task: str | None = None,
        device: str | torch.device = "auto",
        dtype: str = "auto",
        compile: bool = False,
    ) -> None:
        if task is not None:
            get_task(task)  # an unknown name is told before a file is read
        self.model = _model(model, task, device)
        self.config, self.categories = model_facts(self.model)
        self.task = task or self.config.task
        if isinstance(self.model, Graph) and dtype != "auto":
            raise GraphError(
                f"{self.model.path}: the precision is the graph's ({self.model.facts.precision}); "
                "leave dtype out, or export with --precision"
            )
        if isinstance(self.model, Graph) and compile:
            raise GraphError(
                f"{self.model.path}: a graph is run by its own runtime; leave compile out, or give "
                "the checkpoint it was exported from"
            )
        self.dtype = resolve_precision(dtype, self.device)
        self._fast = None
        if compile and isinstance(self.model, UniSolo):
            self._fast = optimize(self.model, dtype=dtype)
        data = self.config.data
        self._transform = EvalTransform(data.image_size, data.max_size, resize=data.resize)

    @property
    def device(self) -> torch.device:
        """Where the model is; for a graph, where its results are."""
        if isinstance(self.model, Graph):
            return self.model.device
        return next(self.model.parameters()).device

    def preprocess(self, image: ImageInput, *, bgr: bool = False) -> Sample:
        """Read and resize an image as in evaluation.

        Args:
            image: A path; a PIL image; an ndarray, uint8, [H, W, 3] RGB or [H, W] grey; or a
                tensor, uint8, [3, H, W] RGB. Files and PIL images are turned upright (EXIF).
            bgr: The channels of an ndarray or tensor are blue, green, red (as OpenCV reads them).

        Returns:
            The sample, on the CPU. For a path `meta.file_name` is the path and `meta.image_id` its
            name without the ending; both are empty otherwise.

        Raises:
            ValueError: If an array has the wrong rank or dtype (the message gives what was
                received), or a file is not a readable image (`ImageError`).
            TypeError: If `image` is of another kind.
        """
        array = to_rgb_array(image, bgr=bgr)
        path = Path(image) if isinstance(image, (str, os.PathLike)) else None
        size = (array.shape[0], array.shape[1])
        meta = ImageMeta(
            image_id=path.stem if path else "",
            file_name=str(path) if path else "",
            orig_size=size,
            input_size=size,
        )
        return self._transform(RawSample(image=array, meta=meta))

    @torch.inference_mode()
    def forward(self, batch: Batch | Sequence[Sample]) -> Outputs | Selected:
        """Run the model once; every task is answered from what it returns.

        Args:
            batch: A batch, or samples, which are padded to the largest. The grids span the padded
                image, so an image padded further than it would be alone is seen with other cells;
                `predict_batch` only joins images of one padded size.

        Returns:
            Raw outputs, on the model's device. A graph gives the instances it has selected.
        """
        if isinstance(batch, Sample):
            raise TypeError("forward takes a Batch or a list of samples: give [sample]")
        if not isinstance(batch, Batch):
            batch = collate(batch)
        if isinstance(self.model, Graph):
            return self.model(batch.images, batch.image_sizes)
        if self._fast is not None:
            return self._fast(batch.images, batch.image_sizes)
        if self.model.training:  # someone trained on between two calls
            self.model.eval()
        device = self.device
        batch = batch.to(device)
        with autocast_for(self.dtype, device):
            outputs: Outputs = self.model(batch.images, batch.image_sizes)
        return outputs

    @torch.inference_mode()
    def postprocess(
        self,
        outputs: Outputs | Selected,
        metas: Sequence[ImageMeta],
        *,
        task: str | None = None,
        score_threshold: float = SHOWN_SCORE,
        **thresholds: Unpack[Thresholds],
    ) -> list[Result]:
        """Turn raw outputs into results; may be called for several tasks on the same outputs.

        Args:
            outputs: From `forward`.
            metas: One per image of the batch.
            task: Name of a task; None = the predictor's.
            score_threshold: Instances with a lower score are left out. It does not change the
                panoptic map, which has its own `panoptic_score_threshold`.
            **thresholds: See `Thresholds`.

        Returns:
            One result per image, on the model's device.

        Raises:
            ValueError: If the task is unknown or the model has no head for it, a threshold is out
                of range or belongs to another task, or `metas` does not fit the batch.
            TypeError: If there is no threshold of a name; the message gives the nearest one.
        """
        name = task or self.task
        settings = settings_of_call(self.config, name, score_threshold, thresholds)
        if isinstance(self.model, Graph):
            self.model.check_settings(settings)
            found = select(outputs, None, settings)
        else:
            found = select(outputs, self.model.grid, settings)
        if len(metas) != len(found.instances.scores):
            raise ValueError(
                f"{len(metas)} metas for a batch of {len(found.instances.scores)} images; give "
                "one each"
            )
        return get_task(name)(self.categories).postprocess(
            found.instances,
            found.extras,
            metas,
            padded_size=found.padded_size,
            score_threshold=score_threshold,
            **settings.postprocess_arguments(),
        )

    def predict(
        self,
        image: ImageInput,
        *,
        score_threshold: float = SHOWN_SCORE,
        bgr: bool = False,
        **thresholds: Unpack[Thresholds],
    ) -> Result:
        """Answer the task for one image.

        Args:
            image: See `preprocess`.
            score_threshold: See `postprocess`.
            bgr: See `preprocess`.
            **thresholds: See `Thresholds`.

        Returns:
            The result in the frame of the upright image, on the CPU.

        Raises:
            ValueError: As `preprocess` and `postprocess`.
            TypeError: Likewise.
        """
        settings = settings_of_call(self.config, self.task, score_threshold, thresholds)
        sample = self.preprocess(image, bgr=bgr)
        outputs = self._selected(collate([sample]), settings)
        (result,) = self.postprocess(
            outputs, [sample.meta], score_threshold=score_threshold, **thresholds
        )
        return result.cpu()

    def _selected(self, batch: Batch, settings: InferenceConfig) -> Outputs | Selected:
        """Run the model, with the selection of instances where both are one CUDA graph."""
        if self._fast is None:
            return self.forward(batch)
        return self._fast.select(batch.images, batch.image_sizes, settings)

    @overload
    def predict_batch(
        self,
        images: Iterable[ImageInput],
        *,
        batch_size: int = ...,
        score_threshold: float = ...,
        bgr: bool = ...,
        on_error: Literal["raise"] = ...,
        **thresholds: Unpack[Thresholds],
    ) -> list[Result]: ...

    @overload
    def predict_batch(
        self,
        images: Iterable[ImageInput],
        *,
        batch_size: int = ...,
        score_threshold: float = ...,
        bgr: bool = ...,
        on_error: Literal["return"],
        **thresholds: Unpack[Thresholds],
    ) -> list[Result | ImageError]: ...

    def predict_batch(
        self,
        images: Iterable[ImageInput],
        *,
        batch_size: int = 8,
        score_threshold: float = SHOWN_SCORE,
        bgr: bool = False,
        on_error: Literal["raise", "return"] = "raise",
        **thresholds: Unpack[Thresholds],
    ) -> list[Result] | list[Result | ImageError]:
        """Answer the task for many images.

        Only images of one padded size run together, since padding an image further changes what
        the grids see. So every result equals that of `predict` (up to rounding), whatever it was
        batched with. Images are read when they are needed: at most `batch_size` of each padded
        size are held.

        Args:
            images: Images as for `preprocess`, mixed kinds and sizes allowed.
            batch_size: Most images in one forward pass.
            score_threshold: See `postprocess`.
            bgr: See `preprocess`.
            on_error: What an image that cannot be used does: "raise" stops the call; "return" puts
                the `ImageError` in the image's place, and the others are not affected.
            **thresholds: See `Thresholds`.

        Returns:
            One result per image in the order given, on the CPU; with `on_error="return"` an
            `ImageError` (not raised) in place of the result of an image that cannot be used.

        Raises:
            ValueError: As `predict`, or if `batch_size` is less than 1 or `on_error` is neither.
            TypeError: Likewise, or if `images` is a single image.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if on_error not in ("raise", "return"):
            raise ValueError(f"on_error must be 'raise' or 'return', got {on_error!r}")
        _check_many(images)
        settings = settings_of_call(self.config, self.task, score_threshold, thresholds)
        found: dict[int, Result | ImageError] = {}

        def samples() -> Iterator[tuple[int, Sample]]:
            for number, image in enumerate(images):
                try:
                    sample = self.preprocess(image, bgr=bgr)
                except (ValueError, TypeError) as error:
                    if on_error == "raise":
                        raise
                    found[number] = _as_image_error(error, number)
                else:
                    yield number, sample

        for group in padded_size_groups(
            samples(), batch_size, lambda item: item[1].meta.input_size
        ):
            batch = collate([sample for _, sample in group])
            results = self.postprocess(
                self._selected(batch, settings),
                batch.metas,
                score_threshold=score_threshold,
                **thresholds,
            )
            for (number, _), result in zip(group, results, strict=True):
                found[number] = result.cpu()
        return [found[number] for number in range(len(found))]

    def __repr__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"Predictor(task={self.task!r}, device={str(self.device)!r}, dtype={dtype!r})"


def _model(
    model: str | os.PathLike[str] | UniSolo | Graph, task: str | None, device: str | torch.device
) -> UniSolo | Graph:
    """Open, move and check what a predictor was given."""
    if isinstance(model, (str, os.PathLike)):
        model = open_model(model, task=task, device=device)
    elif isinstance(model, Graph):
        model.check_unfinished()
        check_task(model.config, task)
        if device != "auto":
            raise GraphError(f"{model.path}: give the device to open_graph, not here")
    elif isinstance(model, UniSolo):
        check_task(model_facts(model)[0], task)
        if device != "auto":
            model.to(resolve_device(device))
    else:
        raise TypeError(
            "model must be a path of a checkpoint or exported graph, a model's name, a UniSolo or "
            f"a Graph, got {type(model).__name__}"
        )
    return model.eval() if isinstance(model, UniSolo) else model


def _check_many(images: Iterable[ImageInput]) -> None:
    """Refuse what Python would take apart: an array by rows, a path by letters."""
    single = isinstance(images, (str, os.PathLike, Image.Image))
    if single or (isinstance(images, (np.ndarray, Tensor)) and images.ndim != 4):
        raise TypeError("predict_batch takes a list of images; for one image use predict")


def _as_image_error(error: Exception, number: int) -> ImageError:
    """Errors of files name the file already; those of arrays and objects get their place."""
    if isinstance(error, ImageError):
        return error
    named = ImageError(f"image {number} of the list: {error}")
    named.__cause__ = error
    return named
