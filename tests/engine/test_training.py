"""The training loop on a small generated data set: real files, real steps."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from tiny_model import tiny_config

from unisolo import Categories, Category, Config, load_model
from unisolo.build import build_dataset
from unisolo.checkpoint import CheckpointError
from unisolo.config import ConfigError
from unisolo.data.shapes import generate_shapes
from unisolo.engine.distributed import World
from unisolo.engine.evaluate import evaluate
from unisolo.engine.state import StateFolder, read_state
from unisolo.engine.train import train
from unisolo.tasks import TASKS


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shapes")
    return generate_shapes(root, num_train=7, num_val=3, image_size=(64, 64), seed=5)


def config_for(shapes: Path, out: Path, *overrides: str) -> Config:
    return tiny_config(f"data.root={shapes}", f"train.out={out}", *overrides)


def log_rows(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("task", list(TASKS))
def test_a_run_leaves_a_usable_model_and_its_numbers(
    task: str, shapes: Path, tmp_path: Path
) -> None:
    summary = train(config_for(shapes, tmp_path, f"task={task}", "train.ema_decay=0.9"))
    assert summary.steps == 2
    assert summary.checkpoint == tmp_path / "model.safetensors"
    model = load_model(summary.checkpoint, task=task)
    assert [category.name for category in model.categories.things][:2] == ["ball", "box"]
    expected = {"panoptic": "panoptic/PQ", "instance": "segm/AP", "detection": "bbox/AP"}[task]
    assert expected in summary.metrics
    written = json.loads((tmp_path / "evaluation" / "metrics.json").read_text())
    assert written.keys() == summary.metrics.keys()
    first = log_rows(tmp_path)[0]
    assert first["step"] == 1
    names = {"loss", "loss_category", "loss_mask", "lr", "images_per_second", "grad_norm"}
    names |= {"data_share", "data_time", "step_time"}
    whole = first["data_time"] + first["step_time"]
    assert first["data_share"] == pytest.approx(first["data_time"] / whole)
    assert first["images_per_second"] == pytest.approx(2 / whole)
    assert names | set(TASKS[task].loss_weights) <= set(first)
    assert (tmp_path / "config.yaml").is_file()
    assert (tmp_path / "checkpoints" / "step_00000002.pt").is_file()


def test_resuming_gives_the_run_that_was_not_interrupted(shapes: Path, tmp_path: Path) -> None:
    settings = ("train.steps=4", "train.ema_decay=0.9", "data.augment.scale_jitter=[0.7, 1.3]")
    train(config_for(shapes, tmp_path / "whole", *settings))
    # The schedule spans 4 steps; the first half ends by an error after its checkpoint.
    half = config_for(shapes, tmp_path / "half", *settings, "train.checkpoint_every=2")
    stop_after(half, 2)
    train(half, resume=True)
    whole, resumed = (
        read_state(StateFolder(tmp_path / name).paths()[0]) for name in ("whole", "half")
    )
    assert resumed["step"] == whole["step"] == 4
    for part in ("model", "ema"):
        for name, tensor in whole[part].items():
            assert torch.equal(tensor, resumed[part][name]), (part, name)


def weights(out: Path) -> dict[str, torch.Tensor]:
    return read_state(StateFolder(out).paths()[0])["model"]


def test_a_cache_changes_nothing(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ("task=instance", "data.augment.scale_jitter=[0.7, 1.3]", "train.steps=2")
    train(config_for(shapes, tmp_path / "disk", *settings))
    said = capsys.readouterr().out
    assert "training images in" not in said and "waited for data" in said
    train(config_for(shapes, tmp_path / "ram", *settings, "data.cache=ram"))
    assert "data.cache=ram: 7 training images in 0.00 GiB" in capsys.readouterr().out
    disk, ram = weights(tmp_path / "disk"), weights(tmp_path / "ram")
    for name, tensor in disk.items():
        assert torch.equal(tensor, ram[name]), name


@pytest.mark.slow
def test_a_compiled_run_learns_what_a_plain_one_does(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also resumed, averaged and evaluated: what is saved has the plain network's names.

    Traced and differentiated as always, but run op by op: Inductor's C++ takes minutes to build.
    """
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    settings = ("train.steps=4", "train.ema_decay=0.9", "data.augment.crop=[64, 64]")
    train(config_for(shapes, tmp_path / "plain", *settings))
    compiled = (*settings, "train.compile=true")
    half = config_for(shapes, tmp_path / "compiled", *compiled, "train.checkpoint_every=2")
    stop_after(half, 2)
    train(half, resume=True)
    for row, other in zip(
        log_rows(tmp_path / "plain"), log_rows(tmp_path / "compiled"), strict=True
    ):
        if "loss" in row:
            assert row["step"] == other["step"]
            assert other["loss"] == pytest.approx(row["loss"], rel=0.02)
    plain, found = weights(tmp_path / "plain"), weights(tmp_path / "compiled")
    assert list(plain) == list(found)
    assert load_model(tmp_path / "compiled" / "model.safetensors") is not None


def stop_after(config: Config, steps: int) -> None:
    """Run until `steps` are done and saved, then fail as a machine would: without warning."""
    import unisolo.engine.train as module

    original = module.train_step

    def failing(run, *args):  # type: ignore[no-untyped-def]
        if run.step == steps:
            raise RuntimeError("power cut")
        return original(run, *args)

    module.train_step = failing  # type: ignore[assignment]
    try:
        with pytest.raises(RuntimeError, match="power cut"):
            train(config)
    finally:
        module.train_step = original


def test_a_finished_folder_is_not_overwritten_by_accident(shapes: Path, tmp_path: Path) -> None:
    config = config_for(shapes, tmp_path, "train.steps=1")
    train(config)
    (state,) = StateFolder(tmp_path).paths()
    before = state.read_bytes()
    with pytest.raises(ConfigError, match="--resume"):
        train(config)
    assert state.read_bytes() == before
    train(config, overwrite=True)


def test_resuming_needs_a_run_of_the_same_data(shapes: Path, tmp_path: Path) -> None:
    config = config_for(shapes, tmp_path / "out")
    with pytest.raises(CheckpointError, match="nothing to resume from"):
        train(config, resume=True)
    (tmp_path / "out" / "checkpoints").mkdir(parents=True)
    (tmp_path / "out" / "checkpoints" / "step_00000002.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(CheckpointError, match="damaged or not a training state"):
        train(config, resume=True)


def test_a_resumed_run_keeps_its_settings(shapes: Path, tmp_path: Path) -> None:
    train(config_for(shapes, tmp_path, "train.steps=1"))
    changed = config_for(shapes, tmp_path, "train.steps=1", "train.batch_size=4", "train.lr=0.5")
    with pytest.raises(CheckpointError, match=r"train\.batch_size=4 \(was 2\), train\.lr=0\.5"):
        train(changed, resume=True)
    # What cannot change the course may change.
    train(config_for(shapes, tmp_path, "train.steps=1", "train.log_every=7"), resume=True)


def test_starting_anew_removes_the_old_run_and_nothing_else(shapes: Path, tmp_path: Path) -> None:
    train(config_for(shapes, tmp_path, "train.eval_every=1"))
    (tmp_path / "notes.txt").write_text("mine")
    assert (tmp_path / "best.safetensors").exists()
    train(config_for(shapes, tmp_path, "train.steps=1"), overwrite=True)
    assert not (tmp_path / "best.safetensors").exists()
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert [row["step"] for row in log_rows(tmp_path) if "loss" in row] == [1]


def test_data_of_other_categories_is_refused(shapes: Path, tmp_path: Path) -> None:
    config = config_for(shapes, tmp_path, "train.steps=1")
    model = load_model(train(config).checkpoint)
    dataset = build_dataset(config, split="val")
    other = Categories([Category(category.id + 1, category.name) for category in model.categories])
    with pytest.raises(ValueError, match="only in the model"):
        evaluate(
            model,
            dataset,
            task=TASKS["instance"](other),
            world=World(rank=0, size=1, device=torch.device("cpu")),
        )


def test_a_gradient_that_is_not_finite_stops_the_run(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self, outputs, *args, **kwargs):  # type: ignore[no-untyped-def]
        # The value is finite; the derivative of a root at 0 is not.
        root = (outputs.mask_features.sum() * 0).sqrt()
        return {"loss_category": outputs.category_logits.sum() * 0 + root}

    monkeypatch.setattr(TASKS["panoptic"], "losses", broken)
    with pytest.raises(FloatingPointError, match="gradient is not finite at step 1"):
        train(config_for(shapes, tmp_path))


def test_a_loss_that_is_not_finite_names_itself_and_the_images(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        return {"loss_category": torch.tensor(float("nan"), requires_grad=True)}

    monkeypatch.setattr(TASKS["panoptic"], "losses", broken)
    with pytest.raises(FloatingPointError, match=r"step 1.*loss_category.*nan.*image ids \["):
        train(config_for(shapes, tmp_path))


def test_settings_that_do_not_fit_are_errors(shapes: Path, tmp_path: Path) -> None:
    cases = {
        "train.accumulate=3": "multiple of processes x train.accumulate",
        "train.loss_weights={loss_stuf: 1}": "unknown .'loss_stuf'",
        "train.optimizer=addam": "train.optimizer='addam'",
        "train.device=cuda:77": "device 'cuda:77' cannot be used",
        "data.dataset=coco_instance": "needs .'stuff'",
        "data.train_split=nothing": "nothing",
        "data.dataset=cocoa": "unknown data.dataset",
        "task=semantic": "unknown task",
    }
    for number, (override, words) in enumerate(cases.items()):
        with pytest.raises(ValueError, match=f"(?s){words}"):
            train(config_for(shapes, tmp_path / str(number), override))


def test_faults_of_the_data_are_told_at_the_start(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    shutil.copytree(shapes, data)
    victim = sorted((data / "train2017").iterdir())[3]
    victim.unlink()
    with pytest.raises(ValueError, match=victim.name):
        train(config_for(data, tmp_path / "out", "train.steps=7"))
    said = capsys.readouterr().err
    assert "data error" in said
    assert victim.name in said


def test_accumulation_takes_the_same_number_of_images(shapes: Path, tmp_path: Path) -> None:
    summary = train(config_for(shapes, tmp_path, "train.accumulate=2", "train.steps=1"))
    assert summary.steps == 1


def test_a_panoptic_model_is_evaluated_on_every_task(shapes: Path, tmp_path: Path) -> None:
    config = config_for(shapes, tmp_path, "train.steps=1")
    model = load_model(train(config).checkpoint)
    dataset = build_dataset(config, split="val")
    world = World(rank=0, size=1, device=torch.device("cpu"))
    metrics = {
        name: evaluate(model, dataset, task=task(model.categories), world=world, batch_size=2)
        for name, task in TASKS.items()
    }
    for key, value in metrics["detection"].items():
        assert metrics["instance"][key] == value or value != value
        assert metrics["panoptic"][key] == value or value != value
    assert any(key.startswith("segm/") for key in metrics["instance"])
    assert "panoptic/PQ" in metrics["panoptic"]
