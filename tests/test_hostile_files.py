"""Configurations, annotations and checkpoints from elsewhere: an error of ours, in time."""

from __future__ import annotations

import ast
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from test_hostile_images import in_time as in_time  # every test here under its clock
from tiny_coco import HEIGHT, MIXED, SPLIT, write_tiny_coco
from tiny_model import CATEGORIES, tiny_model

from unisolo import load_config, save_model
from unisolo.checkpoint import CheckpointError, load_checkpoint
from unisolo.config import ConfigError, config_to_dict
from unisolo.data import CocoInstance, CocoPanoptic
from unisolo.data.coco_files import DatasetError, read_coco
from unisolo.data.coco_panoptic import read_segment_ids
from unisolo.data.images import ImageError
from unisolo.reading import relative_name

PACKAGE = Path(__file__).resolve().parents[1] / "unisolo"


def test_nothing_that_runs_code_reads_files() -> None:
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = [alias.name for alias in node.names] + [getattr(node, "module", "") or ""]
                assert not {"pickle", "marshal", "shelve", "dill", "joblib"} & set(names), path
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert name not in ("eval", "exec", "yaml.unsafe_load", "yaml.full_load"), path
            if name == "torch.load":
                assert options.get("weights_only") == "True", path
            if name == "yaml.load":
                assert options.get("Loader") == "_Loader", path
            if name in ("np.load", "numpy.load"):
                assert options.get("allow_pickle", "False") == "False", path


# Configurations

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join(['*' + before] * 9)}]\n"
    for before, name in zip("abcdefghi", "bcdefghij", strict=True)
)

TEXTS = {
    "a billion laughs": (LAUGHS, "aliases"),
    "laughing keys": ("a: &a {k: v}\nb: {<<: *a}\n", "aliases"),
    "an alias of itself": ("train: &a {lr: *a}\n", "aliases"),
    "deep lists": ("task: " + "[" * 5000 + "]" * 5000, "nested too deeply|task"),
    "deep mappings": ("{a: " * 3000 + "1" + "}" * 3000, "nested too deeply|unknown key"),
    "a number of 5000 digits": ("train: {steps: " + "9" * 5000 + "}", "not valid YAML|train.steps"),
    "a date that is none": ("task: 2001-99-99", "not valid YAML"),
    "an empty number": ("train: {steps: !!int ''}", "not valid YAML"),
    "a word as number": ("train: {steps: !!float abc}", "not valid YAML"),
    "a word as bool": ("train: {decay_norms: !!bool perhaps}", "not valid YAML"),
    "keys that are no text": ("1: 2\n", "1"),
    "keys that are lists": ("? [a, b]\n: c\n", "not valid YAML"),
    "two documents": ("a: 1\n---\nb: 2\n", "not valid YAML"),
    "not a number": ("train: {lr: .nan}", "train.lr"),
    "infinity": ("inference: {nms_sigma: .inf}", "inference.nms_sigma"),
    "an infinite range": ("model: {scale_ranges: [[1, .inf]]}", "scale_ranges"),
    "a grid for a planet": ("model: {grid_sizes: [100000000]}", "grid_sizes"),
    "an image for a planet": ("data: {image_size: 100000000}", "data.image_size"),
    "a tag": ("task: !!python/name:os.system", "not valid YAML"),
    "a base with a zero byte": ('base: "a\\0b"', "no such configuration file"),
    "a long value": ("task: {" + ", ".join(f"k{n}: 1" for n in range(9999)) + "}", "task"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_texts_that_are_no_configuration(tmp_path: Path, name: str) -> None:
    text, words = TEXTS[name]
    path = tmp_path / "c.yaml"
    path.write_text(text)
    begin = time.monotonic()
    with pytest.raises(ConfigError, match=words) as caught:
        load_config(path)
    assert str(tmp_path) in str(caught.value)
    assert len(str(caught.value)) < 3000
    assert time.monotonic() - begin < 20


@pytest.mark.parametrize(
    "override",
    ["train.steps=" + "[" * 5000, "task=2001-99-99", "a." * 5000 + "b=1", "=", "train.lr=*a"],
)
def test_overrides_that_are_none(override: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, [override])
    assert len(str(caught.value)) < 50_000


def test_configurations_that_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large.yaml").write_text("# " + "x" * 2**20)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path, words in (
        (tmp_path / "pipe", "not a regular file"),
        (Path("/dev/zero"), "not a regular file"),
        (tmp_path / "loop", "cannot be read"),
        (tmp_path, "a folder, not a configuration file"),
        (tmp_path / "large.yaml", "larger than"),
        (tmp_path / "binary.yaml", "cannot be read"),
    ):
        for ask in (path, None):
            if ask is None:
                (tmp_path / "top.yaml").write_text(f"base: {path}\n")
            with pytest.raises(ConfigError, match=words) as caught:
                load_config(ask or tmp_path / "top.yaml")
            assert str(path) in str(caught.value)


def test_what_a_run_writes_has_no_aliases(tmp_path: Path) -> None:
    config = load_config(
        None, ["data.augment.crop=[64, 64]", "model.scale_ranges=[[1, 9], [1, 9], [1, 9]]"]
    )
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config_to_dict(config)))
    assert load_config(path) == config


# Annotations


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"images": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deeply"),
        ('{"images": [' + "9" * 5000 + "]}", "not valid JSON"),
        ('{"images": [1], "annotations": [], "categories": []}', "entry 0 of 'images' is 1"),
        ('{"images": [], "annotations": ["a"], "categories": []}', "entry 0 of 'annotations'"),
        ('{"images": [], "annotations": [{"image_id": []}], "categories": []}', "has image_id"),
        ('{"images": [{"id": {}}], "annotations": [], "categories": []}', "has id"),
        ("\ud800".encode("utf-16", "surrogatepass").decode("latin-1"), "not valid JSON"),
    ],
)
def test_texts_that_are_no_annotations(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(DatasetError, match=words) as caught:
        read_coco(path)
    assert str(path) in str(caught.value)


def test_annotation_files_that_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    for path in (tmp_path / "pipe.json", Path("/dev/zero")):
        with pytest.raises(DatasetError, match="not a regular file"):
            read_coco(path)
        with pytest.raises(DatasetError, match="not a regular file"):
            read_segment_ids(path, {"id": 1, "height": 2, "width": 3})


HUGE = 10**400


@pytest.mark.parametrize(
    "value", [None, "x", [], {}, HUGE, -1, float("nan"), float("inf"), 1.5, True, "\ud800", [HUGE]]
)
@pytest.mark.parametrize(
    "place",
    ["image height", "image id", "file_name", "category id", "category color", "iscrowd", "bbox",
     "area", "segmentation", "category_id", "image_id", "segment id"],
)  # fmt: skip
def test_any_value_anywhere_is_our_error_or_an_answer(
    tmp_path: Path, place: str, value: Any
) -> None:
    tiny = write_tiny_coco(tmp_path)
    tiny.panoptic, tiny.instances = json.loads(json.dumps([tiny.panoptic, tiny.instances]))
    kinds: list[Any] = []
    for tree, kind in ((tiny.panoptic, CocoPanoptic), (tiny.instances, CocoInstance)):
        entry = tree["annotations"][1]
        entry = entry["segments_info"][0] if kind is CocoPanoptic else entry
        if place.startswith("image ") or place == "file_name":
            tree["images"][0][place.removeprefix("image ")] = value
        elif place.startswith("category "):
            tree["categories"][0][place.removeprefix("category ")] = value
        elif place == "image_id":
            tree["annotations"][1]["image_id"] = value
        elif place == "segment id":
            entry["id"] = value
        else:
            entry[place] = value
        kinds.append(kind)
    tiny.write()
    for kind in kinds:
        try:
            dataset = kind.from_root(tiny.root, SPLIT)
            assert len([dataset[n] for n in range(len(dataset))]) == 5
            dataset.object_boxes()
            json.dumps(dataset.coco_ground_truth())
        except (DatasetError, ImageError) as error:  # a name may lead to no image
            assert str(tiny.root) in str(error)
            assert len(str(error)) < 2000


def test_names_stay_inside() -> None:
    for name in ("a.png", "a/b.png", "a\\b.png", "a/../b.png", "./a.png", ".hidden"):
        assert relative_name(name) is not None
    for name in (
        "",
        ".",
        "..",
        "../a",
        "a/../../b",
        "/etc/passwd",
        "..\\a",
        "a\0b",
        "\ud800",
        7,
        None,
        [],
    ):
        assert relative_name(name) is None
    assert relative_name("\\\\server\\share") is None


def test_links_inside_the_folder_are_followed(tmp_path: Path) -> None:
    """Data sets are often links to shared disks; a name in a JSON file cannot make a link."""
    tiny = write_tiny_coco(tmp_path / "data")
    elsewhere = tmp_path / "disk" / "image.png"
    elsewhere.parent.mkdir()
    tiny.image(MIXED).rename(elsewhere)
    tiny.image(MIXED).symlink_to(elsewhere)
    assert len(CocoInstance.from_root(tiny.root, SPLIT)[1].target or ()) == 5


def test_evaluation_never_writes_outside_its_folder(tmp_path: Path) -> None:
    from unisolo.evaluation.panoptic import PanopticEvaluator

    tiny = write_tiny_coco(tmp_path)
    dataset = CocoPanoptic.from_root(tiny.root, SPLIT)
    truth = dataset.panoptic_ground_truth()
    truth["annotations"][0]["file_name"] = "../../outside.png"
    with pytest.raises(ValueError, match=r"outside\.png.*which points outside"):
        PanopticEvaluator(truth, dataset.panoptic_dir, dataset.categories)


def test_fields_that_no_metric_needs_may_hold_anything(tmp_path: Path) -> None:
    """An evaluation must not end hours later on a licence that is a list."""
    from unisolo.tasks import TASKS

    tiny = write_tiny_coco(tmp_path)
    tiny.panoptic, tiny.instances = json.loads(json.dumps([tiny.panoptic, tiny.instances]))
    expected = [dict(segment) for segment in tiny.segments(MIXED)]
    for tree in (tiny.panoptic, tiny.instances):
        for image in tree["images"]:
            image.update(license=["x"], date_captured=7, flickr_url={}, height=float(HEIGHT))
        tree["info"] = [1]
    for segment, bad in zip(tiny.segments(MIXED), ["x", None, -5, [1], float("nan")], strict=False):
        segment["area"], segment["bbox"] = bad, "none"
    tiny.write()
    dataset = CocoPanoptic.from_root(tiny.root, SPLIT)
    truth = dataset.panoptic_ground_truth()
    (mixed,) = (entry for entry in truth["annotations"] if entry["image_id"] == MIXED)
    areas = {segment["id"]: segment["area"] for segment in mixed["segments_info"]}
    assert areas == {segment["id"]: segment["area"] for segment in expected}
    with pytest.warns(UserWarning, match="never given to the evaluator"):
        for evaluator in TASKS["panoptic"](dataset.categories).make_evaluators(dataset):
            assert all(value == 0 or value != value for value in evaluator.compute().values())


def test_no_images_is_nothing_to_score(tmp_path: Path) -> None:
    from unisolo.evaluation.panoptic import PanopticEvaluator

    truth: dict[str, Any] = {"images": [], "annotations": []}
    metrics = PanopticEvaluator(truth, tmp_path, CATEGORIES).compute()
    assert all(value != value for value in metrics.values())  # NaN


def test_a_png_of_another_size_is_not_decoded(tmp_path: Path) -> None:
    from test_hostile_images import header

    (tmp_path / "a.png").write_bytes(header(9000, 9000))
    with pytest.raises(DatasetError, match="is 9000 x 9000"):
        read_segment_ids(tmp_path / "a.png", {"id": 1, "height": 2, "width": 3})
    Image.fromarray(np.zeros((2, 3, 4), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(DatasetError, match="must be RGB"):
        read_segment_ids(tmp_path / "a.png", {"id": 1, "height": 2, "width": 3})


# Checkpoints


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tiny_model(), tmp_path_factory.mktemp("model") / "model.safetensors")


def changed(checkpoint: Path, path: Path, **changes: Any) -> Path:
    """The checkpoint with other metadata (None = without) or tensors."""
    from safetensors import safe_open

    with safe_open(str(checkpoint), framework="pt") as file:
        metadata = dict(file.metadata())
    tensors = {**load_file(checkpoint), **changes.pop("tensors", {})}
    metadata = {k: v for k, v in {**metadata, **changes}.items() if v is not None}
    save_file({k: v for k, v in tensors.items() if v is not None}, path, metadata=metadata)
    return path


def config_with(**sections: Any) -> str:
    values = config_to_dict(tiny_model().config)  # type: ignore[arg-type]
    for name, section in sections.items():
        values[name].update(section)
    return json.dumps(values)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"config": "[" * 100_000}, "metadata is damaged.*nested too deeply"),
        ({"config": "[1]"}, "no mapping"),
        ({"categories": "{}"}, "no list"),
        ({"categories": "[3]"}, "category entry 3"),
        ({"categories": '[{"id": 1e400, "name": "a"}]'}, "category entry"),
        ({"categories": None}, "metadata is damaged"),
        ({"format_version": "9" * 5000}, "metadata is damaged"),
        ({"config": '{"model": {"backbone": "hf-hub:x/y"}}'}, "unknown backbone"),
        ({"config": '{"task": "pose"}'}, "unknown task"),
    ],
)
def test_hostile_metadata(checkpoint: Path, tmp_path: Path, change: Any, words: str) -> None:
    path = changed(checkpoint, tmp_path / "m.safetensors", **change)
    with pytest.raises(CheckpointError, match=words) as caught:
        load_checkpoint(path)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    "model", [{"fpn_channels": 10**6}, {"head_channels": 10**7}, {"head_convs": 300}]
)
def test_a_model_larger_than_its_file_is_never_allocated(
    checkpoint: Path, tmp_path: Path, model: dict[str, int]
) -> None:
    path = changed(checkpoint, tmp_path / "m.safetensors", config=config_with(model=model))
    with pytest.raises(CheckpointError, match="do not fit its configuration"):
        load_checkpoint(path)
    many = [{"id": n, "name": "x", "isthing": 1} for n in range(20_000)]
    path = changed(checkpoint, tmp_path / "n.safetensors", categories=json.dumps(many))
    with pytest.raises(CheckpointError, match="do not fit its configuration"):
        load_checkpoint(path)


def test_hostile_weights(checkpoint: Path, tmp_path: Path) -> None:
    name = "solo_head.category_out.bias"
    shape = (CATEGORIES.num_things,)
    for tensor, words in (
        (torch.full(shape, float("nan")), "not finite"),
        (torch.full(shape, float("inf")), "not finite"),
        (torch.zeros(shape, dtype=torch.int32), "do not fit"),
        (torch.zeros(3, 4, 5), "do not fit"),
        (None, f"lacks 1 tensors, e.g. '{name}'"),
    ):
        path = changed(checkpoint, tmp_path / "m.safetensors", tensors={name: tensor})
        with pytest.raises(CheckpointError, match=words):
            load_checkpoint(path)
    path = changed(checkpoint, tmp_path / "m.safetensors", tensors={"extra": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="has the unknown 1 tensors"):
        load_checkpoint(path)


def test_checkpoints_that_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")
    for path in (tmp_path / "pipe.safetensors", Path("/dev/zero")):
        with pytest.raises(CheckpointError, match="not a regular file"):
            load_checkpoint(path)
    with pytest.raises(CheckpointError, match="a folder, not a checkpoint file"):
        load_checkpoint(tmp_path)
