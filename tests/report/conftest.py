from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import folders

NAMES = {0: "<script>alert(1)</script>", 1: 'a "name" that is long ' * 4, 2: "Füße & Hände"}


@pytest.fixture(scope="session")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The evaluation folder of a data set of 133 categories with hostile names."""
    work = tmp_path_factory.mktemp("many")
    maps = folders.write_data(work / "data", images=12, things=80, stuff=53, names=NAMES)
    folders.evaluated(work / "data", work / "evaluation", maps=maps)
    return work / "evaluation"
