"""`tools/predict.py` as people run it, and the function behind it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from tiny_model import CATEGORIES, lively_model

from unisolo import Predictor, save_model
from unisolo.predict_files import find_images, predict_files

ROOT = Path(__file__).resolve().parents[2]


def save_picture(path: Path, height: int, width: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (-(-height // 12), -(-width // 12), 3), dtype=np.uint8)
    array = small.repeat(12, axis=0).repeat(12, axis=1)[:height, :width]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return array


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(lively_model(), tmp_path_factory.mktemp("model") / "model.safetensors")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder as folders are: several kinds, sub-folders, equal names, broken and other files."""
    folder = tmp_path / "photos"
    save_picture(folder / "a.png", 60, 84, 1)
    save_picture(folder / "a.jpg", 50, 50, 2)
    save_picture(folder / "deep" / "down" / "b.JPEG", 84, 60, 3)
    save_picture(folder / "c.bmp", 40, 64, 4)
    (folder / "broken.jpg").write_bytes((folder / "a.jpg").read_bytes()[:200])
    (folder / "empty.png").write_bytes(b"")
    (folder / "notes.txt").write_text("not an image")
    (folder / "._a.png").write_text("what some systems leave beside files")
    return folder


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / "predict.py"), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


GOOD = {1: "a.jpg", 2: "a.png", 4: "c.bmp", 5: "deep/down/b.JPEG"}  # by number in the folder


def test_a_folder_with_broken_images(checkpoint: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run(photos, "--checkpoint", checkpoint, "--out", out, "--device", "cpu")
    assert done.returncode == 1, done.stderr
    assert "4 images, " in done.stdout
    for name in ("broken.jpg", "empty.png"):
        assert f"skipped: {photos / name}:" in done.stderr
    assert "Traceback" not in done.stderr
    assert files(out) == [
        "overlays/a_jpg.jpg",
        "overlays/a_png.png",
        "overlays/c.png",
        "overlays/deep/down/b.jpg",
        "panoptic.json",
        "panoptic/a_jpg.png",
        "panoptic/a_png.png",
        "panoptic/c.png",
        "panoptic/deep/down/b.png",
        "predictions.json",
    ]
    _check_results(out, photos, checkpoint)
    _check_panoptic(out)


def _check_results(out: Path, photos: Path, checkpoint: Path) -> None:
    found = read_json(out / "predictions.json")
    assert set(found) == {"images", "annotations", "categories"}
    assert found["categories"] == CATEGORIES.to_coco()
    assert {image["id"]: image["file_name"] for image in found["images"]} == GOOD
    predictor = Predictor(checkpoint, device="cpu")
    for image in found["images"]:
        path = photos / image["file_name"]
        result = predictor.predict(path)
        assert result.image_size == (image["height"], image["width"])
        entries = [e for e in found["annotations"] if e["image_id"] == image["id"]]
        assert entries == result.to_coco(image["id"])
        assert len(entries) > 3
        masks = coco_mask.decode([entry["segmentation"] for entry in entries])
        assert masks.shape == (*result.image_size, len(entries))
        overlay = Image.open(out / "overlays" / _written(image["file_name"]))
        assert overlay.size == result.image_size[::-1]
        assert overlay.format == ("PNG" if path.suffix in (".png", ".bmp") else "JPEG")


def _written(name: str) -> str:
    return {
        "a.jpg": "a_jpg.jpg",
        "a.png": "a_png.png",
        "c.bmp": "c.png",
        "deep/down/b.JPEG": "deep/down/b.jpg",
    }[name]


def _check_panoptic(out: Path) -> None:
    found, results = read_json(out / "panoptic.json"), read_json(out / "predictions.json")
    assert found["images"] == results["images"]
    assert found["categories"] == results["categories"]
    assert [entry["image_id"] for entry in found["annotations"]] == [
        image["id"] for image in found["images"]
    ]
    for entry in found["annotations"]:
        colors = np.asarray(Image.open(out / "panoptic" / entry["file_name"])).astype(int)
        ids = colors @ [1, 256, 256**2]
        areas = {segment["id"]: segment["area"] for segment in entry["segments_info"]}
        assert areas == {int(i): int((ids == i).sum()) for i in np.unique(ids) if i}


def test_one_image_and_another_task(checkpoint: Path, photos: Path, tmp_path: Path) -> None:
    done = run(
        photos / "a.png", "--checkpoint", checkpoint, "--out", tmp_path / "out",
        "--task", "detection", "--score-threshold", "0.6",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert files(tmp_path / "out") == ["overlays/a.png", "predictions.json"]
    entries = read_json(tmp_path / "out" / "predictions.json")["annotations"]
    assert entries
    assert all(entry["score"] >= 0.6 and "segmentation" not in entry for entry in entries)


def test_mistakes_are_one_sentence_and_exit_code_2(photos: Path, tmp_path: Path) -> None:
    done = run(photos, "--checkpoint", tmp_path / "none.safetensors", "--out", tmp_path / "out")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "none.safetensors: no such checkpoint file" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_limit_and_scale(checkpoint: Path, photos: Path, tmp_path: Path) -> None:
    predictor = Predictor(checkpoint, device="cpu")
    seen = []
    report = predict_files(
        predictor, photos, tmp_path / "out", limit=3, scale=2,
        on_image=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert report.predicted == 2
    assert [line.split(": ")[0] for line in report.broken] == [str(photos / "broken.jpg")]
    assert report.instances == len(read_json(tmp_path / "out" / "predictions.json")["annotations"])
    assert Image.open(tmp_path / "out" / "overlays" / "a_png.png").size == (168, 120)
    assert Image.open(tmp_path / "out" / "panoptic" / "a_png.png").size == (84, 60)


def test_results_inside_the_folder_are_not_predicted_again(checkpoint: Path, photos: Path) -> None:
    predictor = Predictor(checkpoint, task="instance", device="cpu")
    first = predict_files(predictor, photos, photos / "out")
    assert predict_files(predictor, photos, photos / "out") == first
    assert not (photos / "out" / "panoptic.json").exists()


def test_nothing_readable_still_leaves_empty_tables(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_text("x")
    report = predict_files(
        Predictor(checkpoint, device="cpu"), tmp_path / "bad.png", tmp_path / "o"
    )
    assert (report.predicted, report.instances, len(report.broken)) == (0, 0, 1)
    found = read_json(tmp_path / "o" / "predictions.json")
    assert found["images"] == found["annotations"] == []


def test_folders_without_images_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such image or folder"):
        find_images(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match=r"no image in this folder \(looked for \.bmp"):
        find_images(tmp_path)
    assert find_images(tmp_path / "notes.txt") == [tmp_path / "notes.txt"]
