from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from unisolo.tasks import TASKS

FILE = Path(__file__).resolve().parents[2] / "docs" / "examples" / "semantic" / "semantic.py"

Snapshot = dict[tuple[str, str], int]


def package_snapshot() -> Snapshot:
    """The identity of everything that every loaded module of the package holds."""
    return {
        (module, name): id(value)
        for module, loaded in sorted(sys.modules.items())
        if module.partition(".")[0] == "unisolo"
        for name, value in vars(loaded).items()
    }


@pytest.fixture(scope="module")
def semantic() -> Iterator[ModuleType]:
    """The example's module, imported as a user would; its task is gone again afterwards."""
    spec = importlib.util.spec_from_file_location("semantic_example", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    tasks, before = list(TASKS), package_snapshot()
    spec.loader.exec_module(module)
    try:
        # Nothing of the package was replaced, and its table has one line more.
        after = package_snapshot()
        assert {key: after[key] for key in before} == before
        assert list(TASKS) == [*tasks, "semantic"]
        yield module
    finally:
        del TASKS["semantic"]
