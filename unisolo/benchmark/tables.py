"""Measurements as Markdown."""

from __future__ import annotations

from typing import Any

from unisolo.benchmark.latency import LatencyReport, LatencyRow

__all__ = ["latency_table", "machine_lines"]


def machine_lines(machine: dict[str, Any]) -> str:
    """Say in two or three lines what was measured on; see `describe_machine`."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    flags = " ".join(machine["flags"]) or "none of those looked for"
    lines = [
        f"{machine['cpu']} ({machine['family'] or 'family unknown'}), {machine['cores']} cores, "
        f"{flags}, {machine['system']}"
    ]
    if machine["gpu"] is not None:
        lines.append(_gpu_line(machine["gpu"]))
    return "\n".join([*lines, versions])


def _gpu_line(gpu: dict[str, Any]) -> str:
    told = [
        f"{words} {gpu[name]}"
        for name, words in (
            ("driver", "driver"),
            ("max_clock", "SM at most"),
            ("power_limit", "power limit"),
        )
        if name in gpu
    ]
    facts = [
        f"{gpu['multiprocessors']} SM",
        f"{gpu['memory_gib']} GiB",
        f"compute capability {gpu['capability']}",
        f"CUDA {gpu['cuda']}",
        *told,
    ]
    return f"{gpu['name']}: {', '.join(facts)}"


def latency_table(report: LatencyReport) -> str:
    """Make one table of all rows."""
    lines = [
        "| model | input | threads | engine | ms | min - max | of eager | CPU ms | of eager | "
        "instances |",
        "|" + "---|" * 10,
    ]
    return "\n".join(lines + [_line(row) for row in report.rows])


def _line(row: LatencyRow) -> str:
    timing = row.timing
    cells = [
        row.model,
        f"{row.size[0]} x {row.size[1]}",
        str(row.threads),
        row.engine,
        f"{timing.median:.0f}",
        f"{timing.least:.0f} - {timing.most:.0f}",
        _ratio(row.speedup),
        f"{timing.cpu:.0f}",
        _ratio(row.cpu_speedup),
        str(row.instances),
    ]
    return f"| {' | '.join(cells)} |"


def _ratio(speedup: float | None) -> str:
    return "-" if speedup is None else f"{speedup:.2f} x"
