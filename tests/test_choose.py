"""What is chosen for a folder and a machine, and that what is given wins."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml
from huggingface_hub import constants
from safetensors.torch import save_file
from tiny_coco import write_tiny_coco

from unisolo.choose import Chosen, choose, find_splits
from unisolo.choose.chosen import Draft
from unisolo.choose.facts import Facts, look_at
from unisolo.choose.image import VISIBLE, choose_size
from unisolo.choose.machine import Machine, batch_that_fits, choose_batch
from unisolo.choose.recipes import FOR_CPU, FOR_GPU
from unisolo.choose.weights import weights_at_hand
from unisolo.config import Config, ConfigError, config_to_dict, load_config
from unisolo.data.raw import ObjectBoxes
from unisolo.data.shapes import generate_shapes

ROOT = Path(__file__).resolve().parents[1]
OFFLINE = "model.pretrained=false"  # nothing is asked of the network


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("choose") / "my_shapes"
    return generate_shapes(folder, num_train=6, num_val=2, image_size=(64, 96), seed=1)


def renamed(source: Path, out: Path, names: dict[str, str]) -> Path:
    """The data set under other names of its splits; None drops one."""
    shutil.copytree(source, out)
    for old, new in names.items():
        (out / old).rename(out / new)
        for path in list((out / "annotations").glob(f"*_{old}*")):
            path.rename(path.with_name(path.name.replace(old, new)))
    return out


def line(chosen: Chosen, what: str) -> tuple[str, str]:
    (choice,) = (choice for choice in chosen.choices if choice.what == what)
    return choice.value, choice.why


def layout(root: Path, *splits: str, images: bool = True) -> Path:
    (root / "annotations").mkdir(parents=True)
    for split in splits:
        (root / "annotations" / f"instances_{split}.json").write_text("{}")
        if images:
            (root / split).mkdir()
    return root


@pytest.mark.parametrize(
    ("there", "train", "val"),
    [
        (["train2017", "val2017"], "train2017", "val2017"),
        (["train", "val", "test"], "train", "val"),
        (["train", "valid"], "train", "valid"),
        (["train2014", "val2014", "val2017"], "train2014", "val2014"),
        (["train2014", "train2017", "val2014", "val2017"], "train2017", "val2017"),
        (["training", "test"], "training", "test"),
        (["Train_a", "dev"], "Train_a", "dev"),
        (["all"], "all", "all"),
        (["train"], "train", "train"),
    ],
)
def test_splits(there: list[str], train: str, val: str, tmp_path: Path) -> None:
    found = find_splits(layout(tmp_path / "d", *there))
    assert (found.train, found.val) == (train, val)
    assert ("remembered" in found.why) is (train == val)
    assert ("unisolo convert-data " in found.why) is (train == val)
    assert ("not used: test" in found.why) is ("test" in there and val != "test")


def test_splits_that_were_given_stay(tmp_path: Path) -> None:
    root = layout(tmp_path / "d", "a", "b", "train")
    assert find_splits(root, "a", "b").train == "a"
    assert find_splits(root, "a").val == "a"  # "train" is no split to evaluate on
    assert find_splits(root, None, "b").val == "b"


def test_folders_that_cannot_be_used_say_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere: no such folder"):
        find_splits(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"no data set in COCO's layout; expected: annotations/"):
        find_splits(tmp_path / "empty")
    (tmp_path / "yolo").mkdir()
    (tmp_path / "yolo" / "data.yaml").write_text("")
    with pytest.raises(ConfigError, match=r"\(found data.yaml\).*unisolo convert-data"):
        find_splits(tmp_path / "yolo")
    with pytest.raises(ConfigError, match="none of the splits a, b is named like one that trains"):
        find_splits(layout(tmp_path / "two", "a", "b"))
    with pytest.raises(ConfigError, match="annotations of 'train', but no folder of that name"):
        find_splits(layout(tmp_path / "no_images", "train", images=False))
    root = layout(tmp_path / "nested", "train", images=False)
    (root / "images" / "train").mkdir(parents=True)
    with pytest.raises(ConfigError, match="they are in images/train: ln -s images/train"):
        find_splits(root)


def test_a_folder_is_enough(shapes: Path) -> None:
    chosen = choose(shapes, overrides=[OFFLINE, "train.device=cpu"])
    config = chosen.config
    assert (config.data.train_split, config.data.val_split) == ("train2017", "val2017")
    assert config.task == "panoptic"
    assert config.train.out == Path("runs/my_shapes")
    assert config.model.backbone == FOR_CPU["model.backbone"]
    assert config.model.scale_ranges == "auto"
    assert config.train.batch_size == 6  # all images: there are no 8
    assert config.data.image_size <= 2 * 64 or config.data.image_size == 192
    assert config.data.max_size % 32 == 0
    assert line(chosen, "splits")[1] == "the annotation files with a folder of images"
    assert line(chosen, "starts from") == ("random weights", "given")
    assert line(chosen, "classes")[0] == "5 things, 5 stuff"
    assert all(choice.value and choice.why for choice in chosen.choices)


def test_the_file_gives_the_same_configuration(shapes: Path, tmp_path: Path) -> None:
    chosen = choose(
        shapes, task="instance", out=tmp_path / "o",
        overrides=[OFFLINE, "train.steps=7", "data.augment={flip: 0}", "train.seed=0"],
    )  # fmt: skip
    path = tmp_path / "chosen.yaml"
    path.write_text(chosen.to_yaml())
    assert load_config(path) == chosen.config
    tree = yaml.safe_load(path.read_text())
    assert tree["train"]["steps"] == 7
    assert tree["train"]["seed"] == 0  # given, although it is the default
    assert "milestones" not in tree["train"]  # neither chosen nor given
    for choice in chosen.choices:
        assert f"#   {choice.what}: {choice.value} ({choice.why})" in path.read_text()


def test_the_choice_is_the_same_at_every_call(shapes: Path) -> None:
    assert choose(shapes, overrides=[OFFLINE]) == choose(shapes, overrides=[OFFLINE])


def test_what_is_given_wins_and_the_rest_follows(shapes: Path, tmp_path: Path) -> None:
    chosen = choose(
        shapes, task="detection", out=tmp_path / "mine",
        overrides=[
            OFFLINE, "data.image_size=320", "train.batch_size=2", "model={fpn_channels: 24}",
            "train.epochs=3", "data.workers=0",
        ],
    )  # fmt: skip
    config = chosen.config
    assert config.task == "detection"
    assert config.train.out == tmp_path / "mine"
    assert (config.data.image_size, config.data.max_size) == (320, 480)
    assert config.model.fpn_channels == 24
    assert config.model.head_channels == FOR_CPU["model.head_channels"]
    assert config.model.fpn_norm == "group"  # two images are too few for batch statistics
    assert config.train.steps is None and config.train.epochs == 3
    assert line(chosen, "task")[1] == "given"
    assert line(chosen, "batch") == ("2", "given")
    assert line(chosen, "length") == ("9 steps = 3.0 epochs", "given")
    assert line(chosen, "image size")[1].endswith("; given: data.image_size")
    assert "least stuff region" not in [choice.what for choice in chosen.choices]


def test_settings_that_are_none_are_told(shapes: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'steps'"):
        choose(shapes, overrides=["train.stepz=1"])
    with pytest.raises(ConfigError, match="must look like key"):
        choose(shapes, overrides=["nonsense"])
    with pytest.raises(ValueError, match="unknown backbone 'resnet5'"):
        choose(shapes, overrides=["model.backbone=resnet5"])
    with pytest.raises(ValueError, match="Invalid pretrained tag"):
        choose(shapes, overrides=["model.backbone=resnet50.xyz"])
    with pytest.raises(ValueError, match="boxes"):
        choose(shapes, task="boxes")


def test_other_names_and_instance_annotations_only(shapes: Path, tmp_path: Path) -> None:
    root = renamed(shapes, tmp_path / "d", {"train2017": "train", "val2017": "valid"})
    (root / "annotations" / "panoptic_valid.json").unlink()
    chosen = choose(root, overrides=[OFFLINE])
    assert (chosen.config.data.train_split, chosen.config.data.val_split) == ("train", "valid")
    assert chosen.config.task == "instance"
    assert "no annotations/panoptic_valid.json" in line(chosen, "task")[1]
    (root / "annotations" / "instances_train.json").unlink()
    with pytest.raises(ConfigError, match="no kind of annotation in common"):
        choose(root, overrides=[OFFLINE])


def test_broken_annotations_point_to_the_doctor(shapes: Path, tmp_path: Path) -> None:
    root = renamed(shapes, tmp_path / "d", {})
    (root / "annotations" / "panoptic_train2017.json").write_text('{"images": 3}')
    with pytest.raises(ValueError, match=r"panoptic_train2017.json: .*: unisolo doctor "):
        choose(root, overrides=[OFFLINE])


def test_images_without_objects_and_only_crowd(tmp_path: Path) -> None:
    tiny = write_tiny_coco(tmp_path / "d")
    for annotation in tiny.panoptic["annotations"]:
        for segment in annotation["segments_info"]:
            segment["iscrowd"] = 1
    tiny.write()
    chosen = choose(tiny.root, overrides=[OFFLINE])
    assert chosen.config.data.val_split == "train2017"  # the only one
    assert chosen.config.model.scale_ranges == "scaled"
    assert line(chosen, "training data")[0].endswith(", 0 objects")


def test_tiny_objects_and_crowds_of_them(tmp_path: Path) -> None:
    tiny = write_tiny_coco(tmp_path / "d")
    (image,) = [image for image in tiny.instances["images"] if image["id"] == 12]
    entry = {"category_id": 3, "iscrowd": 0, "image_id": image["id"], "area": 1}
    for number in range(130):
        x, y = number % 36, number // 36
        outline = [[x, y, x + 1, y, x + 1, y + 1, x, y + 1]]
        box = {"bbox": [x, y, 1, 1], "segmentation": outline, "id": 1000 + number}
        tiny.instances["annotations"].append({**entry, **box})
    tiny.write()
    chosen = choose(tiny.root, task="instance", overrides=[OFFLINE])
    assert chosen.config.inference.max_instances >= 130
    assert chosen.config.inference.max_candidates == 5 * chosen.config.inference.max_instances
    assert chosen.config.data.image_size == 192  # the least: the files are 24 x 36


def facts(**values: Any) -> Facts:
    usual: dict[str, Any] = {
        "images": 500, "objects": 4, "most_objects": 4, "short_side": 480, "aspect": 4 / 3,
        "area": 307200, "shares": torch.tensor([0.1, 0.2, 0.3, 0.5], dtype=torch.float64),
    }  # fmt: skip
    return Facts(**{**usual, **values})


def machine(kind: str, memory: int = 0, processes: int = 1) -> Machine:
    return Machine(torch.device(kind), memory, 8, processes, processes)


@pytest.mark.parametrize(
    ("kind", "values", "size"),
    [
        ("cpu", {}, 192),
        ("cuda", {}, 512),
        ("cpu", {"shares": torch.tensor([0.02] * 4, dtype=torch.float64)}, 384),
        ("cuda", {"shares": torch.tensor([0.03] * 4, dtype=torch.float64)}, 640),
        ("cuda", {"shares": torch.tensor([0.03] * 4), "short_side": 256}, 512),
        ("cuda", {"short_side": 100}, 512),  # never below the least
        ("cpu", {"objects": 0, "shares": torch.zeros(0)}, 192),
    ],
)
def test_image_size_follows_the_objects(kind: str, values: dict[str, Any], size: int) -> None:
    draft = Draft({}, [])
    choose_size(draft, facts(**values), machine(kind))
    assert draft.config.data.image_size == size
    assert size <= draft.config.data.max_size <= size * 5 / 3 + 32
    assert draft.config.data.max_size % 32 == 0
    shares = facts(**values)
    enough = shares.visible(size, VISIBLE) >= 0.9
    assert enough or size in (384, 512)


@pytest.mark.parametrize(
    ("on", "images", "batch"),
    [
        (machine("cpu"), 500, 8),
        (machine("cpu"), 3, 3),
        (machine("cuda", 80 * 2**30), 500, 16),
        (machine("cuda", 8 * 2**30), 500, 8),
        (machine("cuda", 2**30), 500, 2),
        (machine("cuda", 80 * 2**30, processes=6), 500, 12),
        (machine("cuda", 80 * 2**30, processes=32), 500, 32),
        (machine("cuda", 80 * 2**30, processes=4), 3, 4),
    ],
)
def test_batch_follows_memory_images_and_processes(on: Machine, images: int, batch: int) -> None:
    draft = Draft({}, ["data.image_size=512"])
    choose_batch(draft, facts(images=images), on)
    assert draft.config.train.batch_size == batch
    assert batch % on.processes == 0
    norm = draft.config.model.fpn_norm
    assert (norm == "group") is (batch // on.processes < 4)


def test_larger_images_take_more_of_the_memory() -> None:
    assert batch_that_fits(16 * 2**30, 512) == 16
    assert batch_that_fits(16 * 2**30, 800) == 4
    assert batch_that_fits(0, 800) == 16  # not known


def test_facts_count_every_image_once() -> None:
    class Boxes:
        def object_boxes(self) -> ObjectBoxes:
            rows = [
                [0, 0, 10, 10, 100, 200, 0],
                [5, 5, 20, 5, 100, 200, 0],
                [0, 0, 1, 1, 50, 50, 3],
            ]
            return ObjectBoxes.from_rows(rows)

    found = look_at(Boxes(), 7)
    assert (found.images, found.objects, found.most_objects) == (7, 3, 2)
    assert found.short_side == 50 and found.area == 2500
    np.testing.assert_allclose(found.shares, [0.1, 0.1, 0.02])


@pytest.mark.parametrize(
    ("recipe", "file"),
    [(FOR_CPU, "quickstart.yaml"), (FOR_GPU, "small_efficientnet_lite0_512.yaml")],
)
def test_recipes_are_those_of_the_files(recipe: dict[str, Any], file: str) -> None:
    tree = config_to_dict(load_config(ROOT / "configs" / file))
    for key, value in recipe.items():
        place: Any = tree
        for part in key.split("."):
            place = place[part]
        assert place == value, key


def test_weights_are_taken_where_they_are_at_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What HF_HOME and HF_HUB_OFFLINE set when the package is imported.
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    there, why = weights_at_hand("test_resnet")
    assert not there
    assert why.startswith("not in the cache, no download from here (")
    folder = tmp_path / "models--timm--test_resnet.r160_in1k"
    snapshot = folder / "snapshots" / ("0" * 40)
    for place in (folder / "refs", snapshot):
        place.mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    save_file(timm.create_model("test_resnet").state_dict(), snapshot / "model.safetensors")
    assert weights_at_hand("test_resnet") == (True, "ImageNet weights, from the cache")
    timm.create_model("test_resnet", pretrained=True)  # what was said is true


def test_names_cannot_steer_the_terminal_or_the_file(shapes: Path, tmp_path: Path) -> None:
    root = renamed(shapes, tmp_path / "d", {})
    for split in ("train2017", "val2017"):
        path = root / "annotations" / f"panoptic_{split}.json"
        tree = json.loads(path.read_text())
        tree["categories"][0]["name"] = "a\n  task: b\x1b[2J"
        path.write_text(json.dumps(tree))
    chosen = choose(root, overrides=[OFFLINE])
    text = chosen.to_yaml()
    assert "\x1b" not in text and "\n  task" not in text
    (tmp_path / "c.yaml").write_text(text)
    assert load_config(tmp_path / "c.yaml") == chosen.config
    assert isinstance(chosen.config, Config)
