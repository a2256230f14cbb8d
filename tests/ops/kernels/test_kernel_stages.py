"""The stages that `benchmark postprocess` times are the post-process: together and one by one."""

from __future__ import annotations

import pytest
import torch

from unisolo.benchmark.postprocess.checks import compare_answers
from unisolo.benchmark.postprocess.floor import Ceilings, Work, floors
from unisolo.benchmark.postprocess.scenes import SceneName, make_scene
from unisolo.benchmark.postprocess.stages import KernelStages
from unisolo.benchmark.postprocess.ways import Problem, package_call, reference_call
from unisolo.ops.backend import use_kernels

pytestmark = pytest.mark.slow  # in the interpreter; the kernels have fast tests of their own


@pytest.mark.parametrize(
    # Not bfloat16: the interpreter multiplies it wrongly. Soft masks of half precision move pixels
    # of noise over the threshold, so noise is in float32.
    ("name", "dtype"),
    [("dense", torch.float16), ("noise", torch.float32)],
)
def test_stages_answer_as_the_chain(
    name: SceneName, dtype: torch.dtype, device: torch.device
) -> None:
    scene = make_scene(name, 12, (32, 50), channels=16, dtype=dtype, device=device)
    stages = KernelStages(scene)
    with use_kernels("triton"):
        reference = reference_call(Problem.of(scene), "candidates")()
        found = compare_answers(reference, stages.answer(), 50)
        assert found.kept > 5
        assert found.same_order
        assert found.score_difference is not None and found.score_difference < 1e-3
        assert found.different_pixels == 0
        assert stages.wrong_intersections() == 0
        assert (
            list(stages.calls())[:5] == list(floors(Work(1, 1, 1, 1, 1, 1), Ceilings(1, 1, "")))[1:]
        )


def test_every_stage_runs_alone_and_logits_give_the_same(device: torch.device) -> None:
    scene = make_scene("crowd", 24, (96, 160), channels=16, dtype=torch.float16, device=device)
    problem = Problem.of(scene)
    with use_kernels("triton"):
        for call in KernelStages(scene).calls().values():
            call()
        answer = package_call(problem, "logits")()
        found = compare_answers(reference_call(problem, "logits")(), answer, 160)
    assert found.kept > 2
    assert found.same_order
    assert found.different_pixels is not None and found.different_pixels <= 2
