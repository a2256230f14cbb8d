"""Runs the Triton kernels on a GPU where there is one, else through Triton's interpreter.

The interpreter has to be chosen before triton is first imported, hence here and not in a fixture.
It changes nothing for other tests: tensors of a CPU reach Triton only where a test says so.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from torch.overrides import TorchFunctionMode

if not torch.cuda.is_available() and "triton" not in sys.modules:
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where kernels run in these tests; skips where they cannot."""
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        return torch.device("cuda")
    from unisolo.ops.kernels.launch import INTERPRETED

    if not INTERPRETED:
        pytest.skip("triton was imported before its interpreter was chosen; run tests/ops alone")
    return torch.device("cpu")


class _Poison(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        made = func(*args, **(kwargs or {}))
        if func in (torch.empty, torch.empty_like):
            if made.is_floating_point():
                made.fill_(float("nan"))
            else:
                made.fill_(True if made.dtype == torch.bool else torch.iinfo(made.dtype).max)
        return made


@pytest.fixture
def poisoned() -> Callable[[], AbstractContextManager[object]]:
    """`with poisoned(): ...`: what `torch.empty` gives holds NaN or the largest integer."""
    return _Poison
