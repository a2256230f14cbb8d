"""The application and what its commands share: options, exit codes, errors, JSON answers."""

from __future__ import annotations

import functools
import inspect
import json
import math
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from typer.core import TyperGroup

from unisolo.cli.completion import complete_devices, complete_settings, complete_tasks
from unisolo.cli.telling import remark

__all__ = [
    "DATA",
    "MODELS",
    "OUTPUT",
    "TRAINING",
    "USE",
    "CheckpointOption",
    "DebugOption",
    "DeviceOption",
    "JsonOption",
    "Overrides",
    "TaskOption",
    "answer",
    "app",
    "check_folder",
    "examples",
    "friendly",
    "parse_size",
]

Command = TypeVar("Command", bound=Callable[..., Any])

# Headings of the commands, and of the options of the long ones.
TRAINING, USE, MODELS, DATA = "Train and judge", "Use a model", "Models and files", "Data"
OUTPUT = "Output"

_ORDER = (
    *("train", "evaluate", "compare", "report", "predict", "demo"),
    *("doctor", "convert-data", "shapes"),
    *("models", "convert", "export", "quantize", "benchmark"),
)

INTERNAL = 70
"""Exit code of a fault of ours: EX_SOFTWARE."""


def examples(*lines: str) -> str:
    """Return command lines as the last part of a help page, each on its own line."""
    # rich would read "[...]" of an example as markup.
    return "\n".join(["[bold]Examples[/bold]", *(line.replace("[", r"\[") for line in lines)])


_EXIT_CODES = f"""

[bold]Exit codes[/bold]
  0  done
  1  the answer is no, or some of it failed
  2  a mistake in what was given
 {INTERNAL}  a fault of unisolo itself
 75  stopped, can be resumed
130  stopped by Ctrl-C"""


class _Commands(TyperGroup):
    """Lists the commands in the order of their use, not of their import."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names; those without a place come last."""
        names = super().list_commands(ctx)
        return sorted(names, key=lambda n: _ORDER.index(n) if n in _ORDER else len(_ORDER))


app = typer.Typer(
    name="unisolo",
    cls=_Commands,
    help="Instance, box and panoptic perception in one model.",
    epilog=examples(
        "unisolo train --data my_data",
        "unisolo predict photos/ --checkpoint runs/my_data/model.safetensors --out seen",
        "unisolo train --help",
    )
    + _EXIT_CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["--help", "-h"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from unisolo import __version__

        typer.echo(f"unisolo {__version__}")
        raise typer.Exit()


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            metavar="",
            callback=_print_version,
            is_eager=True,
            help="Show the version and exit.",
        ),
    ] = False,
) -> None:
    """Instance, box and panoptic perception in one model."""


Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        help="Settings as key.sub=value, e.g. train.lr=0.001",
        metavar="KEY=VALUE",
        autocompletion=complete_settings,
    ),
]
TaskOption = Annotated[
    str | None,
    typer.Option("--task", help="panoptic, instance or detection.", autocompletion=complete_tasks),
]
DeviceOption = Annotated[
    str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.", autocompletion=complete_devices)
]
CheckpointOption = Annotated[
    Path, typer.Option(help="A model.safetensors, an exported graph, or a model's name.")
]
JsonOption = Annotated[
    bool,
    typer.Option(
        "--json",
        metavar="",
        help="Print one JSON document; all else goes to stderr.",
        rich_help_panel=OUTPUT,
    ),
]
DebugOption = Annotated[
    bool,
    typer.Option(
        "--debug", metavar="", help="Show the full trace of an error.", rich_help_panel=OUTPUT
    ),
]


def friendly(command: Command) -> Command:
    """Turn errors into one sentence and an exit code; `--debug` shows the trace before it.

    Expected errors (what the package raises for input that cannot be used) exit with 2, Ctrl-C with
    130, and anything else, which is a fault of ours, with 70 and how to report it. A program that
    asked for JSON gets the sentence as a document too: `{"error": ..., "exit_code": ...}`.
    """

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        # Read when torch is first imported, which the commands do. Threads that spin while they
        # wait make CPU training many times slower on machines whose cores are shared.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        debug = bool(kwargs.get("debug"))
        in_json = bool(kwargs.get("as_json")) or kwargs.get("json_file") == "-"

        def fail(sentence: str, code: int, shown: BaseException | None, prefix: str) -> typer.Exit:
            _fail(sentence, shown, prefix)
            if in_json:
                typer.echo(json.dumps({"error": sentence, "exit_code": code}, indent=2))
            return typer.Exit(code)

        with _plain_warnings():
            try:
                return command(*args, **kwargs)
            # The reader of a pipe has gone (`| head`): typer ends quietly.
            except (typer.Exit, typer.Abort, typer.BadParameter, BrokenPipeError):
                raise
            except (ValueError, OSError, ImportError, FloatingPointError, MemoryError) as error:
                raise fail(_sentence(error), 2, error if debug else None, "error: ") from None
            except KeyboardInterrupt:
                raise fail("stopped", 130, None, "") from None
            except Exception as error:
                kind = type(error).__name__
                advice = (
                    "please report it with the trace above"
                    if debug
                    else "--debug shows the trace; please report it with that"
                )
                sentence = f"unisolo failed with {kind}: {_sentence(error)}. {advice}"
                raise fail(sentence, INTERNAL, error if debug else None, "error: ") from None

    # Written for the width of the source; a terminal breaks the lines where it ends.
    paragraphs = inspect.cleandoc(command.__doc__ or "").split("\n\n")
    run.__doc__ = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
    return run  # type: ignore[return-value]


def _fail(sentence: str, shown: BaseException | None, prefix: str) -> None:
    if shown is not None:
        traceback.print_exception(shown)
    remark(f"{prefix}{sentence}", "red")


def _sentence(error: BaseException) -> str:
    """The message of an error, without the trace that a loader process packs into it."""
    text = str(error)
    if "Original Traceback" not in text:
        return text or type(error).__name__
    # The last line that starts a message: "package.module.Error: ...".
    lines = text.strip().splitlines()
    starts = [n for n, line in enumerate(lines) if re.match(r"^[\w.]+(Error|Exception): ", line)]
    return "\n".join(lines[starts[-1] :]).split(": ", 1)[1] if starts else text


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Print warnings as sentences: the line of code that gave one helps nobody at a terminal."""
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    try:
        yield
    finally:
        warnings.formatwarning = before


@contextmanager
def answer(wanted: bool) -> Iterator[dict[str, Any]]:
    """Collect the answer of a command; with `--json` print it, and it alone, on stdout.

    Inside, whatever is printed on stdout goes to stderr if `wanted`, also what libraries write past
    Python. A command that ends with an exit code (`typer.Exit`) has answered; of one that fails
    with an error nothing is printed here: `friendly` prints the error as the document.

    Args:
        wanted: Whether `--json` was given.

    Yields:
        A mapping to fill with plain values and paths; numbers that are not finite become null.
    """
    values: dict[str, Any] = {}
    if not wanted:
        yield values
        return
    ended: typer.Exit | None = None
    with _stdout_to_stderr():
        try:
            yield values
        except typer.Exit as error:
            ended = error
    if values:
        typer.echo(json.dumps(_plain(values), indent=2, allow_nan=False))
    if ended is not None:
        raise ended


@contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    sys.stdout.flush()
    try:
        number, other = sys.stdout.fileno(), sys.stderr.fileno()
    except (OSError, ValueError):  # not a real file: called from Python
        with redirect_stdout(sys.stderr):
            yield
        return
    kept = os.dup(number)
    try:
        os.dup2(other, number)
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, number)
        os.close(kept)


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def check_folder(path: Path, option: str) -> None:
    """Refuse a folder that could not be written to, before the work whose results it is to hold.

    Args:
        path: The folder; it need not exist.
        option: Where it was given, for the message.

    Raises:
        ValueError: If the path or a part of it is a file, or writing there is not permitted.
    """
    there = next((place for place in (path, *path.parents) if place.exists()), Path())
    if not there.is_dir():
        raise ValueError(f"{option} {path}: {there} is a file; give a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(
            f"{option} {path}: {there} is on a read-only file system, or you have no permission to "
            "write in it; give another folder"
        )


def parse_size(text: str, option: str) -> tuple[int, int]:
    """Read a size such as "448x768".

    Args:
        text: Height, "x", width.
        option: Where it was given, for the message.

    Returns:
        (H, W) in pixels.

    Raises:
        ValueError: If it is none.
    """
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None:
        raise ValueError(f"{option} must be HxW (height, width), e.g. 448x768, got {text!r}")
    return int(match[1]), int(match[2])
