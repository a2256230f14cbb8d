"""`unisolo train --data DIR` on real data: it trains, and the file it writes trains the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command import unisolo


def train(*arguments: object) -> str:
    done = unisolo("train", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def losses(run: Path) -> dict[str, Any]:
    rows = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    (row,) = (row for row in rows if "loss" in row)
    return {name: value for name, value in row.items() if name.startswith(("loss", "grad", "lr"))}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["animals7", "coco-mini", "dsb2018", "idd-lite"])
def test_the_folder_alone_is_enough(
    name: str, shared_data: Callable[[str], Path], tmp_path: Path
) -> None:
    text = train("--data", shared_data(name), "--out", tmp_path / "first", "train.steps=3")
    assert "Chosen from the data and this machine" in text
    train("--config", tmp_path / "first" / "chosen.yaml", "--out", tmp_path / "again")
    first = losses(tmp_path / "first")
    assert {"loss", "loss_category", "loss_mask", "loss_stuff"} <= set(first)
    assert losses(tmp_path / "again") == first
