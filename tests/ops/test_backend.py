from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

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


@pytest.mark.parametrize(
    ("variable", "interpret", "expected"),
    [
        ("", "0", "cpu"),
        ("torch", "0", "torch"),
        ("triton", "1", "triton"),
        ("triton", "0", "KernelsError: UNISOLO_KERNELS=triton, but Triton cannot serve cpu"),
        ("fast", "0", "ValueError: UNISOLO_KERNELS is auto, torch or triton, got 'fast'"),
    ],
)
def test_the_environment_decides(variable: str, interpret: str, expected: str) -> None:
    program = (
        "import torch; from unisolo.ops.backend import backend_for\n"
        "try: print(backend_for(torch.device('cpu')))\n"
        "except Exception as error: print(f'{type(error).__name__}: {error}')"
    )
    env = {**os.environ, "UNISOLO_KERNELS": variable, "TRITON_INTERPRET": interpret}
    done = subprocess.run(
        [sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip().startswith(expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gets_triton() -> None:
    with use_kernels("auto"):
        assert backend_for(torch.device("cuda")) == "triton"
