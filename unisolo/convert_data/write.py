"""One split of the COCO layout, written image by image."""

from __future__ import annotations

import io
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from unisolo.categories import Categories
from unisolo.convert_data.source import Embedded, Item, Log, Panoptic, Shape
from unisolo.data.coco_files import CocoLayout, DatasetError
from unisolo.data.images import ImageError, read_image, to_rgb_array
from unisolo.encoding import encode_png, ids_to_rgb
from unisolo.files import write_json
from unisolo.segmentation import area_and_box, decode, encode, usable

__all__ = ["SplitWriter"]


class SplitWriter:
    """Writes the images of a split at once and its JSON files at the end.

    Args:
        layout: Where to write.
        categories: The data set's categories.
        panoptic: Whether to write panoptic files.
        link: Link images instead of copying them.
        log: Gets faults.

    Attributes:
        images: Image entries so far.
        annotations: Annotations of objects so far.
    """

    def __init__(
        self, layout: CocoLayout, categories: Categories, *, panoptic: bool, link: bool, log: Log
    ) -> None:
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []
        self._layout, self._categories = layout, categories
        self._panoptic: list[dict[str, Any]] | None = [] if panoptic else None
        self._link, self._log = link, log
        self._names: set[str] = set()
        layout.images.mkdir(parents=True)

    def add(self, item: Item) -> None:
        """Write one image; faults of it go to the log, and what has them is left out."""
        try:
            size = _size(item)
            content = item.read(size)
        except (ImageError, DatasetError) as error:
            self._log.fault(error)
            return
        number = len(self.images) + 1
        file_name = self._place(item)
        self.images.append(
            {"id": number, "file_name": file_name, "height": size[0], "width": size[1]}
        )
        for shape in content.shapes:
            try:
                annotation = _annotation(shape, size)
            except ValueError as error:
                self._log.fault(f"{shape.where}: {error}")
            else:
                annotation.update(id=len(self.annotations) + 1, image_id=number)
                self.annotations.append(annotation)
        if self._panoptic is not None and content.panoptic is not None:
            self._panoptic.append(self._segments(number, content.panoptic))

    def finish(self) -> None:
        """Write the JSON files."""
        categories = self._categories.to_coco()
        things = [entry for entry in categories if entry["isthing"]]
        common = {"info": {"description": "written by unisolo convert-data"}, "licenses": []}
        tree = {**common, "images": self.images, "annotations": self.annotations}
        write_json(self._layout.instances, {**tree, "categories": things})
        if self._panoptic is not None:
            tree["annotations"] = self._panoptic
            write_json(self._layout.panoptic, {**tree, "categories": categories})

    def _place(self, item: Item) -> str:
        """Copy or link the image; images of one name in several folders get numbers."""
        name = first = Path(item.image.name)
        for number in range(2, len(self._names) + 3):
            # The panoptic PNG has the same stem, so that it is the stem that must be free.
            if name.stem.lower() not in self._names:
                break
            name = Path(f"{first.stem}_{number}{first.suffix}")
        self._names.add(name.stem.lower())
        path = self._layout.images / name.name
        if isinstance(item.image, Embedded):
            path.write_bytes(item.image.load())
        elif self._link:
            os.symlink(item.image.resolve(), path)
        else:
            shutil.copyfile(item.image, path)
        return name.name

    def _segments(self, number: int, panoptic: Panoptic) -> dict[str, Any]:
        """Write the PNG and return its annotation."""
        ids = panoptic.ids
        file_name = Path(self.images[-1]["file_name"]).stem + ".png"
        path = self._layout.panoptic_dir / file_name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_png(ids_to_rgb(ids)))
        segments = []
        for segment_id, category_id in panoptic.categories.items():
            area, (left, top, right, bottom) = area_and_box(encode(ids == segment_id), *ids.shape)
            segments.append(
                {
                    "id": segment_id,
                    "category_id": category_id,
                    "iscrowd": 0,
                    "area": area,
                    "bbox": [left, top, right - left, bottom - top],
                }
            )
        return {"image_id": number, "file_name": file_name, "segments_info": segments}


def _size(item: Item) -> tuple[int, int]:
    """(H, W) of the upright image, which is decoded whole: a damaged file is told now."""
    if isinstance(item.image, Path):
        pixels = read_image(item.image)
    else:
        try:
            pixels = to_rgb_array(Image.open(io.BytesIO(item.image.load())))
        except DatasetError:
            raise
        # Decoders fail in many ways on damaged data; the person needs the name of the file.
        except Exception as error:
            kind = type(error).__name__  # its text names an object in memory
            raise DatasetError(
                f"{item.image.name}: its imageData is no image that can be read ({kind}); save "
                "the LabelMe file again"
            ) from error
    return pixels.shape[0], pixels.shape[1]


def _annotation(shape: Shape, size: tuple[int, int]) -> dict[str, Any]:
    """A COCO annotation without its ids; what leaves the image is cut, as RLE."""
    height, width = size
    segmentation = usable(shape.segmentation)
    if segmentation is None:
        raise ValueError("encloses no pixel; remove or redraw it")
    area, (left, top, right, bottom) = area_and_box(segmentation, height, width)
    if not area:
        raise ValueError("encloses no pixel of the image; remove or redraw it")
    if isinstance(segmentation, list):
        values = np.concatenate([np.reshape(polygon, (-1, 2)) for polygon in segmentation])
        if (values < 0).any() or (values > [width, height]).any():
            segmentation = encode(decode(segmentation, height, width))
    return {
        "category_id": shape.category_id,
        "segmentation": segmentation,
        "area": area,
        "bbox": [left, top, right - left, bottom - top],
        "iscrowd": int(shape.crowd),
    }
