"""What a model says about one image: `Result`, its `Segment`s and their conversions.

Everything is in the frame of the original image. Masks stay packed, eight pixels a byte, until a
caller asks for them.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from unisolo.categories import Categories
from unisolo.explain import Explanation
from unisolo.ops.masks import unpack_bits
from unisolo.ops.positions import Index, to_positions
from unisolo.ops.transfer import to_host

if TYPE_CHECKING:
    import pandas
    import supervision

__all__ = ["Result", "Segment"]


@dataclass(frozen=True)
class Segment:
    """One segment of a panoptic map.

    Attributes:
        id: Its value in `Result.panoptic_seg`, from 1; 0 is void.
        category_id: Id in the data set's file.
        label: Position in `Result.categories` (thing or stuff).
        isthing: True for an instance, False for a stuff region.
        score: Score of the instance. Stuff has no score of its own: 1.0.
        area: Number of pixels in the map.
    """

    id: int
    category_id: int
    label: int
    isthing: bool
    score: float
    area: int


@dataclass(frozen=True, eq=False)
class Result:
    """Predictions for one image, in the frame of the original image.

    `len(result)`, indexing, iteration and `filter` concern the instances. The panoptic fields are
    one answer for the whole image, so a selection of instances keeps them as they are.

    Attributes:
        image_size: (H, W) of the original, upright image.
        categories: Categories of the model; `labels` are positions in it.
        scores: [N] float32, after decay, in falling order as the model gives them.
        labels: [N] int64, thing labels.
        boxes: [N, 4] float32 xyxy, absolute pixels, half-open (`x2 = max + 1`).
        packed_masks: [N, H, ceil(W / 8)] uint8, bits as `numpy.packbits(axis=-1)` orders them;
            None where the task gives no masks.
        panoptic_seg: [H, W] int32, 0 = void, else `Segment.id`; None where the task gives none.
        segments_info: The segments of `panoptic_seg`; None exactly where that is None.
        explanation: What the post-process saw of the whole image and what each threshold left; a
            selection of instances keeps it as it is. None where no model made the result, or
            its task looks for no instances.

    Raises:
        ValueError: If a field has the wrong rank, dtype or length; the message names it.
    """

    image_size: tuple[int, int]
    categories: Categories
    scores: Tensor
    labels: Tensor
    boxes: Tensor
    packed_masks: Tensor | None = None
    panoptic_seg: Tensor | None = None
    segments_info: tuple[Segment, ...] | None = None
    explanation: Explanation | None = None

    def __post_init__(self) -> None:
        height, width = self.image_size
        count = self.scores.shape[0] if self.scores.ndim else 0
        _check("scores", self.scores, (count,), torch.float32)
        _check("labels", self.labels, (count,), torch.int64)
        _check("boxes", self.boxes, (count, 4), torch.float32)
        if self.packed_masks is not None:
            shape = (count, height, (width + 7) // 8)
            _check("packed_masks", self.packed_masks, shape, torch.uint8)
        if (self.panoptic_seg is None) != (self.segments_info is None):
            raise ValueError("panoptic_seg and segments_info come together: give both or neither")
        if self.panoptic_seg is not None:
            _check("panoptic_seg", self.panoptic_seg, (height, width), torch.int32)

    @property
    def masks(self) -> Tensor | None:
        """[N, H, W] bool, unpacked at each call (eight times the size of `packed_masks`)."""
        if self.packed_masks is None:
            return None
        return unpack_bits(self.packed_masks, self.image_size[1])

    @property
    def category_ids(self) -> Tensor:
        """[N] int64, the data set's ids of the instances."""
        ids = torch.tensor([c.id for c in self.categories], device=self.labels.device)
        return ids[self.labels]

    def __getstate__(self) -> dict[str, Any]:
        """Return what is pickled: tensors with memory of their own, not the block they share."""
        return {
            name: value.clone() if isinstance(value, Tensor) else value
            for name, value in self.__dict__.items()
        }

    def __len__(self) -> int:
        return int(self.scores.shape[0])

    def __iter__(self) -> Iterator[Result]:
        return (self[n] for n in range(len(self)))

    def __getitem__(self, index: Index) -> Result:
        """Select instances.

        Args:
            index: A position, a slice, positions ([M] integers) or a mask ([N] bool), each as a
                list, array or tensor. Order and repeats are kept.

        Returns:
            A result with the selected instances (one for a single position) and the panoptic
            fields unchanged.

        Raises:
            IndexError: If a position is out of range or a bool mask is not N long.
            TypeError: If `index` is of another kind.
        """
        chosen = to_positions(index, len(self), self.scores.device)
        masks = self.packed_masks
        return replace(
            self,
            scores=self.scores[chosen],
            labels=self.labels[chosen],
            boxes=self.boxes[chosen],
            packed_masks=None if masks is None else masks[chosen],
        )

    def filter(
        self,
        *,
        min_score: float | None = None,
        categories: Sequence[str | int] | None = None,
    ) -> Result:
        """Keep the instances that meet every condition given.

        Args:
            min_score: Lowest score kept, inclusive.
            categories: Names or data set ids of the thing categories kept. A name that several
                categories share keeps them all.

        Returns:
            A result with the instances that remain; panoptic fields unchanged.

        Raises:
            ValueError: If a category is unknown or is stuff, of which there are no instances.
        """
        keep = torch.ones_like(self.labels, dtype=torch.bool)
        if min_score is not None:
            keep &= self.scores >= min_score
        if categories is not None:
            labels = [label for entry in categories for label in self._thing_labels(entry)]
            keep &= torch.isin(self.labels, self.labels.new_tensor(labels))
        return self[keep]

    def _thing_labels(self, entry: str | int) -> list[int]:
        known = list(enumerate(self.categories))
        labels = [label for label, category in known if entry in (category.name, category.id)]
        things = [label for label in labels if self.categories[label].isthing]
        if things:
            return things
        if labels:
            raise ValueError(f"category {entry!r} is stuff: only things have instances to filter")
        close = difflib.get_close_matches(str(entry), [category.name for _, category in known], 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"category {entry!r} is not one of the result's categories{hint}")

    def cpu(self) -> Result:
        """Return a copy whose tensors are on the CPU; from a GPU they come in one copy.

        They then share one block of page-locked memory, which is freed with the last of them.
        """
        masks, panoptic = self.packed_masks, self.panoptic_seg
        maps = [each for each in (masks, panoptic) if each is not None]
        scores, labels, boxes, *maps = to_host([self.scores, self.labels, self.boxes, *maps])
        return replace(
            self,
            scores=scores,
            labels=labels,
            boxes=boxes,
            packed_masks=None if masks is None else maps[0],
            panoptic_seg=None if panoptic is None else maps[-1],
        )

    def numpy(self) -> dict[str, Any]:
        """Return every field as plain Python and numpy.

        Returns:
            `image_size`, `scores`, `labels`, `category_ids`, `boxes`, `masks` ([N, H, W] bool or
            None), `panoptic_seg` and `segments_info` (list of dicts, or None), with the dtypes of
            the attributes.
        """
        host, segments = self.cpu(), self.segments_info
        masks = host.masks
        return {
            "image_size": self.image_size,
            "scores": host.scores.numpy(),
            "labels": host.labels.numpy(),
            "category_ids": host.category_ids.numpy(),
            "boxes": host.boxes.numpy(),
            "masks": None if masks is None else masks.numpy(),
            "panoptic_seg": None if host.panoptic_seg is None else host.panoptic_seg.numpy(),
            "segments_info": None if segments is None else [asdict(entry) for entry in segments],
        }

    @classmethod
    def from_coco(
        cls,
        entries: Iterable[Mapping[str, Any]],
        categories: Categories,
        image_size: tuple[int, int],
    ) -> Result:
        """Read the instances of one image from COCO results or annotations.

        Args:
            entries: As `to_coco` gives them; RLE or polygons. Without `score` it is 1, without
                `bbox` the box is the mask's. Crowd regions are no instances and are left out.
            categories: Categories with the entries' ids.
            image_size: (H, W).

        Raises:
            ValueError: If an entry cannot be used or they are of several images.
        """
        from unisolo.interop.coco import from_coco

        return from_coco(entries, categories, image_size)

    @classmethod
    def from_panoptic(
        cls,
        png: str | os.PathLike[str] | NDArray[Any],
        annotation: Mapping[str, Any],
        categories: Categories,
    ) -> Result:
        """Read a COCO panoptic map; its thing segments become the instances.

        Args:
            png: The PNG's path, its pixels ([H, W, 3] uint8 RGB) or ids ([H, W] whole numbers).
            annotation: With `segments_info`; without `score` it is 1. Areas are measured.
            categories: Categories with the segments' ids.

        Raises:
            ValueError: If map and segments do not fit, or one of them cannot be used.
        """
        from unisolo.interop.panoptic import from_panoptic

        return from_panoptic(png, annotation, categories)

    def to_coco(self, image_id: int | str) -> list[dict[str, Any]]:
        """Return the instances in the COCO results format, ready for `json.dump`.

        Args:
            image_id: Id of the image in the data set's file.

        Returns:
            One dict an instance: `image_id`, `category_id`, `bbox` (x, y, width, height), `score`
            and, where there are masks, `segmentation` (compressed RLE, ASCII counts).
        """
        from unisolo.interop.coco import to_coco

        return to_coco(self, image_id)

    def to_panoptic(
        self, image_id: int | str | None = None, *, file_name: str = "panoptic.png"
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Return the panoptic map in the COCO panoptic format.

        Args:
            image_id: Id of the image; None = `file_name` without its ending.
            file_name: Name of the PNG the annotation points to.

        Returns:
            ([H, W, 3] uint8 RGB with id = R + 256 G + 256^2 B, annotation dict). Each entry of the
            annotation's `segments_info` has `id`, `category_id`, `iscrowd` (0), `area` in pixels
            of the map, `isthing` and `score`.

        Raises:
            ValueError: If there is no panoptic map, or its ids and `segments_info` differ.
        """
        from unisolo.interop.panoptic import to_panoptic

        return to_panoptic(self, image_id, file_name)

    def save_panoptic(
        self,
        out_dir: str | Path,
        *,
        image_id: int | str | None = None,
        file_name: str = "panoptic.png",
    ) -> dict[str, Any]:
        """Write the PNG of `to_panoptic` to `out_dir/file_name` and return the annotation."""
        from unisolo.interop.panoptic import save_panoptic

        return save_panoptic(self, out_dir, image_id, file_name)

    def to_supervision(self) -> supervision.Detections:
        """Return `supervision.Detections`: `class_id` = label, `data` has name and category id."""
        from unisolo.interop.supervision import to_supervision

        return to_supervision(self)

    def to_pandas(self, image_id: int | str | None = None) -> pandas.DataFrame:
        """Return one row an instance: `category_id`, `category`, `score`, box and area.

        The box is `x1`, `y1`, `x2`, `y2`; the area is that of the mask, of boxes only the box's.
        A given `image_id` is the first column.
        """
        from unisolo.interop.pandas import to_pandas

        return to_pandas(self, image_id)

    def to_yolo(self) -> list[str]:
        """Return the lines of a YOLO label file: label, then x, y of a polygon over (W, H).

        Holes and separate parts are joined to one polygon by lines that enclose nothing. An empty
        mask has no outline and no line. Without masks: label, centre x, y, width, height.
        """
        from unisolo.interop.yolo import to_yolo

        return to_yolo(self)

    def to_labelme(self, image_path: str | PurePath) -> dict[str, Any]:
        """Return the content of a LabelMe file; `image_path` is relative to that file's folder.

        Polygons, tied by `group_id` where an object has parts; a shape "mask" where it has holes.
        """
        from unisolo.interop.labelme import to_labelme

        return to_labelme(self, image_path)

    def to_label_studio(
        self, image: str, *, model_version: str = "unisolo", boxes: bool = True
    ) -> dict[str, Any]:
        """Return a Label Studio task: `image` (its URL) and a prediction with brush regions.

        With `boxes`, and where there are no masks, rectangles too. The labelling config is that
        of `unisolo.interop.label_studio.label_studio_config`.
        """
        from unisolo.interop.label_studio import to_label_studio

        return to_label_studio(self, image, model_version, boxes)

    def to_fiftyone(self) -> dict[str, Any]:
        """Return FiftyOne labels by field: `instances`, and `panoptic` where there is a map.

        `instances` are `Detections` with masks, `panoptic` a `Segmentation` of label + 1 (0 is
        void). `fiftyone.Sample(filepath, **result.to_fiftyone())` takes both.
        """
        from unisolo.interop.fiftyone import to_fiftyone

        return to_fiftyone(self)

    def explain(self) -> str:
        """Say in a few lines why the result holds what it holds, above all if that is nothing.

        Returns:
            The highest category probabilities, the candidates that each threshold left, and which
            keyword to change; the same in numbers is `explanation`.
        """
        if self.explanation is None:
            return (
                "it is not known what was left out: this result was not made by a predictor, or "
                "its task looks for no instances"
            )
        return f"{self!r}\n{self.explanation.text()}"

    def plot(self, image: NDArray[np.uint8] | Image.Image) -> Image.Image:
        """Draw the result over its image (a result holds none).

        Args:
            image: The original image: [H, W, 3] uint8 RGB, or a PIL image of the same size.

        Returns:
            A new RGB picture of the same size.
        """
        from unisolo.visualize import draw_result

        return draw_result(image, self)

    def __repr__(self) -> str:
        height, width = self.image_size
        kind = "masks" if self.packed_masks is not None else "boxes only"
        segments = self.segments_info
        panoptic = "" if segments is None else f", {len(segments)} panoptic segments"
        return f"Result({len(self)} instances, {kind}{panoptic}, image {height} x {width})"


def _check(name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if tuple(tensor.shape) != shape or tensor.dtype != dtype:
        raise ValueError(
            f"{name} must be {dtype} of shape {shape}, "
            f"got {tensor.dtype} of shape {tuple(tensor.shape)}"
        )
