"""What every evaluator does, and the book of predictions both of ours keep."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from unisolo.reading import file_problem, parse_json
from unisolo.results import Result
from unisolo.structures import ImageMeta

__all__ = ["Evaluator", "ImageId", "PredictionBook", "check_backend", "read_json"]

ImageId = int | str

T = TypeVar("T")


class Evaluator(Protocol):
    """Collects predictions image by image, in any order, and scores them.

    Over several processes each updates its own evaluator with its own images; one of them then
    calls `merge` with the `state()` of all (itself included) and `compute`.
    """

    def reset(self) -> None:
        """Forget every prediction."""
        ...

    def update(self, results: Sequence[Result], metas: Sequence[ImageMeta]) -> None:
        """Add the predictions of some images.

        Args:
            results: One per image.
            metas: Whose images they are; `image_id` as in the ground truth.

        Raises:
            ValueError: If an image is unknown, of another size than the ground truth says, or
                was added before.
        """
        ...

    def state(self) -> list[Any]:
        """Return the predictions so far, compressed and picklable, for `merge` elsewhere."""
        ...

    def merge(self, states: Sequence[list[Any]]) -> None:
        """Replace the predictions by those of all `states` together.

        Raises:
            ValueError: If an image is in two states: the sampler gave it to two processes.
        """
        ...

    def compute(self) -> dict[str, float]:
        """Return the metrics in percent (0 to 100) under flat keys; NaN where undefined.

        Every image of the ground truth counts. One that never came counts as an image without
        predictions, and a warning says how many there were.
        """
        ...

    def save(self, out_dir: Path) -> list[Path]:
        """Write the predictions in the COCO format, each file whole or not at all.

        Returns:
            The files written.
        """
        ...


class PredictionBook(Generic[T]):
    """Predictions by image, for the images of one ground truth and no others.

    Args:
        images: The `images` list of a COCO file: mappings with `id`, `height` and `width`.

    Raises:
        ValueError: If an entry lacks a field or an id repeats.
    """

    def __init__(self, images: Iterable[Mapping[str, Any]]) -> None:
        self.sizes: dict[ImageId, tuple[int, int]] = {}
        self._entries: dict[ImageId, T] = {}
        for image in images:
            absent = [name for name in ("id", "height", "width") if name not in image]
            if absent:
                raise ValueError(f"image entry {dict(image)} of the ground truth lacks {absent}")
            if image["id"] in self.sizes:
                raise ValueError(f"image id {image['id']!r} appears twice in the ground truth")
            self.sizes[image["id"]] = (int(image["height"]), int(image["width"]))

    def check(self, result: Result, meta: ImageMeta) -> None:
        """Refuse a prediction that cannot belong to the ground truth, before work is spent on it.

        Raises:
            ValueError: If the image is unknown, was added before or has another size.
        """
        image_id = meta.image_id
        self._check_id(image_id)
        if result.image_size != self.sizes[image_id]:
            raise ValueError(
                f"image {image_id!r} ({meta.file_name}): the prediction has size (H, W) = "
                f"{result.image_size}, the ground truth {self.sizes[image_id]}; results must be "
                "in the frame of the original, upright image"
            )

    def _check_id(self, image_id: ImageId) -> None:
        if image_id not in self.sizes:
            raise ValueError(
                f"image id {image_id!r} is not among the {len(self.sizes)} images of the ground "
                "truth; evaluate the split the ground truth was read from"
            )
        if image_id in self._entries:
            raise ValueError(
                f"image {image_id!r} was evaluated twice; the sampler must not repeat images "
                "(no padding to equal shares), and reset() must come before a second pass"
            )

    def add(self, image_id: ImageId, entry: T) -> None:
        """Keep the prediction of one image; raises as `check`, but for the size."""
        self._check_id(image_id)
        self._entries[image_id] = entry

    def clear(self) -> None:
        """Forget every prediction."""
        self._entries.clear()

    def state(self) -> list[tuple[ImageId, T]]:
        """The predictions as a list."""
        return list(self._entries.items())

    def merge(self, states: Iterable[list[tuple[ImageId, T]]]) -> None:
        """Replace the predictions by those of all `states`; raises where an image repeats."""
        self.clear()
        for state in states:
            for image_id, entry in state:
                self.add(image_id, entry)

    def items(self) -> Iterator[tuple[ImageId, T | None]]:
        """Every image of the ground truth, in its order, with its prediction if there is one."""
        return ((image_id, self._entries.get(image_id)) for image_id in self.sizes)

    def warn_missing(self) -> None:
        """Warn if images of the ground truth never came."""
        missing = len(self.sizes) - len(self._entries)
        if missing:
            warnings.warn(
                f"{missing} of {len(self.sizes)} images were never given to the evaluator: they "
                "count as images without predictions",
                stacklevel=3,
            )


def read_json(path: Path) -> Any:
    """Read a JSON file of predictions.

    Raises:
        ValueError: If it is missing or no JSON.
    """
    problem = file_problem(path, "file of predictions")
    if problem is not None:
        raise ValueError(problem)
    return parse_json(path.read_bytes())


def check_backend(backend: str) -> None:
    """Refuse a back end that is neither "hotcoco" (fast) nor "official".

    Raises:
        ValueError: Naming the ones there are.
    """
    if backend not in ("hotcoco", "official"):
        raise ValueError(f"backend must be 'hotcoco' or 'official', got {backend!r}")
