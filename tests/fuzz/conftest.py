"""Counts the cases and says at the end of the session how many there were."""

from __future__ import annotations

from typing import Any

import pytest
from fuzzing import COUNTS


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not COUNTS:
        return
    terminalreporter.section("fuzz cases")
    names = sorted({name for name, _ in COUNTS})
    for name in names:
        read, refused = COUNTS[name, "read"], COUNTS[name, "refused"]
        terminalreporter.line(
            f"{name:24} {read + refused:6} cases: {read} read, {refused} refused by name"
        )
    terminalreporter.line(f"{'all':24} {sum(COUNTS.values()):6} cases")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tmp_path_factory.mktemp("fuzz")
