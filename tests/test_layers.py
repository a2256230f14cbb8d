"""The import direction of docs/architecture.md, read from the source."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "unisolo"

LEVELS = [
    {"reading"},
    {
        "categories",
        "structures",
        "config",
        "devices",
        "files",
        "encoding",
        "explain",
        "progress",
        "segmentation",
    },
    {"ops", "download", "pages"},
    {"results"},
    {"models", "losses", "data", "evaluation", "visualize", "interop"},
    {"tasks"},
    {"build"},
    {"checkpoint", "doctor", "convert_data"},
    {"convert", "graphs"},
    {"zoo"},
    {"thresholds", "hub", "report", "choose", "fast"},
    {"engine", "predictor"},
    {"predict_files", "compare", "overfit", "export", "video", "demo"},
    {"benchmark"},
    {"cli"},
]
LEVEL = {unit: number for number, units in enumerate(LEVELS) for unit in units}

# Light edges that would otherwise force an indirection; each needs a reason.
ALLOWED = {
    # `Result.plot` and `Result.to_...` draw and convert on request; the imports are inside the
    # methods.
    ("results", "visualize"),
    ("results", "interop"),
}


def unit_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported_units(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names = [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "unisolo" and len(parts) > 1:
                found.add(parts[1])
    return found


SOURCES = [
    path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.parent != PACKAGE or path.stem != "__init__"
]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    unit = unit_of(path)
    assert unit in LEVEL, f"{unit} has no place in the import order"
    for other in imported_units(ast.parse(path.read_text())) - {unit}:
        if (unit, other) in ALLOWED:
            continue
        assert LEVEL[other] < LEVEL[unit], f"{path.name}: {unit} may not import {other}"


def test_no_relative_imports() -> None:
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            assert not (isinstance(node, ast.ImportFrom) and node.level), path
