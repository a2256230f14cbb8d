from __future__ import annotations

import os
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny_coco import SPLIT, write_tiny_coco
from tiny_model import CATEGORIES, tiny_model

from unisolo import Predictor, load_config, save_model
from unisolo.build import build_dataset
from unisolo.checkpoint import CheckpointError, load_checkpoint
from unisolo.config import config_to_dict
from unisolo.files import write_atomically, write_json


def test_round_trip_is_exact_and_needs_only_the_file(tmp_path: Path) -> None:
    model = tiny_model("model.scale_ranges=[[1,9],[5,20],[10,40],[30,80],[60,999]]").eval()
    path = save_model(model, tmp_path / "sub" / "model.safetensors")
    loaded = load_checkpoint(path)
    assert loaded.categories == CATEGORIES
    assert loaded.config == model.config
    assert loaded.grid == model.grid
    assert not loaded.training
    image = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8)
    for ours, theirs in zip(model(image)[:3], loaded(image)[:3], strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(model(image).extras["stuff_logits"], loaded(image).extras["stuff_logits"])


def test_it_remembers_how_images_are_resized(tmp_path: Path) -> None:
    """The predictor and the data sets resize as the file says."""
    import cv2

    root = write_tiny_coco(tmp_path / "data").root
    noise = np.random.default_rng(0).integers(0, 256, (150, 211, 3), dtype=np.uint8)
    for resize in ("torch", "opencv"):
        path = save_model(tiny_model(f"data.resize={resize}"), tmp_path / "a.safetensors")
        predictor = Predictor(path, device="cpu")
        assert predictor.config.data.resize == resize
        image = predictor.preprocess(noise).image.permute(1, 2, 0).numpy()
        expected = cv2.resize(noise, image.shape[1::-1], interpolation=cv2.INTER_LINEAR)
        assert np.array_equal(image, expected) == (resize == "opencv")
        settings = load_config(
            None,
            [f"data.root={root}", f"data.train_split={SPLIT}", f"data.val_split={SPLIT}"],
            values=config_to_dict(predictor.config),
        )
        for split in ("train", "val"):
            assert build_dataset(settings, split=split).transform.resize == resize


def test_the_file_is_readable_like_any_other(tmp_path: Path) -> None:
    path = save_model(tiny_model(), tmp_path / "model.safetensors")
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.safetensors"]


def test_one_changed_bit_is_noticed(tmp_path: Path) -> None:
    path = save_model(tiny_model(), tmp_path / "model.safetensors")
    data = bytearray(path.read_bytes())
    data[-4000] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match=r"model\.safetensors: damaged .*checksum"):
        load_checkpoint(path)


@pytest.mark.parametrize("cut", [0, 7, 100, -1])
def test_damaged_files_are_named(tmp_path: Path, cut: int) -> None:
    path = save_model(tiny_model(), tmp_path / "model.safetensors")
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: damaged"):
        load_checkpoint(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_checkpoint(tmp_path / "none.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "backbone.safetensors")
    with pytest.raises(CheckpointError, match="not a unisolo checkpoint"):
        load_checkpoint(tmp_path / "backbone.safetensors")


def test_a_newer_format_says_so(tmp_path: Path) -> None:
    metadata = {"format": "unisolo", "format_version": "99", "config": "{}", "categories": "[]"}
    save_file({"a": torch.zeros(1)}, tmp_path / "new.safetensors", metadata=metadata)
    with pytest.raises(CheckpointError, match="newer than this package reads"):
        load_checkpoint(tmp_path / "new.safetensors")


def test_metadata_that_is_damaged_is_named(tmp_path: Path) -> None:
    metadata = {"format": "unisolo", "format_version": "1", "config": "{", "categories": "[]"}
    save_file({"a": torch.zeros(1)}, tmp_path / "bad.safetensors", metadata=metadata)
    with pytest.raises(CheckpointError, match="metadata is damaged"):
        load_checkpoint(tmp_path / "bad.safetensors")


def test_a_task_without_its_branch_is_refused(tmp_path: Path) -> None:
    path = save_model(tiny_model("task=instance"), tmp_path / "instance.safetensors")
    assert load_checkpoint(path, task="detection").config is not None
    with pytest.raises(CheckpointError, match=r"has no\s+stuff branch"):
        load_checkpoint(path, task="panoptic")
    with pytest.raises(ValueError, match="unknown task 'boxes'"):
        load_checkpoint(path, task="boxes")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_json(path, {"value": float("nan"), "list": [1.0, float("inf")]})
    assert path.read_text() == '{"value": null, "list": [1.0, null]}\n'

    def fail(temporary: str) -> None:
        Path(temporary).write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="previous file, if any, is unchanged"):
        write_atomically(path, fail)
    assert path.read_text() == '{"value": null, "list": [1.0, null]}\n'
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.json"]


def test_a_model_put_together_by_hand_cannot_be_saved(tmp_path: Path) -> None:
    model = tiny_model()
    model.config = None
    with pytest.raises(CheckpointError, match="build_model"):
        save_model(model, tmp_path / "model.safetensors")
