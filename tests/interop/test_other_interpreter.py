"""FiftyOne and Label Studio's SDK pin packages of their own, so they live in an environment of
their own, which sees ours behind it: `make interop` builds it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def interop_python() -> Path:
    named = os.environ.get("UNISOLO_INTEROP_PYTHON")
    path = Path(named) if named else Path(sys.prefix) / "interop" / "bin" / "python"
    if not path.is_file():
        pytest.skip(f"no second environment ({path}): make interop")
    return path


def run(python: Path, script: str, folder: Path) -> str:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parents[1])]),
        "HOME": str(folder),  # both keep settings there
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [python, str(HERE / "scripts" / script), str(folder)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_fiftyone_gives_every_mask_back(interop_python: Path, tmp_path: Path) -> None:
    assert "read every mask" in run(interop_python, "fiftyone_reads.py", tmp_path)


@pytest.mark.slow
def test_label_studio_decodes_every_mask(interop_python: Path, tmp_path: Path) -> None:
    assert "decoded every mask" in run(interop_python, "label_studio_reads.py", tmp_path)
