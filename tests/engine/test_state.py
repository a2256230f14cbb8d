"""Training states: whole or not there, the newest few kept, damage noticed and survived."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch
from tiny_model import CATEGORIES, tiny_config

from unisolo.checkpoint import CheckpointError
from unisolo.engine.state import StateFolder, check_state, read_state

CONFIG = tiny_config()


def fill(folder: StateFolder, *steps: int) -> None:
    for step in steps:
        weights = {"weight": torch.full((1000,), float(step))}
        folder.save(step=step, config=CONFIG, categories=CATEGORIES, parts={"model": weights})


def names(folder: StateFolder) -> list[str]:
    return [path.name for path in folder.paths()]


def test_the_newest_few_are_kept(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path, keep=2)
    fill(folder, 1, 2, 10)
    assert names(folder) == ["step_00000010.pt", "step_00000002.pt"]
    path, state = folder.newest(print)
    assert path.name == "step_00000010.pt"
    assert state["model"]["weight"][0] == 10


def test_nothing_to_resume_from(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nothing to resume from"):
        StateFolder(tmp_path).newest(print)


def flip_byte(path: Path) -> None:
    """Change one byte of the weights: torch.load alone reads such a file without a word."""
    data = bytearray(path.read_bytes())
    place = data.find(torch.full((4,), 10.0).numpy().tobytes())
    assert place > 0
    data[place + 2] ^= 0xFF
    path.write_bytes(bytes(data))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def cut_to_nothing(path: Path) -> None:
    path.write_bytes(b"")


def empty_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w"):
        pass


def older_version(path: Path) -> None:
    torch.save({"format_version": 1, "step": 10, "config": {}}, path)


@pytest.mark.parametrize("damage", [flip_byte, cut, cut_to_nothing, empty_zip, older_version])
def test_a_damaged_state_is_told_and_the_one_before_is_used(damage, tmp_path: Path) -> None:
    folder = StateFolder(tmp_path)
    fill(folder, 2, 10)
    damage(folder.paths()[0])
    said: list[str] = []
    path, state = folder.newest(said.append)
    assert state["step"] == 2
    assert path.name == "step_00000002.pt"
    assert "step_00000010.pt" in said[0]
    assert "going on from step_00000002.pt" in said[0]


def test_where_all_are_damaged_each_is_named(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path)
    fill(folder, 2, 10)
    for path in folder.paths():
        cut(path)
    with pytest.raises(CheckpointError, match=r"none of the 2 .*step_00000010.*step_00000002"):
        folder.newest(print)


def test_what_a_killed_process_left_does_not_count_and_goes(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path)
    fill(folder, 3)
    (folder.folder / ".step_00000004-x1y2.pt").write_bytes(b"half")
    (folder.folder / "notes.txt").write_text("mine")
    assert names(folder) == ["step_00000003.pt"]
    folder.remove_unfinished()
    assert sorted(path.name for path in folder.folder.iterdir()) == [
        "notes.txt",
        "step_00000003.pt",
    ]


def test_code_in_a_state_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self):  # type: ignore[no-untyped-def]
            return Path.touch, (tmp_path / "ran",)

    path = tmp_path / "step_00000001.pt"
    torch.save({"format_version": 2, "step": Evil(), "config": {}}, path)
    with pytest.raises(CheckpointError, match="damaged or not a training state"):
        read_state(path)
    assert not (tmp_path / "ran").exists()


def test_other_settings_are_listed(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path)
    fill(folder, 1)
    path, state = folder.newest(print)
    check_state(path, state, tiny_config("train.log_every=9", "inference.pre_nms=7"), CATEGORIES)
    # Samples from memory are those from disk.
    check_state(path, state, tiny_config("data.cache=ram", "data.cache_gib=3"), CATEGORIES)
    with pytest.raises(CheckpointError, match=r"train\.lr=0\.5 \(was 0\.002\)"):
        check_state(path, state, tiny_config("train.lr=0.5"), CATEGORIES)


def test_a_state_older_than_a_setting_had_its_default(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path)
    fill(folder, 1)
    path, state = folder.newest(print)
    del state["config"]["train"]["max_positives"]
    check_state(path, state, tiny_config(), CATEGORIES)
    with pytest.raises(CheckpointError, match=r"train\.max_positives=7 \(was 2000\)"):
        check_state(path, state, tiny_config("train.max_positives=7"), CATEGORIES)
