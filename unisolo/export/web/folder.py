"""The folder: page, graph, runtime, and a file that tells the page about the model."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from unisolo.categories import Categories
from unisolo.config import SHOWN_SCORE
from unisolo.export.command import ExportReport, export_checkpoint
from unisolo.export.web.runtime import RUNTIME_VERSION, runtime_files
from unisolo.files import write_json
from unisolo.graphs import GraphError, GraphFacts, open_graph
from unisolo.models import UniSolo
from unisolo.structures import MASK_STRIDE, SIZE_DIVISOR
from unisolo.tasks import get_task
from unisolo.visualize.regions import Color, category_color

__all__ = ["export_web", "graph_to_web", "page_facts"]

FORMAT_VERSION = 1

_MODEL, _FACTS, _PAGE, _RUNTIME = "model.onnx", "facts.json", "index.html", "runtime"


def export_web(
    model: UniSolo,
    out: str | os.PathLike[str],
    *,
    name: str = "",
    runtime: str | os.PathLike[str] | None = None,
    **options: Any,
) -> ExportReport:
    """Export a model as a web page that runs it in the browser.

    The folder can be served by any server of files. The page makes masks at the size of the
    original image from a graph of size "stride4", as `Predictor` does.

    Args:
        model: As for `export_checkpoint`.
        out: The folder; made if missing. An earlier export is replaced, other files stay.
        name: Title of the page; empty = "Model".
        runtime: ONNX Runtime Web, see `runtime_files`.
        **options: Those of `export_checkpoint` except `format`, `size` and `batch`.

    Returns:
        The report of the graph, with the folder as its path and the size of all files.

    Raises:
        ValueError: As `export_checkpoint`, or if the folder holds another page or the runtime is
            another one.
        ImportError: If a package is not installed.
        OSError: If the runtime cannot be fetched or a file cannot be written.
    """
    with _staged(out, runtime) as (folder, finish):
        report = export_checkpoint(model, folder / _MODEL, size="stride4", batch=1, **options)
        size = finish(report.facts, name)
    return replace(report, path=Path(out), size=size)


def graph_to_web(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    name: str = "",
    runtime: str | os.PathLike[str] | None = None,
) -> ExportReport:
    """Put an exported ONNX file, also an int8 one, into a web page; arguments as for `export_web`.

    Raises:
        GraphError: If it is no ONNX file of this package of size "stride4" for one image a run.
        ValueError: As `export_web`.
        ImportError: As `export_web`.
        OSError: As `export_web`.
    """
    path = Path(source)
    if path.suffix.lower() != ".onnx":
        raise GraphError(f"{path}: a web page needs an .onnx file; export the checkpoint to one")
    graph = open_graph(path, device="cpu")
    graph.check_unfinished()
    if graph.facts.batch not in (None, 1):
        raise GraphError(
            f"{path}: takes {graph.facts.batch} images a run; a page has one: export with --batch 1"
        )
    start = time.perf_counter()
    with _staged(out, runtime) as (folder, finish):
        shutil.copyfile(path, folder / _MODEL)
        size = finish(graph.facts, name)
    return ExportReport(
        path=Path(out),
        facts=graph.facts,
        seconds=time.perf_counter() - start,
        size=size,
        difference=None,
        passed=None,
    )


def page_facts(facts: GraphFacts, name: str, size: int) -> dict[str, Any]:
    """Return what the page must know of a graph, as `facts.json`.

    Args:
        facts: The graph's.
        name: Title of the page.
        size: Bytes of the graph's file.
    """
    from unisolo import __version__

    data, inference = facts.config.data, facts.config.inference
    return {
        "format_version": FORMAT_VERSION,
        "name": name or "Model",
        "unisolo": __version__,
        "runtime": RUNTIME_VERSION,
        "task": facts.task,
        "panoptic": "stuff" in get_task(facts.task).requires,
        "masks": get_task(facts.task).has_masks,
        "precision": facts.precision,
        "model": {"file": _MODEL, "bytes": size},
        "input": {
            "dtype": facts.image_dtype,
            "image_size": data.image_size,
            "max_size": data.max_size,
            "resize": data.resize,
            "divisor": SIZE_DIVISOR,
            "stride": MASK_STRIDE,
            "fixed": facts.image_size,
        },
        "thresholds": {
            "score": max(SHOWN_SCORE, inference.update_threshold),
            "mask": inference.mask_threshold,
            "panoptic_score": inference.panoptic_score_threshold,
            "panoptic_overlap": inference.panoptic_overlap_threshold,
            "stuff_area": inference.stuff_area_threshold,
        },
        "categories": _categories(facts.categories),
    }


def _categories(categories: Categories) -> list[dict[str, Any]]:
    """In the order of the labels, each with the colours its regions take by turns."""
    entries = categories.to_coco()
    for label, entry in enumerate(entries):
        entry["paint"] = _shades(categories, label)
    return entries


def _shades(categories: Categories, label: int) -> list[Color]:
    shades = [category_color(categories, label)]
    while (color := category_color(categories, label, len(shades))) != shades[0]:
        shades.append(color)
    return shades


@contextmanager
def _staged(
    out: str | os.PathLike[str], runtime: str | os.PathLike[str] | None
) -> Iterator[tuple[Path, Callable[[GraphFacts, str], int]]]:
    """Fill a folder beside the final one; `finish` moves the files and returns their bytes."""
    final = Path(out)
    if final.exists() and not final.is_dir():
        raise ValueError(f"{final}: is a file; the web format writes a folder")
    if (final / _PAGE).exists() and not (final / _FACTS).exists():
        raise ValueError(
            f"{final}: holds another page ({_PAGE} without {_FACTS}); give a folder of its own"
        )
    final.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=final.parent, prefix=f".{final.name}-") as temporary:
        folder = Path(temporary)
        runtime_files(folder / _RUNTIME, runtime)  # before the minute that tracing can take
        with as_file(files("unisolo.export.web") / "page") as page:
            for path in page.iterdir():
                if path.is_file():
                    shutil.copyfile(path, folder / path.name)

        def finish(facts: GraphFacts, name: str) -> int:
            size = (folder / _MODEL).stat().st_size
            write_json(folder / _FACTS, page_facts(facts, name, size))
            return _move(folder, final)

        yield folder, finish


def _move(folder: Path, final: Path) -> int:
    """Rename every file into its place, the page last: where it is, all it needs is."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    total = sum(path.stat().st_size for path in paths)
    for path in sorted(paths, key=lambda path: path.name == _PAGE):
        target = final / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, target)
    return total
