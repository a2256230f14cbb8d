"""The demo's server: a page on this machine, until it is stopped."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from types import FrameType
from typing import Any

from unisolo.demo.answers import Answers
from unisolo.demo.kept import PictureGone, Store
from unisolo.demo.offline import Headers, is_loopback, refuse_connections, silence_telemetry
from unisolo.predictor import Predictor

__all__ = ["serve"]

MAX_UPLOAD = "40mb"
_MAX_SESSIONS = 200
_PORTS = range(7860, 7960)


def serve(
    checkpoint: str | os.PathLike[str],
    *,
    task: str | None = None,
    device: str = "auto",
    host: str = "127.0.0.1",
    port: int | None = None,
    examples: Sequence[Path] = (),
    open_browser: bool = False,
    say: Callable[[str], None] = print,
    warn: Callable[[str], None] = print,
) -> None:
    """Serve the page until SIGTERM or Ctrl-C; this process can connect to nothing from then on.

    Args:
        checkpoint: As for `Predictor`.
        task: Task shown first; None = the checkpoint's.
        device: As for `Predictor`.
        host: Address to listen on.
        port: Port; None = the first free one from 7860.
        examples: Pictures to click on.
        open_browser: Open the page in the browser of this machine.
        say: Told the address, and each picture's size and time.
        warn: Told that others can reach the page.

    Raises:
        ImportError: If gradio is not installed.
        ValueError: As `Predictor`.
        OSError: If the address is not this machine's, or the port is taken.
    """
    free = _free_port(host, port)  # told before the model is loaded
    uploads = Path(tempfile.mkdtemp(prefix="unisolo-demo-"))
    try:
        silence_telemetry()
        os.environ["GRADIO_TEMP_DIR"] = str(uploads)  # read when gradio is imported
        try:
            import gradio  # noqa: F401
        except ImportError as error:
            raise ImportError('the demo needs gradio: pip install "unisolo[demo]"') from error
        from unisolo.demo.page import build_page

        predictor = Predictor(checkpoint, task=task, device=device)  # may fetch weights by name
        answers = Answers(predictor, Store())
        page = build_page(answers, Path(checkpoint), uploads, examples, say)
        refuse_connections(host)
        _run(page, answers, host, free, open_browser, say, warn)
    finally:
        shutil.rmtree(uploads, ignore_errors=True)


def _run(
    page: Any,
    answers: Answers,
    host: str,
    port: int,
    open_browser: bool,
    say: Callable[[str], None],
    warn: Callable[[str], None],
) -> None:
    """Start the server and wait for a signal."""
    from starlette.middleware import Middleware

    from unisolo.demo.page import look

    stop = threading.Event()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _setter(stop))
    page.queue(max_size=64)
    _, url, _ = page.launch(
        server_name=host,
        server_port=port,
        share=False,
        quiet=True,
        prevent_thread_lock=True,
        inbrowser=open_browser,
        show_error=False,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        allowed_paths=[],
        max_file_size=MAX_UPLOAD,
        state_session_capacity=_MAX_SESSIONS,
        favicon_path=str(files("unisolo.demo") / "assets" / "icon.svg"),
        app_kwargs={
            "routes": _routes(answers),
            "middleware": [Middleware(Headers)],
            "docs_url": None,
            "redoc_url": None,
            "openapi_url": None,
        },
        **look(),
    )
    say(f"{url} (Ctrl-C ends it)")
    if not is_loopback(host):
        warn(
            f"warning: everyone who can reach this machine can use the page (--host {host}); it "
            "has no password and no encryption"
        )
    try:
        while not stop.wait(1.0):
            sys.stdout.flush()
    except KeyboardInterrupt:
        say("stopped")
    finally:
        page.close(verbose=False)


def _free_port(host: str, port: int | None) -> int:
    """Return the port, or the first free one of `_PORTS`; see `serve` for what it raises."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for candidate in _PORTS if port is None else (port,):
        try:
            socket.create_server((host, candidate), family=family).close()
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise OSError(f"cannot listen on {host}, port {candidate}: {error}") from error
        else:
            return candidate
    taken = f"ports {_PORTS.start} to {_PORTS.stop - 1} are" if port is None else f"port {port} is"
    raise OSError(f"{taken} taken; give another --port")


def _setter(stop: threading.Event) -> Callable[[int, FrameType | None], None]:
    def on_signal(number: int, frame: FrameType | None) -> None:
        stop.set()

    return on_signal


def _routes(answers: Answers) -> list[Any]:
    """Pictures and downloads: by a key that only the session of the picture knows."""
    from starlette.requests import Request
    from starlette.responses import PlainTextResponse, Response
    from starlette.routing import Route

    def shown(request: Request) -> Response:
        values = request.path_params
        try:
            kept = answers.store.get(values["key"])
        except PictureGone as error:
            return PlainTextResponse(str(error), status_code=404)
        state, found = kept.shown, None
        if state is not None and state.version == values["version"]:
            found = answers.file(kept, state, values["file"])
        if found is None:
            return PlainTextResponse("Not shown any more.", status_code=404)
        content, kind = found
        return Response(content, media_type=kind, headers={"cache-control": "no-store"})

    return [Route("/shown/{key}/{version:int}/{file}", shown, methods=["GET"])]
