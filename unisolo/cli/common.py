"""The application and what its commands share."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import typer

__all__ = ["DebugOption", "Overrides", "TaskOption", "app", "friendly"]

app = typer.Typer(
    name="unisolo",
    help="Instance, box and panoptic perception in one model.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

Command = TypeVar("Command", bound=Callable[..., Any])


Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Settings as key.sub=value, e.g. train.lr=0.001", metavar="[KEY=VALUE]..."),
]
TaskOption = Annotated[str | None, typer.Option("--task", help="panoptic, instance or detection.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the full trace of an error.")]


def friendly(command: Command) -> Command:
    """Turn expected errors into one sentence and exit code 2; `--debug` shows the trace."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        # Read when torch is first imported, which the commands do. Threads that spin while they
        # wait make CPU training many times slower on machines whose cores are shared.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        try:
            return command(*args, **kwargs)
        except (ValueError, OSError, ImportError, FloatingPointError, MemoryError) as error:
            if kwargs.get("debug"):
                raise
            typer.secho(f"error: {_sentence(error)}", fg="red", err=True)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            typer.secho("stopped", fg="red", err=True)
            raise typer.Exit(130) from None

    return run  # type: ignore[return-value]


def _sentence(error: BaseException) -> str:
    """The message of an error, without the trace that a loader process packs into it."""
    text = str(error)
    if "Original Traceback" not in text:
        return text
    # The last line that starts a message: "package.module.Error: ...".
    lines = text.strip().splitlines()
    starts = [n for n, line in enumerate(lines) if re.match(r"^[\w.]+(Error|Exception): ", line)]
    return "\n".join(lines[starts[-1] :]).split(": ", 1)[1] if starts else text
