"""What a model says about one image: `Result`, its `Segment`s and their conversions.

Everything is in the frame of the original image. Masks stay packed, eight pixels a byte, until a
caller asks for them.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from unisolo.categories import Categories
from unisolo.encoding import encode_png, encode_rle
from unisolo.explain import Explanation
from unisolo.files import write_bytes
from unisolo.ops.boxes import xyxy_to_xywh
from unisolo.ops.masks import unpack_bits

if TYPE_CHECKING:
    import supervision

__all__ = ["Result", "Segment"]

Index = int | slice | Sequence[int] | Sequence[bool] | NDArray[Any] | Tensor

_MAX_PANOPTIC_ID = 256**3 - 1


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
        chosen = self._positions(index)
        masks = self.packed_masks
        return replace(
            self,
            scores=self.scores[chosen],
            labels=self.labels[chosen],
            boxes=self.boxes[chosen],
            packed_masks=None if masks is None else masks[chosen],
        )

    def _positions(self, index: Index) -> Tensor:
        """Any supported index as [M] int64 positions on the result's device."""
        device, count = self.scores.device, len(self)
        if isinstance(index, slice):  # by range: torch has no negative steps
            return torch.tensor(range(count)[index], dtype=torch.int64, device=device)
        chosen = torch.as_tensor(index, device=device)
        if chosen.numel() == 0 and chosen.dtype != torch.bool:
            chosen = chosen.long()  # torch reads [] as float
        if chosen.dtype == torch.bool and chosen.ndim == 1:
            if len(chosen) != count:
                raise IndexError(f"bool index of length {len(chosen)} for {count} instances")
            return chosen.nonzero().flatten()
        if chosen.dtype.is_floating_point or chosen.dtype == torch.bool or chosen.ndim > 1:
            raise TypeError(
                "index instances by a position, a slice, a list of positions or a bool mask; "
                f"got {chosen.dtype} of shape {tuple(chosen.shape)}"
            )
        chosen = chosen.long().reshape(-1)
        if bool(((chosen < -count) | (chosen >= count)).any()):
            raise IndexError(f"instance {chosen.tolist()} out of range for {count} instances")
        return chosen % max(count, 1)

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
        """Return a copy whose tensors are on the CPU."""
        masks, panoptic = self.packed_masks, self.panoptic_seg
        return replace(
            self,
            scores=self.scores.cpu(),
            labels=self.labels.cpu(),
            boxes=self.boxes.cpu(),
            packed_masks=None if masks is None else masks.cpu(),
            panoptic_seg=None if panoptic is None else panoptic.cpu(),
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

    def to_coco(self, image_id: int | str) -> list[dict[str, Any]]:
        """Return the instances in the COCO results format, ready for `json.dump`.

        Args:
            image_id: Id of the image in the data set's file.

        Returns:
            One dict an instance: `image_id`, `category_id`, `bbox` (x, y, width, height), `score`
            and, where there are masks, `segmentation` (compressed RLE, ASCII counts).
        """
        host = self.cpu()
        entries = [
            {"image_id": image_id, "category_id": category_id, "bbox": box, "score": score}
            for category_id, box, score in zip(
                host.category_ids.tolist(),
                xyxy_to_xywh(host.boxes).tolist(),
                host.scores.tolist(),
                strict=True,
            )
        ]
        if host.packed_masks is not None:
            rles = encode_rle(host.packed_masks.numpy(), self.image_size[1])
            for entry, rle in zip(entries, rles, strict=True):
                entry["segmentation"] = rle
        return entries

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
            ValueError: If the result has no panoptic map, or the ids of the map and of
                `segments_info` differ.
        """
        if self.panoptic_seg is None or self.segments_info is None:
            raise ValueError("this result has no panoptic map: predict with task='panoptic'")
        ids = self.panoptic_seg.cpu().numpy()
        if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) <= _MAX_PANOPTIC_ID:
            raise ValueError(
                f"panoptic ids must be 0 to {_MAX_PANOPTIC_ID}, got {ids.min()} to {ids.max()}"
            )
        areas = np.bincount(ids.reshape(-1), minlength=1)
        listed = {segment.id for segment in self.segments_info}
        painted = set(np.flatnonzero(areas).tolist()) - {0}
        if listed != painted:
            raise ValueError(
                f"segments_info does not fit panoptic_seg: ids {sorted(listed - painted)} have no "
                f"pixel, ids {sorted(painted - listed)} are not listed"
            )
        segments = [
            {
                "id": segment.id,
                "category_id": segment.category_id,
                "iscrowd": 0,
                "area": int(areas[segment.id]),
                "isthing": int(segment.isthing),
                "score": segment.score,
            }
            for segment in self.segments_info
        ]
        annotation = {
            "image_id": Path(file_name).stem if image_id is None else image_id,
            "file_name": file_name,
            "segments_info": segments,
        }
        rgb = np.stack([ids & 255, ids >> 8 & 255, ids >> 16], axis=-1).astype(np.uint8)
        return rgb, annotation

    def save_panoptic(
        self,
        out_dir: str | Path,
        *,
        image_id: int | str | None = None,
        file_name: str = "panoptic.png",
    ) -> dict[str, Any]:
        """Write the panoptic PNG and return its COCO panoptic annotation; see `to_panoptic`.

        Args:
            out_dir: Folder of the PNG, made if absent.
            image_id: Id of the image; None = `file_name` without its ending.
            file_name: Name of the PNG inside `out_dir`.

        Returns:
            The annotation dict.

        Raises:
            ValueError: As `to_panoptic`.
        """
        rgb, annotation = self.to_panoptic(image_id, file_name=file_name)
        write_bytes(Path(out_dir) / file_name, encode_png(rgb))
        return annotation

    def to_supervision(self) -> supervision.Detections:
        """Return the instances as `supervision.Detections` (it has no place for a panoptic map).

        Returns:
            Detections with `class_id` = label, and `class_name` and `category_id` in `data`.

        Raises:
            ImportError: If supervision is not installed.
        """
        try:
            import supervision
        except ImportError as error:
            raise ImportError(
                'to_supervision needs supervision: pip install "unisolo[supervision]"'
            ) from error
        fields = self.numpy()
        names = [self.categories[label].name for label in fields["labels"].tolist()]
        return supervision.Detections(
            xyxy=fields["boxes"],
            mask=fields["masks"],
            confidence=fields["scores"],
            class_id=fields["labels"],
            data={"class_name": np.array(names, dtype=str), "category_id": fields["category_ids"]},
        )

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
