"""The embedded data set in the formats that `convert-data` reads."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from unisolo.categories import Categories
from unisolo.convert_data.pixels import voc_palette
from unisolo.data import CocoInstance, CocoPanoptic
from unisolo.ops.boxes import masks_to_boxes
from unisolo.ops.masks import pack_bits
from unisolo.results import Result
from unisolo.segmentation import decode


@dataclass(frozen=True)
class Scene:
    """One image of the embedded data set with its truth."""

    split: str
    image: Path
    categories: Categories  # things and stuff
    labels: list[int]
    masks: np.ndarray  # [N, H, W] bool, no two overlap
    panoptic: np.ndarray  # [H, W] class number as label; 255 = void

    @property
    def stem(self) -> str:
        return f"{self.split}_{self.image.stem}"

    def result(self) -> Result:
        masks = torch.from_numpy(self.masks)
        return Result(
            image_size=self.masks.shape[1:],
            categories=self.categories,
            scores=torch.ones(len(masks)),
            labels=torch.tensor(self.labels, dtype=torch.int64),
            boxes=masks_to_boxes(masks),
            packed_masks=pack_bits(masks),
        )


def read_scenes(root: Path) -> list[Scene]:
    scenes = []
    for split in ("train2017", "val2017"):
        data = CocoPanoptic.from_root(root, split)
        for record in data._records:
            segment_map = data._segment_map(record)
            labels, masks = [], []
            classes = np.full(segment_map.shape, 255, np.uint8)
            for number, (_, label, crowd) in enumerate(record["segments"], start=1):
                if crowd:
                    continue
                classes[segment_map == number] = label
                if label < data.categories.num_things and (segment_map == number).any():
                    labels.append(label)
                    masks.append(segment_map == number)
            stack = np.stack(masks) if masks else np.zeros((0, *segment_map.shape), bool)
            image = root / split / record["file_name"]
            scenes.append(Scene(split, image, data.categories, labels, stack, classes))
    return scenes


def place(scene: Scene, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{scene.stem}{scene.image.suffix}"
    shutil.copyfile(scene.image, path)
    return path


def thing_names(scenes: list[Scene]) -> list[str]:
    return [category.name for category in scenes[0].categories.things]


def write_yolo(scenes: list[Scene], root: Path) -> None:
    for scene in scenes:
        split = scene.split.removesuffix("2017")
        image = place(scene, root / "images" / split)
        label = root / "labels" / split / f"{image.stem}.txt"
        label.parent.mkdir(parents=True, exist_ok=True)
        label.write_text("".join(f"{line}\n" for line in scene.result().to_yolo()))
    (root / "data.yaml").write_text(
        "path: /somewhere/else\ntrain: images/train\nval: images/val\n"
        f"names: {json.dumps(thing_names(scenes))}\n"
    )


def write_labelme(scenes: list[Scene], root: Path) -> None:
    for number, scene in enumerate(scenes):
        tree = scene.result().to_labelme(place(scene, root).name)
        if number == 0:  # LabelMe may keep the picture inside
            file = root / tree["imagePath"]
            tree["imageData"] = base64.b64encode(file.read_bytes()).decode()
            file.unlink()
        (root / f"{scene.stem}.json").write_text(json.dumps(tree))


def write_voc(scenes: list[Scene], root: Path, *, color: bool = False) -> None:
    palette = voc_palette(256)

    def save(path: Path, numbers: np.ndarray) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if color:
            rgb = palette[numbers]
            rgb[numbers == 255] = (224, 224, 192)
            Image.fromarray(rgb).save(path)
        else:
            image = Image.fromarray(numbers.astype(np.uint8), mode="P")
            image.putpalette(palette.reshape(-1).tolist())
            image.save(path)

    lists: dict[str, list[str]] = {"train": [], "val": []}
    for scene in scenes:
        place(scene, root / "JPEGImages")
        objects = np.zeros(scene.panoptic.shape, np.uint8)
        classes = np.where(scene.panoptic == 255, 255, 0).astype(np.uint8)
        objects[classes == 255] = 255
        for number, (label, mask) in enumerate(zip(scene.labels, scene.masks, strict=True), 1):
            objects[mask], classes[mask] = number, label + 1
        save(root / "SegmentationObject" / f"{scene.stem}.png", objects)
        save(root / "SegmentationClass" / f"{scene.stem}.png", classes)
        lists[scene.split.removesuffix("2017")].append(scene.stem)
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    for split, stems in lists.items():
        (root / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(stems))
    lines = ["background", *thing_names(scenes)]
    if color:
        colors = [",".join(map(str, palette[n])) for n in range(len(lines))]
        lines = [f"{name}:{color}::" for name, color in zip(lines, colors, strict=True)]
        (root / "labelmap.txt").write_text("# label:color_rgb:parts:actions\n" + "\n".join(lines))
    else:
        (root / "classes.txt").write_text("\n".join(lines))


def write_masks(scenes: list[Scene], root: Path) -> None:
    for scene in scenes:
        split = scene.split.removesuffix("2017")
        image = place(scene, root / "images" / split)
        (root / "masks" / split).mkdir(parents=True, exist_ok=True)
        Image.fromarray(scene.panoptic).save(root / "masks" / split / f"{image.stem}.png")
    names = [category.name for category in scenes[0].categories]
    (root / "names.txt").write_text("\n".join(names) + "\n")


WRITERS: dict[str, Callable[..., Any]] = {
    "yolo": write_yolo,
    "labelme": write_labelme,
    "voc": write_voc,
    "masks": write_masks,
}


def converted_masks(root: Path, split: str) -> dict[str, list[tuple[str, np.ndarray]]]:
    """Category name and mask of every object by image stem, as our reader takes them."""
    data = CocoInstance.from_root(root, split)
    found: dict[str, list[tuple[str, np.ndarray]]] = {}
    for record in data._records:
        size = record["height"], record["width"]
        found[Path(record["file_name"]).stem] = [
            (data.categories[label].name, decode(segmentation, *size))
            for label, _, segmentation, _ in record["objects"]
        ]
    return found
