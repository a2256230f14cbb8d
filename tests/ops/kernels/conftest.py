"""Fixtures of the Triton kernels, which run on a GPU or in Triton's interpreter."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from torch.overrides import TorchFunctionMode

from unisolo.ops.backend import _old_triton


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where kernels run in these tests; skips where they cannot."""
    pytest.importorskip("triton")
    if old := _old_triton():
        pytest.skip(old)
    if torch.cuda.is_available():
        return torch.device("cuda")
    from unisolo.ops.kernels.launch import INTERPRETED

    if not INTERPRETED:
        pytest.skip("triton was imported before tests/conftest.py chose its interpreter")
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
