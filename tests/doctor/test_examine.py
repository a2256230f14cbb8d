from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from faults import FAULTS, Copy, Fault
from hostile import plant_hostile_values
from PIL import Image

from unisolo.config import Config, ConfigError
from unisolo.doctor import CODES, Severity, examine

Settings = Callable[..., Config]


def codes(report) -> set[str]:
    return {f.code for f in report.findings if f.severity is not Severity.note}


@pytest.mark.parametrize("task", ["panoptic", "instance", "detection"])
def test_untouched_data_are_healthy(healthy: Path, settings: Settings, task: str) -> None:
    report = examine(settings(healthy, task=task))
    assert codes(report) == set()
    assert report.errors == 0
    assert {name: numbers.images for name, numbers in report.statistics.items()} == {
        "train2017": 30,
        "val2017": 6,
    }


def found(report, code: str, file: str, entry: str) -> bool:
    return any(
        f.code == code and f.file == file and f.entry.startswith(entry) for f in report.findings
    )


# What a fault brings with it, besides its own finding.
COMPANIONS = {
    "image-id-twice": {"image-file-twice"},
    "category-name-twice": {"split-categories"},
    "category-unused": {"split-categories"},
    "instances-lack-category": {"split-categories"},
    "categories-disagree": {"split-categories"},
    "segment-id": {"png-id-unknown"},
    "mask-partly-outside": {"box-off", "area-off"},
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.code)
def test_each_fault_is_found_alone(copy: Copy, settings: Settings, fault: Fault) -> None:
    file, entry = fault.plant(copy)
    copy.save()
    report = examine(settings(copy.root))
    assert found(report, fault.code, file, entry), [f"{f.file} {f.entry}" for f in report.findings]
    assert codes(report) - {fault.code} <= COMPANIONS.get(fault.code, set())


def test_all_faults_are_found_together(copy: Copy, settings: Settings) -> None:
    planted = [(fault.code, *fault.plant(copy)) for fault in FAULTS]
    copy.save()
    report = examine(settings(copy.root))
    lost = [fault for fault in planted if not found(report, *fault)]
    assert not lost


def test_files_that_are_not_there(copy: Copy, settings: Settings) -> None:
    (copy.root / "annotations" / "panoptic_train2017.json").write_text("{")
    (copy.root / "val2017").rename(copy.root / "elsewhere")
    report = examine(settings(copy.root))
    assert found(report, "json-unusable", "annotations/panoptic_train2017.json", "")
    assert found(report, "folder-missing", "val2017", "")
    with pytest.raises(ConfigError, match="nowhere: no such folder"):
        examine(settings(copy.root / "nowhere"))


def test_sizes_count_after_exif_orientation(copy: Copy, settings: Settings) -> None:
    with Image.open(copy.image(0)) as image:
        wide = image.convert("RGB").resize((64, 48))
    exif = Image.Exif()
    exif[0x0112] = 6
    wide.save(copy.image(0), format="JPEG", exif=exif)
    copy.save()
    (finding,) = [
        f for f in examine(settings(copy.root, task="instance")).findings if f.code == "image-size"
    ]
    assert "is 64 x 48 (height x width), the file says 64 x 64" in finding.message


def test_masks_none(copy: Copy, settings: Settings) -> None:
    for entry in copy.instances["annotations"]:
        del entry["segmentation"]
    copy.save()
    report = examine(settings(copy.root, task="instance"))
    assert {"masks-none", "mask-missing", "objects-none"} <= codes(report)


def test_hostile_values_do_not_stop_it(copy: Copy, settings: Settings) -> None:
    plant_hostile_values(copy)
    copy.save()
    report = examine(settings(copy.root))
    json.dumps(report.to_dict(), allow_nan=False)


def test_statistics(healthy: Path, settings: Settings) -> None:
    tree = json.loads((healthy / "annotations" / "instances_train2017.json").read_text())
    objects = [a for a in tree["annotations"] if not a["iscrowd"]]
    numbers = examine(settings(healthy, task="instance")).statistics["train2017"]
    assert numbers.objects == len(objects)
    assert numbers.crowd == len(tree["annotations"]) - len(objects)
    assert numbers.empty_images == 30 - len({a["image_id"] for a in objects})
    assert sum(numbers.categories.values()) == len(objects)
    assert sum(numbers.sizes.values()) == len(objects)
    assert list(numbers.sides) == sorted(numbers.sides)


def test_advice_names_settings_that_help(healthy: Path, settings: Settings) -> None:
    # All on the coarsest grids: most objects share one cell.
    config = settings(
        healthy, "data.image_size=64", "data.max_size=64",
        "model.grid_sizes=[4,3,2,1,1]", "model.scale_ranges=[[1,2],[2,3],[3,4],[4,5],[5,2000]]",
    )  # fmt: skip
    numbers = examine(config).statistics["train2017"]
    assert numbers.coverage is not None
    assert numbers.coverage.collided > 0
    trials = {trial.settings: trial.lost for trial in numbers.trials}
    assert trials["model.scale_ranges=auto",] < trials[()]
    best = min(numbers.trials, key=lambda trial: trial.lost)
    assert " ".join(best.settings) in numbers.advice


def test_every_code_is_in_the_documentation_and_no_other() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "doctor.md").read_text()
    rows = re.findall(r"^\| `([a-z-]+)` \| (\w+) \|", text, flags=re.M)
    assert dict(rows) == {code: entry.severity.value for code, entry in CODES.items()}


@pytest.mark.parametrize("name", ["coco-mini", "idd-lite", "animals7", "dsb2018"])
def test_real_data_are_healthy(shared_data, settings: Settings, name: str) -> None:
    config = settings(shared_data(name), "data.train_split=val2017")
    assert codes(examine(config)) == set()
