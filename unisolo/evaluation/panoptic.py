"""Panoptic quality by the COCO rules."""

from __future__ import annotations

import contextlib
import io
import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from unisolo.categories import Categories, Category
from unisolo.encoding import encode_png
from unisolo.evaluation.base import ImageId, PredictionBook, check_backend, read_json
from unisolo.files import write_bytes, write_json
from unisolo.reading import relative_name, short
from unisolo.results import Result
from unisolo.structures import ImageMeta

__all__ = ["CategoryQuality", "PanopticEvaluator"]


# What the back ends need. What else a file holds may be of any kind, and one of them is strict.
_IMAGE_FIELDS = {"id": lambda value: value, "file_name": str, "height": int, "width": int}
_SEGMENT_FIELDS = {
    "id": int,
    "category_id": int,
    "iscrowd": lambda value: int(bool(value)),
    "area": int,
}


class CategoryQuality(NamedTuple):
    """Matches of one category over all images (Kirillov et al., "Panoptic Segmentation", 4.1).

    Attributes:
        iou: Sum of the IoU of the matched pairs.
        tp: Matched pairs.
        fp: Predicted segments without a match.
        fn: Ground truth segments without a match.
    """

    iou: float
    tp: int
    fp: int
    fn: int

    def quality(self) -> tuple[float, float, float]:
        """PQ, SQ and RQ as fractions; NaN where the category does not occur."""
        weight = self.tp + 0.5 * self.fp + 0.5 * self.fn
        if not weight:
            return math.nan, math.nan, math.nan
        return self.iou / weight, self.iou / max(self.tp, 1), self.tp / weight


class PanopticEvaluator:
    """Panoptic quality (PQ = SQ x RQ for each category, averaged) as COCO computes it.

    Each prediction is kept as the PNG that `save` writes, in memory: some 5 to 20 kB an image, so
    5000 images are about 50 MB. `compute` lays them in a temporary folder, where hotcoco reads
    them beside the ground truth's, on all cores: in sum less time than matching in Python image by
    image (1 against 13 ms). The back ends differ in rounding only.

    Args:
        ground_truth: A COCO panoptic file as a dict.
        panoptic_dir: Folder of its PNG files.
        categories: Categories of the data set.
        backend: "hotcoco" (fast) or "official" (panopticapi).

    Raises:
        ValueError: If the back end is unknown, the folder does not exist, an image has no size or
            no annotation, or a segment's category is not one of the data set's.
    """

    def __init__(
        self,
        ground_truth: Mapping[str, Any],
        panoptic_dir: Path | str,
        categories: Categories,
        backend: str = "hotcoco",
    ) -> None:
        check_backend(backend)
        self.categories = categories
        self.backend = backend
        self.panoptic_dir = Path(panoptic_dir)
        if not self.panoptic_dir.is_dir():
            raise ValueError(f"folder of the panoptic PNG files not found: {self.panoptic_dir}")
        # An entry is (PNG bytes, segments_info).
        self._book: PredictionBook[tuple[bytes, list[dict[str, Any]]]] = PredictionBook(
            ground_truth["images"]
        )
        self._images = {
            entry["id"]: _plain(entry, _IMAGE_FIELDS) for entry in ground_truth["images"]
        }
        self._annotations = {entry["image_id"]: entry for entry in ground_truth["annotations"]}
        self._check_annotations()
        self._annotations = {
            image_id: {
                "image_id": image_id,
                "file_name": entry["file_name"],
                "segments_info": [_plain(item, _SEGMENT_FIELDS) for item in entry["segments_info"]],
            }
            for image_id, entry in self._annotations.items()
        }

    def reset(self) -> None:
        """Forget every prediction."""
        self._book.clear()

    def update(self, results: Sequence[Result], metas: Sequence[ImageMeta]) -> None:
        """Add the predictions of some images; see `Evaluator.update`.

        Raises:
            ValueError: Also if a result has no panoptic map, or a category that is not one of
                the data set's.
        """
        for result, meta in zip(results, metas, strict=True):
            self._book.check(result, meta)
            rgb, annotation = result.to_panoptic(meta.image_id)
            segments = annotation["segments_info"]
            self._check_segments(segments, f"the result of image {meta.image_id!r}")
            self._book.add(meta.image_id, (encode_png(rgb), segments))

    def state(self) -> list[Any]:
        """Return the predictions so far: (image id, (PNG bytes, segments))."""
        return self._book.state()

    def merge(self, states: Sequence[list[Any]]) -> None:
        """Replace the predictions by those of all `states` together."""
        self._book.merge(states)

    def compute(self) -> dict[str, float]:
        """Return `panoptic/PQ`, `SQ`, `RQ` in percent, and the same with `_th` and `_st`.

        Averages run over the categories that occur in the ground truth or the predictions; an
        average over none (say, a data set without stuff) is NaN.
        """
        qualities = self.compute_categories()
        groups: dict[str, Iterable[Category]] = {
            "": self.categories,
            "_th": self.categories.things,
            "_st": self.categories.stuff,
        }
        metrics = {}
        for suffix, group in groups.items():
            averages = _average([qualities[category.id] for category in group])
            for name, value in zip(("PQ", "SQ", "RQ"), averages, strict=True):
                metrics[f"panoptic/{name}{suffix}"] = value
        return metrics

    def compute_categories(self) -> dict[int, CategoryQuality]:
        """Return the match counts of every category, by its id."""
        self._book.warn_missing()
        counted: dict[int, CategoryQuality] = {}
        if self._images:  # hotcoco would not take a file of no images for a panoptic one
            with self._unpacked() as (folder, found):
                counted = self._match(found, folder)
        nothing = CategoryQuality(0.0, 0, 0, 0)
        return {c.id: counted.get(c.id, nothing) for c in self.categories}

    def compute_images(self) -> dict[ImageId, CategoryQuality]:
        """Return the match counts of every image, its categories together, by its id."""

        def together(entry: dict[str, Any]) -> CategoryQuality:
            rows = zip(*self._match([entry], folder).values(), strict=True)
            iou, tp, fp, fn = map(sum, rows)
            return CategoryQuality(iou, tp, fp, fn)

        with self._unpacked() as (folder, found), ThreadPoolExecutor(os.cpu_count()) as threads:
            # The back end leaves the interpreter free while it reads and matches.
            counted = list(threads.map(together, found))
        return {entry["image_id"]: quality for entry, quality in zip(found, counted, strict=True)}

    @contextlib.contextmanager
    def _unpacked(self) -> Iterator[tuple[Path, list[dict[str, Any]]]]:
        """Every prediction's PNG in a temporary folder, and the annotations that name them."""
        with tempfile.TemporaryDirectory(prefix="unisolo-panoptic-") as name:
            found = []
            for image_id, prediction in self._book.items():
                png, annotation = self._entry(image_id, prediction)
                path = Path(name) / annotation["file_name"]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(png)
                found.append(annotation)
            yield Path(name), found

    def _match(self, found: list[dict[str, Any]], folder: Path) -> dict[int, CategoryQuality]:
        """Counts by category over some images, whose PNGs lie in `folder`."""
        truth = [dict(self._annotations[entry["image_id"]]) for entry in found]
        backend = _official if self.backend == "official" else _hotcoco
        return backend(self._file(truth), self.panoptic_dir, self._file(found), folder)

    def save(self, out_dir: Path) -> list[Path]:
        """Write `panoptic.json` and, in `panoptic/`, one PNG an image, named as the truth's."""
        entries, paths = [], [out_dir / "panoptic.json"]
        for image_id, prediction in self._book.state():
            png, annotation = self._entry(image_id, prediction)
            paths.append(out_dir / "panoptic" / annotation["file_name"])
            write_bytes(paths[-1], png)
            entries.append(annotation)
        write_json(paths[0], self._file(entries))
        return paths

    def load(self, out_dir: Path) -> None:
        """Replace the predictions by those that `save` wrote.

        Raises:
            ValueError: If `panoptic.json` or a PNG it names is missing, or they do not belong to
                these images and categories.
        """
        path = out_dir / "panoptic.json"
        found: list[tuple[ImageId, tuple[bytes, list[dict[str, Any]]]]] = []
        try:
            for entry in read_json(path)["annotations"]:
                image_id, segments = entry["image_id"], entry["segments_info"]
                if image_id not in self._annotations:
                    raise ValueError(f"image id {image_id!r} is not in the ground truth")
                self._check_segments(segments, f"image {image_id!r}")
                # By the truth's name, which was checked to stay inside its folder.
                png = out_dir / "panoptic" / self._annotations[image_id]["file_name"]
                found.append((image_id, (png.read_bytes(), segments)))
        except (KeyError, OSError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path}: {error}; give the data set and split that were evaluated"
            ) from None
        self._book.merge([found])

    def _entry(
        self, image_id: ImageId, prediction: tuple[bytes, list[dict[str, Any]]] | None
    ) -> tuple[bytes, dict[str, Any]]:
        """PNG and annotation of an image; all void where there is no prediction."""
        if prediction is None:
            void = np.zeros((*self._book.sizes[image_id], 3), dtype=np.uint8)
            prediction = (encode_png(void), [])
        png, segments = prediction
        return png, {
            "image_id": image_id,
            "file_name": self._annotations[image_id]["file_name"],
            "segments_info": [dict(segment) for segment in segments],  # panopticapi writes in it
        }

    def _file(self, annotations: list[dict[str, Any]]) -> dict[str, Any]:
        """A COCO panoptic file of the annotations, with the images they are of."""
        return {
            "images": [self._images[entry["image_id"]] for entry in annotations],
            "annotations": annotations,
            "categories": self.categories.to_coco(),
        }

    def _check_annotations(self) -> None:
        without: list[ImageId] = [i for i in self._book.sizes if i not in self._annotations]
        if without:
            raise ValueError(f"images {without[:5]} of the ground truth have no annotation")
        for image_id, entry in self._annotations.items():
            if image_id not in self._book.sizes:
                raise ValueError(f"an annotation names image id {image_id!r}, 'images' lacks it")
            if relative_name(entry["file_name"]) is None:  # predictions are written by this name
                raise ValueError(
                    f"the ground truth of image {image_id!r} has file_name "
                    f"{short(entry['file_name'])}, which points outside its folder"
                )
            self._check_segments(entry["segments_info"], f"the ground truth of image {image_id!r}")

    def _check_segments(self, segments: Iterable[Mapping[str, Any]], place: str) -> None:
        for segment in segments:
            if segment["category_id"] not in self.categories:
                raise ValueError(
                    f"{place} has category id {segment['category_id']}, which is not one of the "
                    "data set's categories"
                )


def _plain(entry: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields there are, each of its kind."""
    return {name: kind(entry[name]) for name, kind in fields.items() if name in entry}


def _hotcoco(
    truth: dict[str, Any], truth_dir: Path, found: dict[str, Any], found_dir: Path
) -> dict[int, CategoryQuality]:
    from hotcoco.panoptic import PanopticEval

    evaluation = PanopticEval(truth, found, gt_folder=truth_dir, pred_folder=found_dir)
    evaluation.evaluate()
    return {
        int(category_id): CategoryQuality(float(q["iou"]), int(q["tp"]), int(q["fp"]), int(q["fn"]))
        for category_id, q in evaluation.results()["per_class"].items()
    }


def _official(
    truth: dict[str, Any], truth_dir: Path, found: dict[str, Any], found_dir: Path
) -> dict[int, CategoryQuality]:
    try:
        from panopticapi.evaluation import pq_compute_single_core
    except ImportError as error:
        raise ImportError(
            "backend='official' needs panopticapi for PQ: pip install --no-deps panopticapi-lite"
        ) from error
    pairs = list(zip(truth["annotations"], found["annotations"], strict=True))
    categories = {entry["id"]: entry for entry in truth["categories"]}
    with contextlib.redirect_stdout(io.StringIO()):
        counted = pq_compute_single_core(0, pairs, str(truth_dir), str(found_dir), categories)
    return {
        category_id: CategoryQuality(float(q.iou), int(q.tp), int(q.fp), int(q.fn))
        for category_id, q in counted.pq_per_cat.items()
    }


def _average(qualities: Iterable[CategoryQuality]) -> tuple[float, float, float]:
    """PQ, SQ, RQ in percent over the categories that occur; NaN if none does."""
    rows = [q.quality() for q in qualities if q.tp + q.fp + q.fn > 0]
    if not rows:
        return math.nan, math.nan, math.nan
    pq, sq, rq = np.mean(rows, axis=0)
    return 100 * float(pq), 100 * float(sq), 100 * float(rq)
