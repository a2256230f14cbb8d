"""The figures of the documentation can be drawn of any panoptic model, and always the same."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from pages import DOCS, ROOT
from PIL import Image


def draw(material: Path, out: Path) -> dict[str, bytes]:
    script = [sys.executable, str(ROOT / "tools" / "docs" / "figures.py"), "--out", str(out)]
    inputs = ["--checkpoint", "model.safetensors", "--image", "street.jpg"]
    done = subprocess.run([*script, *inputs], cwd=material, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


@pytest.mark.slow
def test_figures_are_drawn_the_same_twice(material: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra docs)")
    first = draw(material, tmp_path / "first")
    assert first == draw(material, tmp_path / "second")
    in_docs = {path.name for path in (DOCS / "images").glob("*.png")}
    assert set(first) <= in_docs
    for name in first:
        with Image.open(tmp_path / "first" / name) as picture:
            assert picture.width > 1000
            assert len(picture.convert("RGB").getcolors(2**16) or range(100)) > 20
