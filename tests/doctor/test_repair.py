from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from faults import FAULTS, Copy, Fault
from hostile import plant_hostile_values
from PIL import Image

from unisolo.build import build_dataset
from unisolo.config import Config
from unisolo.doctor import examine, repair

Settings = Callable[..., Config]


def digest(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def read_all(config: Config) -> int:
    """Read every sample of both splits as a training would."""
    count = 0
    for split in ("train", "val"):
        dataset = build_dataset(config, split=split, augment=False)
        dataset.coco_ground_truth()
        for index in range(len(dataset)):
            dataset[index]
            count += 1
    return count


def mend(copy: Copy, tmp_path: Path, settings: Settings, task: str = "panoptic"):
    """Repair a copy; return the settings for the result and what was done."""
    copy.save()
    before = digest(copy.root)
    done = repair(examine(settings(copy.root, task=task)), tmp_path / "mended")
    assert digest(copy.root) == before
    return settings(tmp_path / "mended", task=task), done


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.code)
def test_each_fault_is_mended(copy: Copy, tmp_path: Path, settings: Settings, fault: Fault) -> None:
    fault.plant(copy)
    config, _ = mend(copy, tmp_path, settings)
    report = examine(config)
    assert report.errors == 0, [f.message for f in report.findings]
    assert read_all(config) >= 34


@pytest.mark.parametrize("task", ["panoptic", "instance"])
def test_all_faults_are_mended(copy: Copy, tmp_path: Path, settings: Settings, task: str) -> None:
    for fault in FAULTS:
        fault.plant(copy)
    config, done = mend(copy, tmp_path, settings, task)
    report = examine(config)
    assert report.errors == 0, [f.message for f in report.findings]
    assert read_all(config) > 10
    assert done.mended["box-off"] >= 1
    assert any("images" in sentence for sentence in done.sentences)


def test_hostile_values_are_mended(copy: Copy, tmp_path: Path, settings: Settings) -> None:
    plant_hostile_values(copy)
    config, _ = mend(copy, tmp_path, settings)
    report = examine(config)
    assert report.errors == 0, [f.message for f in report.findings]
    assert read_all(config) > 20


def test_healthy_data_stay_as_they_are(healthy: Path, tmp_path: Path, settings: Settings) -> None:
    done = repair(examine(settings(healthy)), tmp_path / "mended")
    assert done.mended == {}
    for path in sorted((tmp_path / "mended").rglob("*")):
        if path.suffix == ".json":
            source = healthy / path.relative_to(tmp_path / "mended")
            assert json.loads(path.read_text()) == json.loads(source.read_text())
    changed = {name for name in digest(tmp_path / "mended") if not name.endswith(".json")}
    before = digest(healthy)
    assert all(digest(tmp_path / "mended")[name] == before[name] for name in changed)


def test_values_come_from_the_masks(copy: Copy, tmp_path: Path, settings: Settings) -> None:
    entry = copy.objects(22)[0]
    right = dict(entry)
    entry.update(bbox=[0, 0, 1, 1], area=1)
    crowd = copy.objects(22)[1]
    square = [10, 10, 30, 10, 30, 30, 10, 30]
    crowd.update(segmentation=[square], bbox=[10, 10, 20, 20], area=400, iscrowd=1)
    segment = copy.segments(19).pop()
    config, _ = mend(copy, tmp_path, settings)
    tree = json.loads((config.data.root / "annotations/instances_train2017.json").read_text())
    mended = {e["id"]: e for e in tree["annotations"]}
    assert mended[entry["id"]] == right
    assert isinstance(mended[crowd["id"]]["segmentation"], dict)
    png = config.data.root / copy.png(19).relative_to(copy.root)
    ids = np.asarray(Image.open(png)).astype(np.int64) @ [1, 256, 65536]
    before = np.asarray(Image.open(copy.png(19))).astype(np.int64) @ [1, 256, 65536]
    np.testing.assert_array_equal(ids, np.where(before == segment["id"], 0, before))


def test_a_place_that_is_not_free_is_refused(
    healthy: Path, tmp_path: Path, settings: Settings
) -> None:
    report = examine(settings(healthy))
    full = tmp_path / "full"
    full.mkdir()
    (full / "file").touch()
    with pytest.raises(ValueError, match="is not empty"):
        repair(report, full)
    with pytest.raises(ValueError, match="is not empty"):
        repair(report, full / "file")
    with pytest.raises(ValueError, match="lies in the data set"):
        repair(report, healthy / "mended")
    (tmp_path / "free").mkdir()
    assert repair(report, tmp_path / "free").out.is_dir()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["free", "full"]


def test_nothing_is_left_behind_when_writing_fails(
    copy: Copy, tmp_path: Path, settings: Settings
) -> None:
    report = examine(settings(copy.root))
    copy.image(20).unlink()
    with pytest.raises(OSError, match=copy.image(20).name):
        repair(report, tmp_path / "mended")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_what_cannot_be_mended_is_named(copy: Copy, tmp_path: Path, settings: Settings) -> None:
    (copy.root / "annotations" / "panoptic_val2017.json").unlink()
    report = examine(settings(copy.root))
    with pytest.raises(ValueError, match=r"panoptic_val2017\.json.*'val2017'.*--split"):
        repair(report, tmp_path / "mended")
    only = examine(settings(copy.root), splits=["train2017"])
    assert repair(only, tmp_path / "mended").out.is_dir()
    copy.instances["categories"] = []
    copy.save()
    report = examine(settings(copy.root, task="instance"), splits=["train2017"])
    with pytest.raises(ValueError, match="no usable thing categories"):
        repair(report, tmp_path / "again")
