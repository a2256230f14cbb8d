"""`benchmark postprocess` on scenes of seconds. Times are not judged, what is checked beside is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from unisolo.benchmark.gpu_timing import CAPTURED, WARM_UP, peak_bytes, time_on_gpu
from unisolo.benchmark.postprocess.checks import compare_answers, count_wrong
from unisolo.benchmark.postprocess.floor import Ceilings, Work, floors
from unisolo.benchmark.postprocess.scenes import SCENES, SceneName, make_scene
from unisolo.benchmark.postprocess.ways import Answer, Problem, package_call, reference_call
from unisolo.benchmark.tables import machine_lines
from unisolo.cli import app
from unisolo.ops.backend import use_kernels
from unisolo.ops.masks import mask_intersections, pack_bits


@pytest.mark.parametrize("name", SCENES)
@pytest.mark.parametrize("count", [1, 300])
def test_a_scene_has_the_candidates_that_were_ordered(name: SceneName, count: int) -> None:
    scene = make_scene(name, count, (40, 70), channels=8)
    found = scene.candidates
    assert len(found.scores) == count
    assert len(found.cells.unique()) == count
    assert bool((found.scores.diff() <= 0).all())
    assert scene.padded_size == (64, 96)
    assert scene.outputs.mask_features.shape == (1, 8, 16, 24)
    again = make_scene(name, count, (40, 70), channels=8)
    assert all(torch.equal(one, two) for one, two in zip(found, again.candidates, strict=True))
    assert len(found.labels.unique()) == 1 or name == "coco"


def test_scenes_differ_in_what_they_are_named_for() -> None:
    shares = {}
    for name in SCENES:
        scene = make_scene(name, 80, (320, 320), channels=16)
        logits = scene.candidates.kernels @ scene.outputs.mask_features[0].flatten(1)
        shares[name] = float((logits > 0).float().mean())
    assert shares["coco"] < 0.1 > shares["crowd"]
    assert 0.3 < shares["dense"] < 0.9
    assert 0.45 < shares["noise"] < 0.55


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("street", 5, (64, 64)), "unknown scene"),
        (("coco", 0, (64, 64)), "1 to 3872 candidates"),
        (("coco", 4000, (64, 64)), "1 to 3872 candidates"),
        (("coco", 5, (0, 64)), "at least 1 x 1"),
    ],
)
def test_impossible_scenes_are_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_scene(*arguments)


@pytest.mark.parametrize(
    ("name", "dtype", "kernels", "start"),
    [
        ("coco", torch.float32, "torch", "candidates"),
        ("coco", torch.float32, "auto", "logits"),
        ("crowd", torch.bfloat16, "auto", "candidates"),
    ],
)
def test_every_way_gives_one_answer(
    name: SceneName, dtype: torch.dtype, kernels: Any, start: Any
) -> None:
    problem = Problem.of(make_scene(name, 50, (93, 150), channels=16, dtype=dtype))
    reference = reference_call(problem, start)()
    with use_kernels(kernels):
        answer = package_call(problem, start)()
    found = compare_answers(reference, answer, 150)
    assert found.kept > 5
    assert found.same_order
    assert found.score_difference is not None and found.score_difference < 1e-5
    assert found.different_pixels == 0
    assert found.pixels == found.kept * 93 * 150


def answer_of(masks: torch.Tensor) -> Answer:
    count = torch.arange(len(masks))
    return Answer(1 - count / 10, count, count, None, masks)


def test_comparison_sees_every_difference() -> None:
    masks = torch.rand(3, 5, 11, generator=torch.Generator().manual_seed(0)) < 0.5
    reference = answer_of(masks)
    packed = reference._replace(masks=pack_bits(masks), valid=torch.ones(3, dtype=torch.bool))
    assert compare_answers(reference, packed, 11).different_pixels == 0
    other = masks.clone()
    other[1, 2, 3] ^= True
    assert compare_answers(reference, answer_of(other), 11).different_pixels == 1
    higher = reference._replace(scores=reference.scores + 0.25)
    found = compare_answers(reference, higher, 11)
    assert found.same_order and found.score_difference == pytest.approx(0.25)
    for wrong in (
        reference._replace(cells=reference.cells.flip(0)),
        reference._replace(labels=reference.labels + 1),
        answer_of(masks[:2]),
    ):
        found = compare_answers(reference, wrong, 11)
        assert not found.same_set and not found.same_order and found.different_pixels is None
    order = torch.tensor([0, 2, 1])  # two scores that rounding has swapped
    found = compare_answers(
        reference, Answer(reference.scores, order, order, None, masks[order]), 11
    )
    assert found.same_set and not found.same_order and found.different_pixels == 0
    assert found.score_difference == pytest.approx(0.1)
    nothing = answer_of(masks[:0])
    assert compare_answers(nothing, nothing, 11).score_difference == 0


def test_wrong_counts_are_counted() -> None:
    masks = torch.rand(6, 70, generator=torch.Generator().manual_seed(0)) < 0.5
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    counts = mask_intersections(masks)
    assert count_wrong(counts, masks, labels) == 0
    counts[0, 2] += 1
    counts[0, 5] += 1  # of two labels: never read
    assert count_wrong(counts, masks, labels) == 1


def test_the_floor_is_the_slower_of_computing_and_moving() -> None:
    ceilings = Ceilings(1e12, 1e14, "bfloat16")
    work = Work(500, 100, 256, 67200, 800 * 1333, 2, logits=309_760)
    found = floors(work, ceilings)
    assert found["selection"] == pytest.approx(1e3 * 4 * 309_760 / 1e12)
    assert found["dynamic masks"] == pytest.approx(1e3 * 2 * 500 * 256 * 67200 / 1e14)
    assert found["intersections"] == pytest.approx(1e3 * 500 * 67200 / 8 / 1e12)
    assert found["soft masks"] == pytest.approx(1e3 * 2 * 100 * 256 * 67200 / 1e14)
    assert found["upsample"] == pytest.approx(1e3 * 100 * 800 * 1333 / 8 / 1e12)
    fast = floors(work, Ceilings(1e12, 1e18, "bfloat16"))
    assert fast["dynamic masks"] == pytest.approx(1e3 * 256 * 67200 * 2 / 1e12)  # read the features
    slow = floors(work, Ceilings(1e12, 1e10, "float32"))
    assert slow["soft masks"] == pytest.approx(1e3 * 4 * 600 * 67200 / 1e12)  # keep the products


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["benchmark", "postprocess", *map(str, arguments)])


def test_the_command_prints_tables_and_writes_figures(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    done = run(
        *("--device", "cpu", "--size", "60x90", "--candidates", 12, "--scenes", "coco"),
        *("--scenes", "noise", "--repeat", 1, "--json", path),
    )
    assert done.exit_code == 0, done.output
    figures = json.loads(path.read_text())
    assert figures["device"] == "cpu" and figures["feature_size"] == [16, 24]
    rows = figures["rows"]
    assert [(row["scene"], row["start"], row["way"]) for row in rows] == [
        (scene, start, way)
        for scene in ("coco", "noise")
        for start in ("candidates", "logits")
        for way in ("reference", "ours, torch", "ours, CPU")
    ]
    for row in rows:
        assert row["mode"] == "eager" and row["candidates"] == 12
        assert row["agreement"]["same_order"] is True
        assert row["agreement"]["different_pixels"] == 0
        base = next(
            one
            for one in rows
            if (one["scene"], one["start"]) == (row["scene"], row["start"])
            and one["way"] == "reference"
        )
        assert row["speedup"] == pytest.approx(base["timing"]["median"] / row["timing"]["median"])
        floor = sum(
            value
            for stage, value in figures["floors"]["12"].items()
            if stage != "selection" or row["start"] == "logits"
        )
        assert row["of_floor"] == pytest.approx(row["timing"]["cpu"] / floor)
    ways = {row["way"] for row in figures["pruning"]}
    assert {"Matrix NMS, ours", "NMS mask by mask", "fast NMS"} < ways and len(ways) == 8
    assert "no GPU was measured" in done.stdout
    assert done.stdout.count("| noise | 12 | logits |") == 3 + 3  # times, and agreement
    assert "NO" not in done.stdout
    assert "this run answers none" in done.stdout and figures["goals"] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--scenes", "street"], "unknown scene street"),
        (["--candidates", "0"], "1 to 3872 candidates"),
        (["--repeat", "0"], "at least 1"),
        (["--threads", "0"], "at least 1"),
        (["--size", "60"], "--size must be HxW"),
        (["--size", "0x60"], "at least 1 x 1"),
        (["--precision", "int8"], "unknown precision 'int8'"),
        (["--device", "meta"], "cpu or cuda"),
    ],
)
def test_wrong_options_are_named(arguments: list[str], message: str) -> None:
    done = run("--device", "cpu", "--size", "32x32", "--scenes", "coco", *arguments)
    assert done.exit_code == 2
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_a_gpu_is_part_of_the_machine() -> None:
    machine: dict[str, Any] = {
        "cpu": "C",
        "family": "",
        "cores": 2,
        "flags": [],
        "system": "Linux",
        "versions": {"python": "3"},
        "gpu": {
            "name": "G",
            "capability": "9.0",
            "multiprocessors": 132,
            "memory_gib": 79.2,
            "cuda": "13.0",
            "driver": "580.1",
        },
    }
    expected = "G: 132 SM, 79.2 GiB, compute capability 9.0, CUDA 13.0, driver 580.1"
    assert machine_lines(machine).splitlines()[1] == expected
    assert len(machine_lines({**machine, "gpu": None}).splitlines()) == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_timing_on_a_gpu_needs_one() -> None:
    with pytest.raises(ValueError, match="needs a CUDA device"):
        time_on_gpu({"nothing": lambda: None}, 1, graph=False)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
class TestOnGpu:
    @pytest.mark.parametrize("graph", [False, True])
    def test_calls_are_counted(self, graph: bool) -> None:
        total = torch.zeros(1, device="cuda")
        timing = time_on_gpu({"add": lambda: total.add_(1)}, 3, graph=graph)["add"]
        runs = 1 + 3  # one of each turn is not timed
        calls = 2 * CAPTURED * runs if graph else runs
        assert int(total) == WARM_UP + calls
        assert timing.calls == 3
        assert 0 < timing.least <= timing.median <= timing.most

    def test_what_waits_cannot_be_captured(self) -> None:
        # In a process of its own: a capture that fails leaves torch's random numbers unusable.
        code = (
            "import torch\n"
            "from unisolo.benchmark.gpu_timing import time_on_gpu\n"
            "values = torch.ones(4, device='cuda')\n"
            "time_on_gpu({'nonzero': lambda: values.nonzero()}, 1, graph=True)\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode != 0
        assert "nonzero cannot be captured in a CUDA graph" in done.stderr

    def test_peak_holds_outputs_and_what_is_freed(self) -> None:
        size = 2**20
        assert peak_bytes(lambda: torch.ones(size, device="cuda") + 1) == 2 * 4 * size

    @pytest.mark.parametrize("name", SCENES)
    def test_ways_agree(self, name: SceneName) -> None:
        scene = make_scene(name, 60, (160, 224), dtype=torch.bfloat16, device="cuda")
        problem = Problem.of(scene)
        with torch.no_grad(), use_kernels("triton"):
            for start in ("candidates", "logits"):
                reference = reference_call(problem, start)()
                call = package_call(problem, start)
                found = compare_answers(reference, call(), 224)
                assert found.same_order
                assert found.score_difference is not None and found.score_difference < 1e-3
                assert found.different_pixels is not None
                # Half-precision soft masks: those of noise lie close to the threshold everywhere.
                assert found.different_pixels <= (2e-4 if name == "noise" else 1e-5) * found.pixels

    def test_the_command_runs_whole(self, tmp_path: Path) -> None:
        path = tmp_path / "figures.json"
        options = ("--device", "cuda", "--size", "160x224", "--candidates", 60, "--repeat", 2)
        done = run(*options, "--json", path)
        assert done.exit_code == 0, done.output
        figures = json.loads(path.read_text())
        graphs = [row for row in figures["rows"] if row["mode"] == "graph"]
        assert {row["way"] for row in graphs} == {"ours, Triton"} and len(graphs) == 2 * 4
        assert {row["mode"] for row in figures["stages"]} == {"eager", "graph"}
        assert not any(figures["wrong_intersections"].values())
        assert all(row["agreement"]["same_order"] for row in graphs)
