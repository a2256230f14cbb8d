from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from unisolo.benchmark.memory import (
    MIB,
    Crowd,
    MemoryReport,
    MemoryRow,
    measure_memory,
    memory_table,
)
from unisolo.benchmark.resident import peak_resident_bytes
from unisolo.data.memory import free_memory

SMALL = Crowd(
    image=512,
    categories=20,
    candidates=1000,
    channels=8,
    dtype="float32",
    memory_budget=16,
)


def test_memory_that_is_given_back_counts_and_what_was_held_does_not():
    held = torch.ones(10 * MIB, dtype=torch.uint8)
    taken = peak_resident_bytes(lambda: torch.ones(64 * MIB, dtype=torch.uint8).amax())
    assert 63 * MIB <= taken < 80 * MIB  # Linux counts pages in batches for each processor
    assert peak_resident_bytes(lambda: held) < 8 * MIB
    assert (free_memory() or 0) > 0


def test_the_reference_needs_tens_of_gib_for_the_same_candidates():
    worst = Crowd()
    # Soft masks (4), bool masks (1), the same as floats (4) and the product (4): 13 bytes a pixel.
    assert worst.reference == 13 * 2000 * 1024 * 1024
    assert worst.bound < 1536 * MIB < worst.reference / 16
    # With few candidates the masks at the size of the image are the largest.
    assert replace(worst, candidates=10).reference > 100 * 5 * 4096 * 4096


def test_a_crowd_stays_in_its_bound_in_a_process_of_its_own():
    report = measure_memory(SMALL, device="cpu", ways=("auto",))
    (row,) = report.rows
    assert 0 < row.measured <= row.computed == SMALL.bound
    assert report.device == "cpu"
    assert report.to_json()["rows"][0]["crowd"]["candidates"] == 1000


@pytest.mark.slow
def test_where_the_reference_does_not_fit_a_smaller_image_is_measured(monkeypatch):
    crowd = replace(SMALL, image=1024)
    monkeypatch.setattr("unisolo.benchmark.memory.free_memory", lambda: crowd.reference)
    report = measure_memory(crowd, device="cpu")
    assert [(row.way, row.crowd.image) for row in report.rows] == [
        ("auto", 1024), ("torch", 1024), ("reference", 1024),
        ("auto", 512), ("torch", 512), ("reference", 512),
    ]  # fmt: skip
    assert [row.measured is None for row in report.rows] == [False, False, True] + 3 * [False]
    # The computed figure is that of the masks alone; what is measured is at least nearly that.
    assert report.rows[-1].measured > 0.8 * SMALL.reference
    table = memory_table(report)
    assert table.count("\n| ") == 7
    assert table.count("does not fit") == 1


def test_the_table_says_where_and_what():
    row = MemoryRow("auto", SMALL, SMALL.bound, 50 * MIB)
    lines = memory_table(MemoryReport({}, "cpu", (row,))).splitlines()
    assert "1000 candidates, 100 instances, 8 channels (float32), on the CPU" in lines[0]
    assert lines[4].split("|")[3].strip() == "50"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_told():
    with pytest.raises(ValueError, match="no CUDA device"):
        measure_memory(SMALL, device="cuda")


@pytest.mark.slow
def test_a_failing_process_is_told():
    with pytest.raises(RuntimeError, match=r"measuring auto failed with exit code 1: .*float7"):
        measure_memory(replace(SMALL, dtype="float7"), device="cpu", ways=("auto",))
