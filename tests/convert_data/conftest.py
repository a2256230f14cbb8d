from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from sources import Scene, read_scenes

from unisolo.data.shapes import generate_shapes


@pytest.fixture(scope="session")
def shapes_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("convert") / "shapes"
    return generate_shapes(folder, num_train=8, num_val=3, image_size=(96, 128))


@pytest.fixture(scope="session")
def scenes(shapes_root: Path) -> list[Scene]:
    return read_scenes(shapes_root)
