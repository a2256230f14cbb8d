"""A real HTTP server on this machine, with the bad manners of servers on request."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

DATE = "Mon, 01 Jan 2024 00:00:00 GMT"


@dataclass
class Seen:
    """One request and what was answered."""

    path: str
    range: str | None
    if_range: str | None
    status: int


@dataclass
class WeightServer:
    """What is served, and how.

    `manners` are taken one per request; when they run out, requests are answered well:

    - "cut": half of what was asked for, then the connection ends
    - "stop": half of what was asked for, then nothing until `go_on` is set
    - "no-range": the whole file, whatever was asked for
    - "ignore-if-range": the part asked for, even of another file
    - "wrong-range": a part that starts elsewhere
    - "long": a Content-Length beyond the body
    - "no-length": none, and the connection ends with the body
    - "endless": a Content-Length that fits on no disk
    - "html", "gzip": these kinds of answers
    - a number: this status, with `Retry-After` for 503
    - "to ADDRESS": a redirect
    """

    content: bytes
    manners: list[str] = field(default_factory=list)
    etag: str | None = '"one"'
    modified: str | None = DATE
    delay: float = 0.0
    seen: list[Seen] = field(default_factory=list)
    go_on: threading.Event = field(default_factory=threading.Event)
    port: int = 0

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.base}/weights.pth"


@contextmanager
def serving(server: WeightServer) -> Iterator[WeightServer]:
    """Run it in threads of this process, which may be asked by other processes."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            answer(self, server)

        def log_message(self, *args: object) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", server.port), Handler)
    httpd.daemon_threads = True
    httpd.block_on_close = False
    server.port = httpd.server_address[1]
    thread = threading.Thread(target=httpd.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.go_on.set()
        httpd.shutdown()
        httpd.server_close()
        thread.join()


def answer(request: BaseHTTPRequestHandler, server: WeightServer) -> None:
    manner = server.manners.pop(0) if server.manners else ""
    asked, if_range = request.headers.get("Range"), request.headers.get("If-Range")
    seen = Seen(request.path, asked, if_range, 200)
    server.seen.append(seen)
    server.go_on.wait(server.delay)
    request.close_connection = True
    if manner.isdigit() or manner.startswith("to "):
        seen.status = int(manner) if manner.isdigit() else 302
        request.send_response(seen.status)
        if manner.startswith("to "):
            request.send_header("Location", manner.removeprefix("to "))
        if manner == "503":
            request.send_header("Retry-After", "0")
        request.send_header("Content-Length", "0")
        request.end_headers()
        return
    start = 0
    unchanged = manner == "ignore-if-range" or if_range in (server.etag, server.modified)
    if asked and unchanged and manner != "no-range":
        start, seen.status = int(asked.removeprefix("bytes=").removesuffix("-")), 206
    if start > len(server.content):
        seen.status = 416
    request.send_response(seen.status)
    body = server.content[start:]
    if seen.status == 206:
        start += manner == "wrong-range"
        body = server.content[start:]
        size = len(server.content)
        request.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
    lengths = {"long": len(body) + 1000, "endless": 2**60}
    if manner != "no-length":
        request.send_header("Content-Length", str(lengths.get(manner, len(body))))
    for name, value in (
        ("ETag", server.etag),
        ("Last-Modified", server.modified),
        ("Content-Type", "text/html" if manner == "html" else "application/octet-stream"),
        ("Content-Encoding", "gzip" if manner == "gzip" else None),
    ):
        if value is not None:
            request.send_header(name, value)
    request.end_headers()
    send(request, body, manner, server)


def send(request: BaseHTTPRequestHandler, body: bytes, manner: str, server: WeightServer) -> None:
    try:
        if manner in ("cut", "stop"):
            request.wfile.write(body[: len(body) // 2])
            request.wfile.flush()
            if manner == "stop":
                server.go_on.wait(30)
        else:
            request.wfile.write(body)
    except OSError:  # the client has gone
        pass
