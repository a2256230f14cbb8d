"""Folders and the Hub: what is written is opened again, bit for bit, and the card is true."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hub_server import serving
from huggingface_hub import ModelCard, metadata_load
from PIL import Image
from tiny_model import lively_model, tiny_model

from unisolo import Categories, Category, Predictor, load_model, save_model
from unisolo.export import export_checkpoint
from unisolo.hub import HubError, model_card
from unisolo.results import Result

PICTURE = np.random.default_rng(0).integers(0, 256, (60, 84, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    model = lively_model("inference.max_instances=9", "train.out=/home/me/run", "data.root=/secret")
    return Predictor(model, device="cpu")


@pytest.fixture(scope="module")
def folder(predictor: Predictor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved folder at the place that its card speaks of."""
    top = tmp_path_factory.mktemp("top")
    return predictor.save_pretrained(top / "path/of/this/folder", license="cc-by-4.0")


def assert_same(one: Result, two: Result) -> None:
    assert one.segments_info == two.segments_info and len(one) == len(two) > 0
    for name in ("scores", "labels", "boxes", "packed_masks", "panoptic_seg"):
        assert torch.equal(getattr(one, name), getattr(two, name)), name


# Folders


def test_a_saved_folder_gives_the_same_results(predictor: Predictor, folder: Path) -> None:
    opened = Predictor.from_pretrained(folder, device="cpu")
    assert type(opened) is Predictor and opened.task == "panoptic"
    assert opened.categories == predictor.categories
    assert_same(predictor.predict(PICTURE), opened.predict(PICTURE))
    assert Predictor.from_pretrained(str(folder), task="instance", device="cpu").task == "instance"
    assert opened._fast is None
    assert Predictor.from_pretrained(folder, device="cpu", compile=True)._fast is not None


def test_a_folder_holds_three_files_and_no_paths_of_this_machine(folder: Path) -> None:
    names = {path.name for path in folder.iterdir()}
    assert names == {"model.safetensors", "config.json", "README.md"}
    for path in folder.iterdir():
        content = path.read_bytes()
        assert b"/secret" not in content and b"/home/me" not in content, path
    config = load_model(folder / "model.safetensors").config
    assert config is not None and config.data.root is None
    assert config.inference.max_instances == 9
    facts = json.loads((folder / "config.json").read_text())
    assert facts["task"] == "panoptic" and facts["id2label"]["0"] == "ball"


def test_saving_leaves_the_model_and_the_card_of_a_person_as_they_are(
    predictor: Predictor, tmp_path: Path
) -> None:
    (tmp_path / "README.md").write_text("mine")
    before = predictor.model.config
    predictor.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"
    assert predictor.model.config is before
    assert str(before.data.root) == "/secret"  # type: ignore[union-attr]


# The card


def test_the_front_matter_is_what_the_hub_reads(folder: Path) -> None:
    data = metadata_load(folder / "README.md")
    assert data == {
        "license": "cc-by-4.0",
        "library_name": "unisolo",
        "pipeline_tag": "image-segmentation",
        "tags": ["panoptic-segmentation", "solov2", "timm"],
    }
    text = ModelCard.load(folder / "README.md").text
    for word in ("ball", "grass", "test_resnet", "cc-by-4.0", "short side 64", "None were given"):
        assert word in text, word
    assert "answers: panoptic, instance, detection." in text


def test_the_snippet_of_the_card_runs(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```", (folder / "README.md").read_text(), re.S | re.M)
    monkeypatch.chdir(folder.parents[3])
    Image.fromarray(PICTURE).save("street.jpg")
    exec(code, {})
    assert "Result(" in capsys.readouterr().out
    assert Image.open("found.png").size == (84, 60)


def test_the_card_knows_its_name_and_its_metrics(predictor: Predictor, tmp_path: Path) -> None:
    file = tmp_path / "metrics.json"
    file.write_text('{"panoptic/PQ": 42.127, "panoptic/PQ_st": null, "segm/AP": 36.0}')
    out = predictor.save_pretrained(
        tmp_path / "out", metrics=file, dataset="Street | scenes", name="me/street"
    )
    text = (out / "README.md").read_text()
    assert 'from_pretrained("me/street")' in text and "# me/street" in text
    assert "| `panoptic/PQ` | 42.1 |" in text and "PQ_st" not in text
    assert "None was given: ask the owner" in text
    (found, _) = ModelCard.load(out / "README.md").data.eval_results
    assert (found.metric_type, found.metric_value) == ("panoptic/PQ", 42.13)
    assert (found.dataset_name, found.dataset_type) == ("Street | scenes", "street-scenes")


@pytest.mark.parametrize(
    ("task", "tag", "kind"),
    [
        ("instance", "instance-segmentation", "image-segmentation"),
        ("detection", "object-detection", "object-detection"),
    ],
)
def test_other_tasks(task: str, tag: str, kind: str) -> None:
    card = model_card(tiny_model(f"task={task}"))
    assert card.data.pipeline_tag == kind and card.data.tags[0] == tag
    assert "answers: instance, detection." in card.text


def test_names_cannot_write_in_the_card(tmp_path: Path) -> None:
    evil = "a\n---\nlicense: mit\n| <script>`{{ 7 * 7 }}`[x](y)"
    categories = Categories([Category(1, evil), Category(2, "{% raw %}", isthing=False)])
    card = model_card(tiny_model(categories=categories))
    card.save(tmp_path / "card.md")
    assert "license" not in metadata_load(tmp_path / "card.md")
    assert "<script>" not in card.text.replace("\\<script\\>", "")
    assert "7 \\* 7" in card.text and "49" not in card.text.split("## Categories")[1]
    assert "\n---\n" not in card.text


@pytest.mark.parametrize(
    ("metrics", "dataset", "message"),
    [
        ({"a": 1.0}, None, "give dataset="),
        ({"a": "b"}, "c", r"\['a'\] are none"),
        ("no/such.json", "c", "no/such.json"),
        (__file__, "c", "test_hub.py"),
    ],
)
def test_metrics_that_say_nothing_are_refused(
    predictor: Predictor, tmp_path: Path, metrics: Any, dataset: str | None, message: str
) -> None:
    with pytest.raises(HubError, match=message):
        predictor.save_pretrained(tmp_path / "out", metrics=metrics, dataset=dataset)
    assert not (tmp_path / "out").exists()


# What goes wrong


def test_what_is_not_there_is_told(folder: Path, tmp_path: Path) -> None:
    def refused(name: str | Path, message: str, **options: Any) -> None:
        with pytest.raises(HubError, match=message) as error:
            Predictor.from_pretrained(name, **options)
        assert str(name) in str(error.value)

    refused(tmp_path, "holds no model.safetensors")
    refused(folder / "README.md", "a file; open it with Predictor")
    for name in ("nothing", "../a/b", "./a", "a/b/c", "/no/such", "a b/c", "user/"):
        refused(name, "no such folder, and no name of a model")
    refused(
        "nobody/nothing",
        "no such folder, it is not among the files fetched earlier.*'main'.*cannot be reached",
        local_files_only=True,
        cache_dir=tmp_path,
    )
    with pytest.raises(ValueError, match="unknown task 'pose'"):
        Predictor.from_pretrained("nobody/nothing", task="pose")


def test_a_name_to_push_to_has_a_user(predictor: Predictor) -> None:
    with pytest.raises(HubError, match=r"'street' is no name.*'user/model'"):
        predictor.push_to_hub("street")


def test_a_damaged_file_in_the_folder_is_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(ValueError, match=re.escape(str(tmp_path))):
        Predictor.from_pretrained(tmp_path)


@pytest.mark.slow
def test_a_graph_is_no_model(predictor: Predictor, tmp_path: Path) -> None:
    export_checkpoint(predictor.model, tmp_path / "model.pt2", images=None)  # type: ignore[arg-type]
    graph = Predictor(tmp_path / "model.pt2")
    with pytest.raises(HubError, match="exported graph"):
        graph.save_pretrained(tmp_path / "out")
    with pytest.raises(HubError, match="exported graph"):
        graph.push_to_hub("me/graph")


# The Hub, in a process of its own: its address is read once


def client(work: Path, cache: Path, error_of: str) -> None:
    """What a person does; runs in a process that has the server's address."""
    import torch

    from unisolo import Predictor

    first = Predictor(work / "model.safetensors", device="cpu")
    url = first.push_to_hub("me/street", license="mit", token="right", private=True)
    assert url.startswith("http://127.0.0.1") and "/me/street/commit/" in url, url
    first.push_to_hub("me/street", token="right", revision="next", message="again")
    for revision in (None, "next"):
        opened = Predictor.from_pretrained(
            "me/street", revision=revision, token="right", cache_dir=cache, device="cpu"
        )
        weights = first.model.state_dict()
        for name, tensor in opened.model.state_dict().items():
            assert torch.equal(tensor, weights[name])
    for options in (
        {"token": "right", "local_files_only": True},
        {"token": "right", "force_download": True},
        {"token": "right", "revision": "v9"},
        {"token": False, "cache_dir": work / "empty"},
    ):
        try:
            options = {"cache_dir": cache, "device": "cpu", **options}
            Predictor.from_pretrained("me/street", **options)
            print("opened")
        except ValueError as error:
            print(error)
    try:
        first.push_to_hub(error_of)
    except ValueError as error:
        print(error)


@pytest.mark.slow
def test_the_hub_takes_and_gives_models(predictor: Predictor, tmp_path: Path) -> None:
    save_model(predictor.model, tmp_path / "model.safetensors")  # type: ignore[arg-type]
    code = (
        f"from pathlib import Path\n{inspect.getsource(client)}\n"
        f"client(Path({str(tmp_path)!r}), Path({str(tmp_path / 'cache')!r}), 'no body/x')\n"
    )
    with serving() as hub:
        hub.private.add("me/street")
        hub.files["me/street", "next", "README.md"] = b"written by a person"
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "HF_ENDPOINT": hub.base, "HF_HUB_DISABLE_XET": "1",
                 "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_TELEMETRY": "1"},
            capture_output=True, text=True, timeout=280,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert said[:2] == ["opened", "opened"], said
    assert said[2] == "me/street: it has no revision 'v9'"
    assert said[3].startswith("me/street: no such folder, and no such model on the Hub")
    assert "is no name of a model" in said[4]
    assert hub.files["me/street", "next", "README.md"] == b"written by a person"
    assert b"license: mit" in hub.files["me/street", "main", "README.md"]
    assert b'from_pretrained("me/street")' in hub.files["me/street", "main", "README.md"]
    gets = [path for method, path, token in hub.requests if method == "GET" and token == "right"]
    assert gets.count("/me/street/resolve/main/model.safetensors") == 2  # the second by force
    assert {token for _, path, token in hub.requests if path.startswith("/api")} == {"right"}
