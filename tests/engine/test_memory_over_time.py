"""Memory that stays flat: over epochs, with loader processes, and over a long evaluation."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

import pytest
from tiny_model import tiny_config
from train_process import descendants, newest, rows, start

from unisolo import load_model
from unisolo.build import build_dataset
from unisolo.data.shapes import generate_shapes
from unisolo.engine.distributed import World
from unisolo.engine.evaluate import evaluate
from unisolo.engine.train import train
from unisolo.tasks import TASKS

MIB = 2**20


def resident(pid: int) -> int:
    """Resident memory of a process and its loaders, in bytes."""
    pages = 0
    for one in [pid, *descendants(pid)]:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            pages += int(Path(f"/proc/{one}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
def test_training_for_ten_epochs(tmp_path: Path) -> None:
    data = generate_shapes(tmp_path / "data", num_train=200, num_val=2, image_size=(64, 64))
    settings = ("train.steps=1000", "data.workers=2", "train.log_every=10", "train.ema_decay=0.9")
    process = start(tmp_path / "run", data, *settings)
    seen: dict[int, int] = {}
    while process.poll() is None:
        step = max((row["step"] for row in rows(tmp_path / "run")), default=0)
        if step % 100 == 0 and step not in seen:
            seen[step] = resident(process.pid)
    process.communicate()
    assert process.returncode == 0
    assert newest(tmp_path / "run")["step"] == 1000
    used = [seen[step] for step in sorted(seen) if 200 <= step < 1000]
    print("resident MiB by epoch:", [round(bytes_ / MIB) for bytes_ in used])
    # Two epochs for allocators to settle; then at most a few MiB of log rows and fragments.
    assert max(used) - used[0] < 24 * MIB


@pytest.mark.slow
def test_evaluating_five_thousand_images(tmp_path: Path) -> None:
    """What stays per image is its compressed predictions: a few kB."""
    data = generate_shapes(tmp_path / "data", num_train=2, num_val=25, image_size=(32, 32))
    folder = data / "annotations"
    for name in ("instances", "panoptic"):
        path = folder / f"{name}_val2017.json"
        content = json.loads(path.read_text())
        images, annotations = content["images"], content["annotations"]
        # The same 25 files under 5000 ids: real reading and real predictions, a small disk.
        content["images"] = [
            {**image, "id": image["id"] + 100_000 * n} for n in range(200) for image in images
        ]
        content["annotations"] = [
            {
                **entry,
                "image_id": entry["image_id"] + 100_000 * n,
                **({"id": entry["id"] + 100_000 * n} if name == "instances" else {}),
            }
            for n in range(200)
            for entry in annotations
        ]
        path.write_text(json.dumps(content))
    config = tiny_config(
        f"data.root={data}", f"train.out={tmp_path / 'run'}", "train.steps=1", "data.max_images=25"
    )
    model = load_model(train(config).checkpoint)
    dataset = build_dataset(tiny_config(f"data.root={data}"), split="val")
    seen: dict[int, int] = {}

    def look(done: int, total: int) -> None:
        if done % 500 == 0:
            seen[done] = resident(os.getpid())

    evaluate(
        model,
        dataset,
        task=TASKS["panoptic"](model.categories),
        world=World(rank=0, size=1, device=model.mean.device),
        batch_size=10,
        on_image=look,
    )
    used = [seen[done] for done in sorted(seen)]
    print("resident MiB by 500 images:", [round(bytes_ / MIB) for bytes_ in used])
    assert len(used) == 10
    assert max(used) - used[1] < 40 * MIB
