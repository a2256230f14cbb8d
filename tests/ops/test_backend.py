from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from unisolo.ops import backend
from unisolo.ops.backend import backend_for, use_kernels

CPU = torch.device("cpu")


def test_a_cpu_gets_its_own_twins() -> None:
    with use_kernels("auto"):
        assert backend_for(CPU) == "cpu"
    with use_kernels("torch"):
        assert backend_for(CPU) == "torch"


def test_an_unknown_choice_is_named() -> None:
    with pytest.raises(ValueError, match="auto, torch or triton, got 'cuda'"), use_kernels("cuda"):  # type: ignore[arg-type]
        pass


def test_choices_nest() -> None:
    with use_kernels("auto"):
        with use_kernels("torch"):
            assert backend_for(CPU) == "torch"
        assert backend_for(CPU) == "cpu"


def test_a_compiled_program_gets_the_definition() -> None:
    seen = []

    def program(values: torch.Tensor) -> torch.Tensor:
        seen.append(backend_for(values.device))
        return values + 1

    torch.compile(program, backend="eager")(torch.zeros(3))
    assert seen == ["torch"]


CHOICES = {
    # UNISOLO_KERNELS, TRITON_INTERPRET
    ("", "0"): "cpu",
    ("torch", "0"): "torch",
    ("triton", "0"): "KernelsError: UNISOLO_KERNELS=triton, but Triton cannot serve cpu",
    ("fast", "0"): "ValueError: UNISOLO_KERNELS is auto, torch or triton, got 'fast'",
    ("triton", "1"): "triton",
}


def test_the_environment_decides() -> None:
    program = """
import os, torch
from unisolo.ops import backend
for kernels, interpret in {choices}:
    os.environ.update(UNISOLO_KERNELS=kernels, TRITON_INTERPRET=interpret)
    backend._obstacle.cache_clear()  # a process of its own would see one value only
    try:
        print(backend.backend_for(torch.device("cpu")))
    except Exception as error:
        print(f"{type(error).__name__}: {error}")
"""
    # In another process: this one must keep the interpreter of the kernels' tests.
    done = subprocess.run(
        [sys.executable, "-c", program.replace("{choices}", repr(list(CHOICES)))],
        capture_output=True,
        text=True,
        check=True,
    )
    for said, expected in zip(done.stdout.splitlines(), CHOICES.values(), strict=True):
        assert said.startswith(expected)


@pytest.mark.parametrize(
    ("version", "old"), [("3.4.0", True), ("3.5.0", False), ("3.10.1+git0", False), ("2.1.0", True)]
)
def test_an_old_triton_is_named(version: str, old: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pytest.importorskip("triton"), "__version__", version)
    said = backend._old_triton()
    assert (said is not None and version in said and "need 3.5" in said) if old else said is None


def test_a_triton_that_cannot_start_kernels_says_what_it_needs() -> None:
    pytest.importorskip("triton")
    broken = backend._broken_driver()
    if torch.cuda.is_available():
        assert broken is None
    else:
        assert broken is not None and "C compiler and Python's headers; RuntimeError: " in broken


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gets_triton() -> None:
    with use_kernels("auto"):
        assert backend_for(torch.device("cuda")) == "triton"
