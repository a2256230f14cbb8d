"""Training states with arbitrary changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fuzzing import both, byte_changes, changed_bytes, changed_tree, reads, tree_changes
from tiny_model import CATEGORIES, tiny_config

from unisolo.engine.state import StateFolder, check_state, read_state

CONFIG = tiny_config()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    states = StateFolder(tmp_path_factory.mktemp("fuzz"))
    parts = {"model": {"weight": torch.arange(6.0)}, "random": {"torch": torch.get_rng_state()}}
    path = states.save(step=7, config=CONFIG, categories=CATEGORIES, parts=parts)
    path.with_suffix(".good").write_bytes(path.read_bytes())
    return path


def load(name: str, path: Path, *, checked: bool = True) -> None:
    def read() -> dict[str, Any]:
        state = read_state(path)
        if checked:
            check_state(path, state, CONFIG, CATEGORIES)
        return state

    state = reads(name, read, str(path))
    if state is not None:
        assert isinstance(state["step"], int)
        assert isinstance(state["config"], dict)


@both(byte_changes(), many=1000)
def check_bytes(folder: Path, changes: Any) -> None:
    path, good = folder, folder.with_suffix(".good").read_bytes()
    path.write_bytes(changed_bytes(good, changes))
    load("state, bytes", path)


TestBytes = check_bytes


def write_changed(folder: Path, changes: Any) -> None:
    state = torch.load(folder.with_suffix(".good"), weights_only=True)
    tensors = {name: state.pop(name) for name in ("model", "random")}
    torch.save({**changed_tree(state, changes), **tensors}, folder)


@both(tree_changes(), many=1000)
def check_tree(folder: Path, changes: Any) -> None:
    write_changed(folder, changes)
    load("state, tree", folder, checked=False)


TestTrees = check_tree


@both(tree_changes(), many=1000)
def check_tree_to_resume(folder: Path, changes: Any) -> None:
    write_changed(folder, changes)
    load("state, tree, to resume", folder)


TestTreesToResume = check_tree_to_resume
