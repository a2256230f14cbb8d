from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from faults import FAULTS, Copy
from hostile import plant_hostile_values

from unisolo.config import Config, ConfigError, load_config
from unisolo.data.images import read_image
from unisolo.doctor import brief

Settings = Callable[..., Config]

# What can be told from the JSON files and the names of files.
TOLD = {
    "image-missing", "image-outside", "image-entry", "image-id-twice", "image-file-twice",
    "category-id-twice", "category-name-twice", "category-entry", "category-isthing",
    "category-unknown", "annotation-id-twice", "annotation-id", "annotation-entry", "crowd-kind",
    "box-missing", "box-kind", "annotation-image-unknown", "instances-lack-image",
    "panoptic-lacks-image", "instances-lack-category", "categories-disagree", "png-missing",
    "png-outside", "segment-id", "segment-id-twice", "segment-entry", "panoptic-entry-missing",
    "panoptic-entry-twice", "panoptic-entry",
}  # fmt: skip


@pytest.mark.parametrize("task", ["panoptic", "instance", "detection"])
def test_nothing_is_said_of_healthy_data(healthy: Path, settings: Settings, task: str) -> None:
    assert brief(settings(healthy, task=task)) == []
    assert brief(settings(healthy, task=task), split="val2017") == []


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.code)
def test_faults_that_need_no_pixels_are_told(
    copy: Copy, settings: Settings, fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault.plant(copy)
    copy.save()

    def refuse(*_: object) -> None:
        raise AssertionError("an image was decoded")

    monkeypatch.setattr("unisolo.doctor.pictures.read_image", refuse)
    monkeypatch.setattr("unisolo.doctor.segments.read_segment_ids", refuse)
    said = [sentence for sentence in brief(settings(copy.root)) if f"({fault.code}, " in sentence]
    assert len(said) == (fault.code in TOLD)
    assert read_image  # the real one stays for the others


def test_a_sentence_names_severity_place_and_fix(copy: Copy, settings: Settings) -> None:
    copy.image(0).unlink()
    copy.image(1).unlink()
    (sentence,) = brief(settings(copy.root))
    name = copy.image(0).name
    assert sentence.startswith("data error: an image file is missing (image-missing, 2 times, ")
    assert name in sentence
    assert sentence.endswith("; copy it there")


def test_boxes_outside_the_image(copy: Copy, settings: Settings) -> None:
    copy.objects(22)[0]["bbox"] = [50, 50, 40, 5]
    copy.save()
    (sentence,) = brief(settings(copy.root, task="instance"))
    assert "bbox [50, 50, 40, 5] in an image of 64 x 64" in sentence


def test_hostile_values_do_not_stop_it(copy: Copy, settings: Settings) -> None:
    plant_hostile_values(copy)
    copy.save()
    assert brief(settings(copy.root))
    (copy.root / "annotations" / "panoptic_train2017.json").write_text("[1]")
    assert any("json-unusable" in sentence for sentence in brief(settings(copy.root)))
    with pytest.raises(ConfigError, match="no such folder"):
        brief(settings(copy.root / "nowhere"))


def test_the_tree_is_not_changed(copy: Copy, settings: Settings) -> None:
    copy.objects(22)[1]["id"] = copy.objects(22)[0]["id"]
    copy.save()
    path = copy.root / "annotations" / "instances_train2017.json"
    before = path.read_bytes()
    brief(settings(copy.root))
    assert path.read_bytes() == before
    json.loads(before)


def test_a_reader_of_the_users_own_has_files_of_its_own(settings: Settings, tmp_path: Path) -> None:
    own = load_config(None, values={"data": {"root": tmp_path, "dataset": "squares"}})
    assert brief(own) == []  # of a COCO folder it would say that the annotations are missing
    assert brief(settings(tmp_path))
