from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

# The tests of Triton kernels need its interpreter where there is no GPU, chosen before triton is
# first imported: torchvision does that. CPU tensors reach Triton only where a test says so.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from unisolo.ops.backend import use_kernels

sys.path.insert(0, str(Path(__file__).parent))
import golden_tools

settings.register_profile(
    "unisolo",
    deadline=None,  # shared two-core machines: time says nothing about the code
    max_examples=25,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("unisolo")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=["torch", "auto"])
def each_twin(request: pytest.FixtureRequest) -> Iterator[None]:
    """Runs a test with the definitions of the operations, and with what this machine chooses."""
    with use_kernels(request.param):
        yield


@pytest.fixture(scope="session")
def golden() -> Callable[[str], dict[str, Any]]:
    """`golden("nms_5")`: arrays and meta of one golden file; skips where the folder is absent."""

    def read(name: str) -> dict[str, Any]:
        path = golden_tools.SHARED / "golden" / f"{name}.npz"
        if not path.is_file():
            pytest.skip(f"golden vectors not on this machine: {path}")
        return golden_tools.load(path)

    return read


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """`shared_data("coco-mini")`: folder of a real data set; skips where it is absent."""

    def find(name: str) -> Path:
        path = golden_tools.SHARED / "data" / name
        if not path.is_dir():
            pytest.skip(f"real data sets not on this machine: {path}")
        return path

    return find
