"""Box and mask AP by the COCO rules."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unisolo.categories import Categories
from unisolo.evaluation.base import ImageId, PredictionBook, check_backend, read_json
from unisolo.files import write_json
from unisolo.results import Result
from unisolo.structures import ImageMeta

__all__ = ["CocoEvaluator"]

_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
"""Names of the first six numbers of a COCO summary, in its order."""


class CocoEvaluator:
    """Average precision of boxes and masks as COCO computes it, at most 100 detections an image.

    Of each image only its COCO result dicts (RLE) are kept; matching happens in `compute`. The two
    back ends give the same numbers to rounding.

    For `segm` the size of a detection is that of its mask. (pycocotools would take the area of the
    box wherever result dicts carry both, which moves APs, APm and APl; so boxes are left out.)

    Args:
        ground_truth: A COCO instances file as a dict: `images`, `annotations` with `bbox` or
            `segmentation` (RLE or polygons; `area`, `bbox`, `iscrowd` are filled in if absent).
            Annotations of stuff categories are left out.
        categories: Categories of the data set; things are evaluated.
        iou_types: "bbox", "segm" or both.
        backend: "hotcoco" (fast) or "official" (pycocotools).

    Raises:
        ValueError: If a value is none of those above, or the ground truth has an image without
            size, a category the data set has not, or an annotation without the shape needed.
    """

    def __init__(
        self,
        ground_truth: Mapping[str, Any],
        categories: Categories,
        iou_types: Sequence[str] = ("bbox", "segm"),
        backend: str = "hotcoco",
    ) -> None:
        check_backend(backend)
        if not iou_types or not set(iou_types) <= {"bbox", "segm"}:
            raise ValueError(f"iou_types must be of 'bbox' and 'segm', got {tuple(iou_types)}")
        self.categories = categories
        self.iou_types = tuple(iou_types)
        self.backend = backend
        self._book: PredictionBook[list[dict[str, Any]]] = PredictionBook(ground_truth["images"])
        self._numbers = _number(list(self._book.sizes))
        self._things = {category.id for category in categories.things}
        self._annotations = self._read_annotations(ground_truth["annotations"])

    def reset(self) -> None:
        """Forget every prediction."""
        self._book.clear()

    def update(self, results: Sequence[Result], metas: Sequence[ImageMeta]) -> None:
        """Add the predictions of some images; see `Evaluator.update`.

        Raises:
            ValueError: Also if "segm" is evaluated and a result has no masks, or a result has a
                category that is not a thing of the data set.
        """
        for result, meta in zip(results, metas, strict=True):
            self._book.check(result, meta)
            if "segm" in self.iou_types and result.packed_masks is None:
                raise ValueError(
                    f"image {meta.image_id!r}: the result has no masks for 'segm'; evaluate a "
                    "detection model with iou_types=('bbox',)"
                )
            entries = result.to_coco(meta.image_id)
            for entry in entries:
                self._check_thing(entry["category_id"], f"the result of image {meta.image_id!r}")
            self._book.add(meta.image_id, entries)

    def state(self) -> list[Any]:
        """Return the predictions so far: (image id, COCO result dicts)."""
        return self._book.state()

    def merge(self, states: Sequence[list[Any]]) -> None:
        """Replace the predictions by those of all `states` together."""
        self._book.merge(states)

    def compute(self) -> dict[str, float]:
        """Return `<iou type>/AP`, `AP50`, `AP75`, `APs`, `APm`, `APl` in percent.

        A figure for which there is no ground truth (say, no large object) is NaN, where the COCO
        tools print -1. Without any prediction the others are 0.
        """
        self._book.warn_missing()
        metrics = {}
        for iou_type in self.iou_types:
            stats = self._stats(iou_type)
            for name, value in zip(_METRICS, stats[: len(_METRICS)], strict=True):
                metrics[f"{iou_type}/{name}"] = math.nan if value < 0 else 100 * float(value)
        return metrics

    def save(self, out_dir: Path) -> list[Path]:
        """Write `results.json`: the COCO results list of every prediction."""
        entries = [entry for _, found in self._book.items() for entry in found or ()]
        path = out_dir / "results.json"
        write_json(path, entries)
        return [path]

    def load(self, out_dir: Path) -> None:
        """Replace the predictions by those that `save` wrote.

        Raises:
            ValueError: If `results.json` is missing or no list of COCO results for these images
                and categories.
        """
        path = out_dir / "results.json"
        found: dict[ImageId, list[dict[str, Any]]] = {image_id: [] for image_id in self._book.sizes}
        shapes = {"segmentation" if name == "segm" else name for name in self.iou_types}
        try:
            for entry in read_json(path):
                absent = {"image_id", "category_id", "score", *shapes} - entry.keys()
                if absent:
                    raise ValueError(f"an entry lacks {sorted(absent)}")
                if entry["image_id"] not in found:
                    raise ValueError(f"image id {entry['image_id']!r} is not in the ground truth")
                self._check_thing(entry["category_id"], "an entry")
                found[entry["image_id"]].append(entry)
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path}: {error}; give the data set and split that were evaluated"
            ) from None
        self._book.merge([list(found.items())])

    def truth(self) -> list[dict[str, Any]]:
        """The objects that count, crowds included: `image_id`, `category_id`, `area`, `iscrowd`."""
        ids = self.image_ids()
        return [{**entry, "image_id": ids[entry["image_id"]]} for entry in self._annotations]

    def found(self, *, min_score: float = 0.0) -> list[dict[str, Any]]:
        """The COCO result dicts of all images with at least this score, as they are kept."""
        return [
            entry
            for _, entries in self._book.items()
            for entry in entries or ()
            if entry["score"] >= min_score
        ]

    def image_ids(self) -> dict[int, ImageId]:
        """The data set's image id of each number that `run` gives the images."""
        return {number: image_id for image_id, number in self._numbers.items()}

    def _stats(self, iou_type: str) -> Sequence[float]:
        """The twelve numbers of a COCO summary."""
        stats: Sequence[float] = self.run(iou_type).stats
        return stats

    def run(self, iou_type: str, *, min_score: float = 0.0) -> Any:
        """Match and accumulate; images are numbered from 1 (see `image_ids`).

        Args:
            iou_type: One of `iou_types`.
            min_score: Predictions scored lower are left out.

        Returns:
            The back end's `COCOeval`, summarised; both have `eval`, `params` and `stats`.
        """
        if self.backend == "official":
            from pycocotools.coco import COCO
            from pycocotools.cocoeval import COCOeval
        else:
            from hotcoco import COCO, COCOeval
        shape = "bbox" if iou_type == "bbox" else "segmentation"
        ground_truth = self._dataset()
        # Fresh dicts: pycocotools writes into what it is given.
        ground_truth["annotations"] = [dict(entry) for entry in self._annotations]
        detections = [
            {
                "image_id": self._numbers[image_id],
                "category_id": entry["category_id"],
                "score": entry["score"],
                shape: entry[shape],
            }
            for image_id, entries in self._book.items()
            for entry in entries or ()
            if entry["score"] >= min_score
        ]
        with contextlib.redirect_stdout(io.StringIO()):  # both narrate on stdout
            truth = _load(COCO, ground_truth)
            # pycocotools' loadRes cannot read an empty list.
            found = truth.loadRes(detections) if detections else _load(COCO, self._dataset())
            evaluation = COCOeval(truth, found, iou_type)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        return evaluation

    def _dataset(self) -> dict[str, Any]:
        """A COCO file of the images and thing categories, without annotations."""
        return {
            "images": [
                {"id": self._numbers[image_id], "height": height, "width": width}
                for image_id, (height, width) in self._book.sizes.items()
            ],
            "categories": [{"id": c.id, "name": c.name} for c in self.categories.things],
            "annotations": [],
        }

    def _read_annotations(self, annotations: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Ground truth of things, numbered from 1: pycocotools takes an id 0 for "no match"."""
        stuff = {category.id for category in self.categories.stuff}
        entries: list[dict[str, Any]] = []
        for annotation in annotations:
            place = f"annotation {annotation.get('id')!r} of the ground truth"
            image_id, category_id = annotation["image_id"], annotation["category_id"]
            if image_id not in self._numbers:
                raise ValueError(f"{place} names image id {image_id!r}, which 'images' lacks")
            if category_id in stuff:
                continue
            self._check_thing(category_id, place)
            entry = {
                "id": len(entries) + 1,
                "image_id": self._numbers[image_id],
                "category_id": category_id,
                "iscrowd": int(annotation.get("iscrowd", 0)),
            }
            shape = _shape(annotation, self._book.sizes[image_id], self.iou_types, place)
            entries.append({**entry, **shape})
        return entries

    def _check_thing(self, category_id: int, place: str) -> None:
        if category_id not in self._things:
            raise ValueError(
                f"{place} has category id {category_id}, which is not a thing category of the "
                f"data set; those are {sorted(self._things)[:20]}"
            )


def _number(image_ids: list[Any]) -> dict[Any, int]:
    """Numbers from 1 for any kind of id: the back ends want integers.

    In sorted order, in which both walk through the images: it decides between equal scores.
    """
    if all(isinstance(image_id, int) for image_id in image_ids):
        image_ids = sorted(image_ids)
    return {image_id: number for number, image_id in enumerate(image_ids, start=1)}


def _load(coco: Any, dataset: dict[str, Any]) -> Any:
    """A COCO object of a dict; pycocotools' constructor takes only a path."""
    loaded = coco()
    loaded.dataset = dataset
    loaded.createIndex()
    return loaded


def _shape(
    annotation: Mapping[str, Any], size: tuple[int, int], iou_types: Sequence[str], place: str
) -> dict[str, Any]:
    """`bbox`, `area` and, for "segm", `segmentation` of an annotation, with the gaps filled."""
    segmentation = annotation.get("segmentation") or None
    bbox, area = annotation.get("bbox"), annotation.get("area")
    if segmentation is None and ("segm" in iou_types or bbox is None):
        need = "segmentation" if "segm" in iou_types else "bbox"
        raise ValueError(f"{place} has no {need!r}, which iou_types={tuple(iou_types)} needs")
    if segmentation is not None and (bbox is None or area is None):
        from pycocotools import mask as rle_ops

        rle = segmentation
        if isinstance(rle, list):
            rle = rle_ops.merge(rle_ops.frPyObjects(rle, *size))
        elif isinstance(rle["counts"], list):
            rle = rle_ops.frPyObjects(rle, *size)
        bbox = rle_ops.toBbox(rle).tolist() if bbox is None else bbox
        area = float(rle_ops.area(rle)) if area is None else area
    if bbox is None:
        raise ValueError(f"{place} has no 'bbox'")
    shape = {"bbox": list(bbox), "area": float(bbox[2] * bbox[3] if area is None else area)}
    return shape if segmentation is None else {**shape, "segmentation": segmentation}
