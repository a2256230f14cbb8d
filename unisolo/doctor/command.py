"""The work of `unisolo doctor`: examine, print, write."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unisolo.config import Config, load_config
from unisolo.data.coco_files import CocoLayout
from unisolo.doctor.examine import Report, examine
from unisolo.doctor.page import render_page
from unisolo.doctor.repair import repair
from unisolo.doctor.text import print_report, summary
from unisolo.files import write_bytes, write_json
from unisolo.progress import progress_bar

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

__all__ = ["doctor_config", "run_doctor"]


def doctor_config(
    data: Path, *, task: str | None, config: Path | None, overrides: Iterable[str]
) -> Config:
    """Return the configuration to examine a data set with.

    Args:
        data: Its folder.
        task: The task; None = the recipe's, and without a recipe panoptic where there is a panoptic
            file for the training split, else instance.
        config: A recipe.
        overrides: `key.sub=value` settings over it.
    """
    values: dict[str, Any] = {"data": {"root": data}}
    if task is not None:
        values["task"] = task
    settings = load_config(config, overrides, values=values)
    if task is None and config is None:
        layout = CocoLayout(data, settings.data.train_split)
        if not layout.panoptic.exists() and layout.instances.exists():
            return settings.model_copy(update={"task": "instance"})
    return settings


def run_doctor(
    settings: Config,
    *,
    splits: Sequence[str] | None = None,
    json_file: str | None = None,
    html: Path | None = None,
    fix: Path | None = None,
) -> bool:
    """Examine a data set, print the report and write what is asked for.

    Args:
        settings: See `doctor_config`.
        splits: As for `examine`.
        json_file: Where to write everything found; "-" prints it, and nothing else, to stdout.
        html: Where to write the page.
        fix: Where to write the repaired copy.

    Returns:
        Whether there are no errors.

    Raises:
        ValueError: If the data set is none, or `fix` cannot be written.
        OSError: If a file cannot be written.
    """
    from rich.console import Console

    with _progress() as bar:
        report = examine(settings, splits=splits, on_start=bar.start, on_image=bar.step)
    if json_file == "-":
        json.dump(report.to_dict(), sys.stdout, indent=2, allow_nan=False)
        sys.stdout.write("\n")
        console = Console(stderr=True)
        console.print(summary(report), markup=False, highlight=False)
    else:
        console = Console(width=None if sys.stdout.isatty() else 100, highlight=False)
        print_report(report, console)
        if json_file is not None:
            write_json(Path(json_file), report.to_dict(), indent=2)
            console.print(f"JSON: {json_file}", markup=False)
    _write(report, html, fix, console)
    return not report.errors


def _write(report: Report, html: Path | None, fix: Path | None, console: Console) -> None:
    if html is not None:
        write_bytes(html, render_page(report).encode("utf-8"))
        console.print(f"page: {html}", markup=False)
    if fix is not None:
        done = repair(report, fix)
        console.print(f"repaired copy: {fix}", markup=False)
        for sentence in done.sentences:
            console.print(f"  {sentence}", markup=False)


class _Bar:
    """A progress bar over images; splits follow each other."""

    def __init__(self, progress: Any) -> None:
        self._progress = progress
        self._task: Any = None

    def start(self, count: int) -> None:
        self._task = self._progress.add_task("", total=count)

    def step(self) -> None:
        self._progress.advance(self._task)


@contextmanager
def _progress() -> Iterator[_Bar]:
    with progress_bar() as progress:
        yield _Bar(progress)
