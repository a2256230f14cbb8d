from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import foreign
import numpy as np
import pytest
import torch
from pages import ROOT
from PIL import Image
from tiny_model import lively_model

from unisolo import save_model
from unisolo.data import DATASETS, CocoPanoptic
from unisolo.data.shapes import generate_shapes
from unisolo.tasks import TASKS
from unisolo.video.files import VideoWriter

SIZE = (64, 96)  # what the tiny models see: nothing is resized


@pytest.fixture(scope="session")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What pages speak of: a data set, images, a checkpoint, folders of the repository."""
    folder = tmp_path_factory.mktemp("material")
    generate_shapes(folder / "my_data", num_train=8, num_val=3, image_size=SIZE)
    (folder / "photos").mkdir()
    scenes = sorted((folder / "my_data" / "train2017").iterdir())
    for number, name in enumerate(("street.jpg", "photos/first.jpg", "photos/second.jpg")):
        Image.open(scenes[number]).convert("RGB").save(folder / name, quality=95)
    writer = VideoWriter(folder / "clip.mp4", Fraction(25), SIZE)
    for number, scene in enumerate(scenes):
        writer.write(np.asarray(Image.open(scene).convert("RGB")), number / 25)
    writer.close()
    categories = CocoPanoptic.from_root(folder / "my_data", "val2017").categories
    with torch.random.fork_rng():
        model = lively_model("inference.max_instances=15", categories=categories)
    save_model(model, folder / "model.safetensors")
    write_yolo(folder / "my_yolo", scenes[:3])
    for name in ("configs", "tools", "docs"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def write_yolo(root: Path, images: list[Path]) -> None:
    """A data set in YOLO's segmentation format: one triangle an image."""
    for kind in ("images", "labels"):
        (root / kind / "train").mkdir(parents=True)
    (root / "data.yaml").write_text("train: images/train\nnames: [triangle]\n")
    for image in images:
        (root / "images" / "train" / image.name).write_bytes(image.read_bytes())
        label = root / "labels" / "train" / f"{image.stem}.txt"
        label.write_text("0 0.2 0.2 0.8 0.2 0.5 0.8\n")


@pytest.fixture(scope="session")
def weights(material: Path) -> Path:
    """A published model's file, with drawn weights."""
    shapes = foreign.mmdetection_shapes()
    return foreign.write(foreign.drawn(shapes), "mmdetection", material / "solov2_r50.pth")


@pytest.fixture
def scratch(material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with links to the material, as the current one; tables are put back afterwards."""
    for path in material.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    tables = [(table, dict(table)) for table in (DATASETS, TASKS)]  # type: ignore[arg-type]
    yield tmp_path
    for table, before in tables:
        table.clear()
        table.update(before)
