from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import shutil

from faults import Copy

from unisolo.config import Config, load_config
from unisolo.data.shapes import generate_shapes


@pytest.fixture(scope="session")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The generated data set; tests only read it."""
    folder = tmp_path_factory.mktemp("healthy") / "data"
    return generate_shapes(folder, num_train=30, num_val=6, image_size=(64, 64))


@pytest.fixture
def copy(healthy: Path, tmp_path: Path) -> Copy:
    """A copy to plant faults in."""
    return Copy(Path(shutil.copytree(healthy, tmp_path / "data")))


@pytest.fixture
def settings() -> Callable[..., Config]:
    """`settings(root, task="instance")`: what the doctor is asked with."""

    def make(root: Path, *overrides: str, task: str = "panoptic") -> Config:
        return load_config(None, overrides, values={"task": task, "data": {"root": root}})

    return make
