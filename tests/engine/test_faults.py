"""Faults that are really injected: killed loaders, full disks, memory limits, NaN, lost folders.

Each row of the table in docs/reliability.md names one of these tests (or one beside it).
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_coco import write_tiny_coco
from tiny_model import VALUES, tiny_config
from train_process import descendants, differences, newest, rows, run, start, wait_for_step

from unisolo import load_model
from unisolo.build import build_dataset
from unisolo.data.shapes import generate_shapes
from unisolo.engine.distributed import World
from unisolo.engine.evaluate import evaluate
from unisolo.engine.nonfinite import replay
from unisolo.engine.state import StateFolder
from unisolo.engine.train import train
from unisolo.models import UniSolo
from unisolo.tasks import TASKS


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    return generate_shapes(root, num_train=7, num_val=3, image_size=(64, 64), seed=5)


def test_a_killed_loader_process_changes_nothing(data: Path, tmp_path: Path) -> None:
    settings = ("train.steps=40", "data.workers=2", "data.augment.scale_jitter=[0.7, 1.3]")
    run(tmp_path / "whole", data, *settings)
    process = start(tmp_path / "hurt", data, *settings)
    wait_for_step(tmp_path / "hurt", 2, process)
    os.kill(descendants(process.pid)[0], signal.SIGKILL)
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 0, text
    assert "a loader process was killed" in text
    assert differences(newest(tmp_path / "whole"), newest(tmp_path / "hurt")) == []


def test_loaders_that_are_killed_again_and_again_end_the_run(data: Path, tmp_path: Path) -> None:
    process = start(tmp_path / "run", data, "train.steps=5000", "data.workers=1")
    wait_for_step(tmp_path / "run", 2, process)
    end = time.monotonic() + 90
    while process.poll() is None and time.monotonic() < end:
        for child in descendants(process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        time.sleep(0.001)
    text, _ = process.communicate(timeout=30)
    assert process.returncode == 2, text
    assert "lower data.workers" in text
    assert "Traceback" not in text


class Doomed:
    """A data set whose loader process is killed as by the system's memory killer."""

    def __init__(self, dataset) -> None:  # type: ignore[no-untyped-def]
        self.dataset = dataset

    def __getattr__(self, name: str):  # type: ignore[no-untyped-def]
        return getattr(self.dataset, name)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_loader_killed_in_an_evaluation_is_told(data: Path, tmp_path: Path) -> None:
    config = config_for(data, tmp_path, "train.steps=1")
    model = load_model(train(config).checkpoint)
    dataset = Doomed(build_dataset(config, split="val"))
    world = World(rank=0, size=1, device=torch.device("cpu"))
    task = TASKS["panoptic"](model.categories)
    with pytest.raises(OSError, match=r"killed during the evaluation.*lower data\.workers"):
        evaluate(model, dataset, task=task, world=world, workers=1)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)], capture_output=True
    )
    if done.returncode:
        pytest.skip(f"mounting needs rights this user lacks: {done.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_leaves_the_old_state_whole(
    small_disk: Path, data: Path, tmp_path: Path
) -> None:
    # A state of the tiny model is about 5 MB with Adam's moments, and two must fit for a moment.
    text = run(small_disk / "run", data, "train.steps=3", "train.checkpoint_every=1", code=2)
    assert "could not be written" in text
    assert "free disk space" in text
    assert "Traceback" not in text
    states = StateFolder(small_disk / "run")
    path, state = states.newest(print)
    assert state["step"] == 1
    assert [file.name for file in states.folder.iterdir()] == [path.name]
    # With room again, the run goes on.
    shutil.copytree(small_disk / "run", tmp_path / "run")
    run(tmp_path / "run", data, "train.steps=3", "train.checkpoint_every=1", "--resume")
    assert newest(tmp_path / "run")["step"] == 3


def test_a_read_only_folder_is_told(small_disk: Path, data: Path) -> None:
    remount = ["mount", "-o", "remount,ro", str(small_disk)]
    subprocess.run(remount, check=True, capture_output=True)
    text = run(small_disk / "run", data, code=2)
    assert "is on a read-only file system" in text
    assert "Traceback" not in text


def test_a_place_that_is_no_folder_is_told(data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    text = run(tmp_path / "file" / "run", data, code=2)
    assert f"{tmp_path / 'file'} is a file; give a folder" in text
    assert "Traceback" not in text


def test_a_file_size_limit_is_a_full_disk(data: Path, tmp_path: Path) -> None:
    """Needs no rights: the limit of the process, as `ulimit -f` sets it."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))

    text = run(tmp_path / "run", data, "train.steps=1", before=limit, code=2)
    assert "could not be written" in text
    assert "Traceback" not in text
    assert StateFolder(tmp_path / "run").paths() == []


def test_a_folder_that_vanishes_is_made_again(data: Path, tmp_path: Path) -> None:
    settings = ("train.steps=60", "train.checkpoint_every=10", "train.tensorboard=false")
    process = start(tmp_path / "run", data, *settings)
    wait_for_step(tmp_path / "run", 3, process)
    shutil.rmtree(tmp_path / "run")
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 0, text
    assert newest(tmp_path / "run")["step"] == 60
    load_model(tmp_path / "run" / "model.safetensors")


def test_a_broken_image_names_itself_and_loses_nothing(data: Path, tmp_path: Path) -> None:
    broken = tmp_path / "data"
    shutil.copytree(data, broken)
    victim = sorted((broken / "train2017").iterdir())[3]
    victim.write_bytes(victim.read_bytes()[:200])
    text = run(tmp_path / "run", broken, "train.steps=20", "data.workers=1", code=2)
    assert str(victim) in text
    assert "damaged or truncated" in text
    assert "Traceback" not in text
    victim.unlink()
    text = run(tmp_path / "run2", broken, "train.steps=20", "data.workers=1", code=2)
    assert f"{victim}: no such image file" in text or f"{victim}" in text


def test_out_of_memory_says_what_was_big(data: Path, tmp_path: Path) -> None:
    """The allocator really fails: the process may not grow beyond what it has plus 300 MB."""
    code = f"""
import resource, sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from tiny_model import tiny_config
import unisolo.engine.train as module
original = module.train_step
def limited(run, *rest):
    if run.step == 1:
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 300 * 2**20,) * 2)
    return original(run, *rest)
module.train_step = limited
settings = ["data.root={data}", "train.out={tmp_path / "run"}", "train.steps=3",
            "train.batch_size=7", "data.image_size=1024", "data.max_size=1024",
            "train.checkpoint_every=1"]
try:
    module.train(tiny_config(*settings))
except MemoryError as error:
    print("TOLD:", error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    told = done.stdout.partition("TOLD: ")[2]
    assert "out of memory on cpu at step 2: 7 images padded to 1024 x 1024" in told, done.stderr
    for setting in ("train.accumulate=2", "data.image_size=1024", "train.max_positives=2000"):
        assert setting in told
    assert newest(tmp_path / "run")["step"] == 1


class NotFinite:
    """Losses of the panoptic task that are not finite at some steps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> None:
        self.step = 0
        original = TASKS["panoptic"].losses

        def losses(task, outputs, *args, **kwargs):  # type: ignore[no-untyped-def]
            self.step += 1
            found = original(task, outputs, *args, **kwargs)
            if self.step in steps:
                found["loss_mask"] = found["loss_mask"] + outputs.mask_features.sum() * float("nan")
            return found

        monkeypatch.setattr(TASKS["panoptic"], "losses", losses)


def config_for(data: Path, out: Path, *overrides: str):  # type: ignore[no-untyped-def]
    return tiny_config(f"data.root={data}", f"train.out={out}", *overrides)


def test_a_step_that_is_not_finite_can_be_left_out(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    NotFinite(monkeypatch, {2})
    settings = ("train.on_nonfinite=skip", "train.steps=3", "train.ema_decay=0.5")
    summary = train(config_for(data, tmp_path, *settings))
    assert (summary.steps, summary.skipped) == (3, 1)
    assert newest(tmp_path)["skipped"] == 1
    for part in ("model", "ema"):
        for name, tensor in newest(tmp_path)[part].items():
            assert torch.isfinite(tensor).all(), (part, name)
    assert (tmp_path / "nonfinite_step2.pt").is_file()


def test_a_step_that_is_left_out_changes_no_weight_and_no_statistic(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(config_for(data, tmp_path / "one", "train.steps=2", "train.checkpoint_every=1"))
    before = StateFolder(tmp_path / "one").paths()[1]
    NotFinite(monkeypatch, {2})
    settings = ("train.on_nonfinite=skip", "train.steps=2", "train.checkpoint_every=1")
    train(config_for(data, tmp_path / "two", *settings))
    first = torch.load(before, weights_only=True)["model"]
    assert differences(first, newest(tmp_path / "two")["model"]) == []


def test_leaving_out_is_bounded(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    NotFinite(monkeypatch, set(range(2, 99)))
    settings = ("train.on_nonfinite=skip", "train.max_nonfinite=3", "train.steps=20")
    with pytest.raises(FloatingPointError, match=r"More than train\.max_nonfinite=3"):
        train(config_for(data, tmp_path, *settings))
    assert len(list(tmp_path.glob("nonfinite_step*.pt"))) == 4


def test_the_dump_of_a_step_is_replayed(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    NotFinite(monkeypatch, {1})
    with pytest.raises(FloatingPointError, match=r"loss_mask.*nan.*--replay \S+nonfinite_step1"):
        train(config_for(data, tmp_path))
    monkeypatch.undo()
    lines: list[str] = []
    assert replay(tmp_path / "nonfinite_step1.pt", lines.append)  # the fault was not in the batch
    text = "\n".join(lines)
    assert "'loss_mask': nan" in text
    assert text.count("image id") == VALUES["train"]["batch_size"]
    assert "everything is finite this time" in text


def test_replay_finds_where_a_network_breaks(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that overflow in one layer: replay names the layer."""
    original = UniSolo.forward

    def forward(model, *args):  # type: ignore[no-untyped-def]
        with torch.no_grad():
            model.mask_head.out.conv.weight.fill_(3e38)
        return original(model, *args)

    monkeypatch.setattr(UniSolo, "forward", forward)
    with pytest.raises(FloatingPointError):
        train(config_for(data, tmp_path))
    monkeypatch.undo()
    (dump,) = tmp_path.glob("nonfinite_step*.pt")
    lines: list[str] = []
    assert not replay(dump, lines.append)
    assert any("first module" in line and "mask_head.out" in line for line in lines)


def test_images_without_objects_only_crowd_and_all_void_train(tmp_path: Path) -> None:
    """Every batch of a whole run: no object at all, crowd alone, PNGs that are void everywhere."""
    tiny = write_tiny_coco(tmp_path / "data")
    shutil.copytree(tiny.root / "train2017", tiny.root / "val2017")
    kept = {"empty": 3, "crowd": 501}
    for name, image_id in kept.items():
        content = {**tiny.panoptic}
        content["images"] = [i for i in tiny.panoptic["images"] if i["id"] == image_id]
        content["annotations"] = [
            a for a in tiny.panoptic["annotations"] if a["image_id"] == image_id
        ]
        check_trains(tiny, content, tmp_path / name)
    void = {**tiny.panoptic, "images": content["images"]}
    annotation = {**content["annotations"][0], "segments_info": []}
    void["annotations"] = [annotation]
    tiny.pngs[501] = np.zeros_like(tiny.pngs[501])
    tiny.write()
    check_trains(tiny, void, tmp_path / "void")


def check_trains(tiny, content, out: Path) -> None:  # type: ignore[no-untyped-def]
    folder = tiny.root / "annotations"
    for split in ("train2017", "val2017"):
        (folder / f"panoptic_{split}.json").write_text(json.dumps(content))
        (folder / f"instances_{split}.json").unlink(missing_ok=True)
        pngs = folder / f"panoptic_{split}"
        if split == "val2017":
            shutil.copytree(folder / "panoptic_train2017", pngs, dirs_exist_ok=True)
    summary = train(config_for(tiny.root, out, "train.batch_size=1", "train.lr_batch_size=1"))
    assert summary.steps == 2
    for row in rows(out):
        if "loss" in row:
            assert np.isfinite(row["loss"])


def test_a_positive_cap_bounds_the_masks(data: Path, tmp_path: Path) -> None:
    capped = train(config_for(data, tmp_path, "train.max_positives=1"))
    assert capped.steps == 2
    assert all(np.isfinite(row["loss"]) for row in rows(tmp_path) if "loss" in row)
