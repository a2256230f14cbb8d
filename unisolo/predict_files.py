"""Predict the images of a folder and write pictures and COCO files: the work of `tools/predict.py`.

Images are read, predicted and written one after the other: only the entries of the JSON files are
kept, with masks as run-length codes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from unisolo.config import SHOWN_SCORE
from unisolo.data.images import IMAGE_ENDINGS, ImageError, image_files, read_image
from unisolo.encoding import encode_jpeg, encode_png
from unisolo.explain import combine
from unisolo.files import write_bytes, write_json
from unisolo.predictor import Predictor
from unisolo.results import Result
from unisolo.thresholds import Thresholds
from unisolo.visualize import draw_result

__all__ = ["FilesReport", "find_images", "predict_files"]

_JPEG = frozenset({".jpeg", ".jpg"})


@dataclass(frozen=True)
class FilesReport:
    """What became of the images.

    Attributes:
        predicted: Number of images done.
        instances: Number of instances found in them.
        broken: A sentence per image that could not be read; it names the file.
        without: Number of images in which an instance was looked for and none found.
        reason: Why, in one sentence for all of these; empty where there are none.
    """

    predicted: int
    instances: int
    broken: tuple[str, ...]
    without: int = 0
    reason: str = ""


def find_images(source: Path, *, without: Path | None = None) -> list[Path]:
    """List the images of a folder and of the folders in it, by name; or the one image itself.

    Args:
        source: A folder, or an image file (with any ending).
        without: A folder that is left out, such as that of the pictures of an earlier run.

    Raises:
        ValueError: If the path does not exist, or the folder holds no image.
    """
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise ValueError(f"{source}: no such image or folder")
    outside = None if without is None else without.resolve()
    found = [
        path
        for path in image_files(source)
        if outside is None or outside not in path.resolve().parents
    ]
    if not found:
        raise ValueError(
            f"{source}: no image in this folder (looked for {' '.join(sorted(IMAGE_ENDINGS))})"
        )
    return found


def predict_files(
    predictor: Predictor,
    source: Path,
    out: Path,
    *,
    score_threshold: float = SHOWN_SCORE,
    candidate_threshold: float | None = None,
    limit: int | None = None,
    scale: int = 1,
    on_image: Callable[[int, int], None] | None = None,
    on_result: Callable[[Path, Result], None] | None = None,
) -> FilesReport:
    """Predict images and write what was found.

    Writes to `out`:

    - `overlays/`: the pictures with what was found drawn in, JPEG for JPEG, PNG for all others;
    - `predictions.json`: `images` (id, file name, height, width), `annotations` (COCO results) and
      `categories`;
    - of a panoptic task also `panoptic/` (PNG) and `panoptic.json`, as COCO's panoptic format.

    Files are named as the images are, in the same sub-folders; `image_id` is the number of the
    image, from 1. An image that cannot be read is reported at the end and has no entry.

    Args:
        predictor: Answers the task.
        source: An image or a folder.
        out: Made if absent; files of the same names are replaced.
        score_threshold: Instances with a lower score are left out.
        candidate_threshold: As for `Predictor.predict`; None = the checkpoint's.
        limit: Only the first images by name.
        scale: Enlarge the overlays by this whole factor.
        on_image: Called with (images done, images in all) after each.
        on_result: Called with (path, result) of each image that could be read.

    Returns:
        The report.

    Raises:
        ValueError: If there is no image, or an argument is out of range.
        OSError: If a file cannot be written.
    """
    thresholds: Thresholds = {}
    if candidate_threshold is not None:
        thresholds["candidate_threshold"] = candidate_threshold
    paths = find_images(source, without=out)[:limit]
    root = source if source.is_dir() else source.parent
    names = _output_names([path.relative_to(root) for path in paths])
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    segments: list[dict[str, Any]] = []
    broken, without = [], []
    for number, (path, name) in enumerate(zip(paths, names, strict=True), start=1):
        try:
            array = read_image(path)
        except ImageError as error:
            broken.append(str(error))
        else:
            result = predictor.predict(array, score_threshold=score_threshold, **thresholds)
            if len(result) == 0 and result.explanation is not None:
                without.append(result.explanation)
            if on_result is not None:
                on_result(path, result)
            height, width = result.image_size
            file_name = path.relative_to(root).as_posix()
            images.append({"id": number, "file_name": file_name, "height": height, "width": width})
            annotations += result.to_coco(number)
            if result.panoptic_seg is not None:
                segments.append(
                    result.save_panoptic(out / "panoptic", image_id=number, file_name=f"{name}.png")
                )
            _write_picture(
                draw_result(array, result, scale=scale), out / "overlays" / name, path.suffix
            )
        if on_image is not None:
            on_image(number, len(paths))
    tables = {"images": images, "categories": predictor.categories.to_coco()}
    write_json(out / "predictions.json", {**tables, "annotations": annotations})
    if segments:
        write_json(out / "panoptic.json", {**tables, "annotations": segments})
    reason = combine(without).verdict() if without else ""
    return FilesReport(len(images), len(annotations), tuple(broken), len(without), reason)


def _output_names(paths: list[Path]) -> list[str]:
    """Paths without endings; `a.jpg` and `a.png` of one folder become `a_jpg` and `a_png`."""
    plain = [path.with_suffix("").as_posix() for path in paths]
    count = Counter(name.lower() for name in plain)  # some file systems do not tell case apart
    return [
        name if count[name.lower()] == 1 else f"{name}_{path.suffix[1:]}"
        for name, path in zip(plain, paths, strict=True)
    ]


def _write_picture(picture: Image.Image, place: Path, ending: str) -> None:
    """Write JPEG for a JPEG and PNG for everything else."""
    if ending.lower() in _JPEG:
        write_bytes(place.with_name(f"{place.name}.jpg"), encode_jpeg(picture))
    else:
        write_bytes(place.with_name(f"{place.name}.png"), encode_png(picture))
