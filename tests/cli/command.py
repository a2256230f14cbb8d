"""The command as people run it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

UNISOLO = Path(sys.executable).with_name("unisolo")


def unisolo(
    *arguments: object, cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(UNISOLO), *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        cwd=cwd,
        check=False,
    )
