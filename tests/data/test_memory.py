"""Free memory as Linux tells it, of the machine and of control groups of both versions."""

from __future__ import annotations

from pathlib import Path

import pytest

from unisolo.data.memory import free_memory

GIB = 2**30


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def machine(root: Path, available: int, groups: str) -> None:
    meminfo = f"MemTotal: 999 kB\nMemAvailable:   {available // 1024} kB\nHugePages_Total: 0\n"
    write(root / "proc", meminfo=meminfo)
    write(root / "proc" / "self", cgroup=groups)


def found(root: Path) -> int | None:
    return free_memory(proc=root / "proc", groups=root / "groups")


def test_where_nothing_is_told(tmp_path: Path) -> None:
    assert found(tmp_path) is None


def test_without_limits_it_is_what_the_machine_has(tmp_path: Path) -> None:
    machine(tmp_path, 8 * GIB, "1:name=systemd:/x\n0::/user\n")
    write(tmp_path / "groups" / "user", memory__max="max\n", memory__current=f"{GIB}\n")
    assert found(tmp_path) == 8 * GIB


@pytest.mark.parametrize("limited", ["job/step", "job", "."])
def test_the_tightest_group_above_counts(limited: str, tmp_path: Path) -> None:
    machine(tmp_path, 100 * GIB, "0::/job/step\n")
    stat = f"anon {GIB}\ninactive_file {GIB // 2}\n"
    groups = tmp_path / "groups"
    write(groups / "job" / "step", memory__max=str(50 * GIB), memory__current="0", memory__stat="")
    write(groups / limited, memory__max=str(4 * GIB), memory__current=str(GIB), memory__stat=stat)
    assert found(tmp_path) == 3 * GIB + GIB // 2


def test_the_first_version_in_a_container_that_is_told_its_path_outside(tmp_path: Path) -> None:
    machine(tmp_path, 100 * GIB, "7:cpu,cpuacct:/docker/1\n4:memory:/docker/1\n")
    folder = tmp_path / "groups" / "memory"
    write(folder, memory__limit_in_bytes=str(4 * GIB), memory__usage_in_bytes=str(GIB))
    write(folder, memory__stat=f"inactive_file 1\ntotal_inactive_file {GIB // 4}\n")
    assert found(tmp_path) == 3 * GIB + GIB // 4


def test_a_group_beyond_its_limit_has_nothing_left(tmp_path: Path) -> None:
    machine(tmp_path, 8 * GIB, "0::/\n")
    write(tmp_path / "groups", memory__max=str(GIB), memory__current=str(2 * GIB))
    assert found(tmp_path) == 0
