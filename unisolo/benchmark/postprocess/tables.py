"""The post-process report as Markdown."""

from __future__ import annotations

from unisolo.benchmark.postprocess.checks import Agreement
from unisolo.benchmark.postprocess.report import PostprocessReport, PostprocessRow
from unisolo.benchmark.timing import Timing

__all__ = ["postprocess_tables"]


def postprocess_tables(report: PostprocessReport) -> str:
    """Make all tables, with a sentence on what was measured before them."""
    return "\n\n".join(
        [
            _method(report),
            _whole(report),
            _stages(report),
            _floors(report),
            _pruning(report),
            _agreements(report),
            _exactness(report),
        ]
    )


def _method(report: PostprocessReport) -> str:
    height, width = report.feature_size
    place = (
        "on the GPU; eager = one call between two events, graph = replay of a CUDA graph"
        if report.device == "cuda"
        else f"on the CPU (no GPU was measured), {report.threads} "
        f"thread{'s' * (report.threads > 1)}, eager"
    )
    ceilings = report.ceilings
    return (
        f"{report.channels} x {height} x {width} features in {report.dtype} to "
        f"{report.image_size[0]} x {report.image_size[1]} masks, at most 100 of them, {place}.\n"
        f"Measured ceilings: copy {ceilings.bytes_per_second / 1e9:.0f} GB/s (read + written), "
        f"{ceilings.dtype} product {ceilings.operations_per_second / 1e12:.3g} T operations/s."
    )


def _whole(report: PostprocessReport) -> str:
    memory = "peak MiB" if report.device == "cuda" else "CPU ms"
    lines = [
        f"| scene | candidates | from | way | mode | ms | min - max | of reference | {memory} |"
        + (" of floor |" if report.device == "cuda" else " of reference | of floor |"),
        "|" + "---|" * (10 if report.device == "cuda" else 11),
    ]
    return "\n".join(lines + [_whole_line(row) for row in report.rows])


def _whole_line(row: PostprocessRow) -> str:
    timing = row.timing
    cells = [
        row.scene,
        str(row.candidates),
        row.start,
        row.way,
        row.mode,
        _short(timing.median),
        f"{_short(timing.least)} - {_short(timing.most)}",
        f"{row.speedup:.2f} x",
    ]
    if row.cpu_speedup is None:
        cells.append("-" if row.peak_mib is None else f"{row.peak_mib:.0f}")
    else:
        cells += [_short(timing.cpu), f"{row.cpu_speedup:.2f} x"]
    return f"| {' | '.join([*cells, f'{row.of_floor:.1f} x'])} |"


def _stages(report: PostprocessReport) -> str:
    lines = [
        f"| scene | candidates | stage | mode | {_unit(report)} | floor, ms |",
        "|" + "---|" * 6,
    ]
    for row in report.stages:
        floor = "-" if row.floor is None else _short(row.floor)
        lines.append(
            f"| {row.scene} | {row.candidates} | {row.stage} | {row.mode} | "
            f"{_cost(report, row.timing)} | {floor} |"
        )
    return "\n".join(lines)


def _exactness(report: PostprocessReport) -> str:
    wrong = {name: count for name, count in report.wrong_intersections.items() if count}
    if wrong:
        return f"INTERSECTIONS ARE WRONG: {wrong}"
    return (
        "Intersections equal 64-bit counts of the same bits for every pair of one label: "
        f"{'; '.join(report.wrong_intersections)}."
    )


def _floors(report: PostprocessReport) -> str:
    stages = list(next(iter(report.floors.values())))
    lines = [f"| floor, ms | {' | '.join(stages)} | all |", "|" + "---|" * (len(stages) + 2)]
    for count, least in report.floors.items():
        values = [_short(least[stage]) for stage in stages]
        total = _short(sum(least.values()))
        lines.append(f"| {count} candidates | {' | '.join(values)} | {total} |")
    return "\n".join(lines)


def _pruning(report: PostprocessReport) -> str:
    lines = [
        f"| scene | masks | pruning alone | mode | {_unit(report)} | of ours |",
        "|" + "---|" * 6,
    ]
    lines += [
        f"| {row.scene} | {row.masks} | {row.way} | {row.mode} | {_cost(report, row.timing)} | "
        f"{row.of_ours:.2f} x |"
        for row in report.pruning
    ]
    return "\n".join(lines)


def _agreements(report: PostprocessReport) -> str:
    lines = [
        "| scene | candidates | from | way | kept | same set | same order | score difference | "
        "pixels that differ |",
        "|" + "---|" * 9,
    ]
    for row in report.rows:
        if row.mode == "eager":
            found = _agreement(row.agreement)
            lines.append(f"| {row.scene} | {row.candidates} | {row.start} | {row.way} | {found} |")
    return "\n".join(lines)


def _agreement(found: Agreement) -> str:
    if found.score_difference is None:
        return f"{found.kept} | NO | NO | - | -"
    order = "yes" if found.same_order else "NO"
    return (
        f"{found.kept} | yes | {order} | {found.score_difference:.1e} | "
        f"{found.different_pixels} of {found.pixels}"
    )


def _unit(report: PostprocessReport) -> str:
    return "ms" if report.device == "cuda" else "CPU ms"


def _cost(report: PostprocessReport, timing: Timing) -> str:
    return _short(timing.median if report.device == "cuda" else timing.cpu)


def _short(milliseconds: float) -> str:
    """Three digits: GPU stages take microseconds, CPU chains half a second."""
    return f"{milliseconds:.0f}" if milliseconds >= 100 else f"{milliseconds:.3g}"
