"""A real HTTP server on this machine that speaks the few words of the Hub that a model needs."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Hub:
    """Repositories in memory.

    Attributes:
        files: Content by (repository, revision, path).
        requests: (method, path, token) of each request, in order.
        private: Repositories that only the token "right" may see.
        base: Address of the server.
    """

    files: dict[tuple[str, str, str], bytes] = field(default_factory=dict)
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    private: set[str] = field(default_factory=set)
    base: str = ""


@contextmanager
def serving() -> Iterator[Hub]:
    """Serve an empty hub until the block ends."""
    hub = Hub()

    class Handler(_Handler):
        state = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.base = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    state: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def _note(self) -> str | None:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        self.state.requests.append((self.command, self.path, token))
        return token

    def _send(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, values: Any) -> None:
        self._send(200, json.dumps(values).encode(), Content_Type="application/json")

    def do_POST(self) -> None:
        self._note()
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path == "/api/repos/create":
            values = json.loads(body)
            name = f"{values['organization']}/{values['name']}"
            self._json({"url": f"{self.state.base}/{name}", "name": name})
        elif self.path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            self._json(
                {
                    "files": [
                        {"path": entry["path"], "uploadMode": "regular", "shouldIgnore": False}
                        for entry in json.loads(body)["files"]
                    ]
                }
            )
        elif "/commit/" in self.path:
            self._commit(body)
        else:
            self._send(404, b"")

    def _commit(self, body: bytes) -> None:
        _, _, _, user, model, _, revision = self.path.partition("?")[0].split("/")
        for line in body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                content = base64.b64decode(entry["value"]["content"])
                self.state.files[f"{user}/{model}", revision, entry["value"]["path"]] = content
        url = f"{self.state.base}/{user}/{model}/commit/{_commit_id(revision)}"
        self._json({"success": True, "commitOid": _commit_id(revision), "commitUrl": url})

    def _resolve(self) -> None:
        token = self._note()
        parts = self.path.partition("?")[0].strip("/").split("/")
        if len(parts) < 5 or parts[2] != "resolve":
            return self._send(404, b"")
        name, revision, path = "/".join(parts[:2]), parts[3], "/".join(parts[4:])
        known = {key[:2] for key in self.state.files}
        if name not in {repo for repo, _ in known} or (
            name in self.state.private and token != "right"
        ):
            return self._send(404, b"", X_Error_Code="RepoNotFound")
        if (name, revision) not in known:
            return self._send(404, b"", X_Error_Code="RevisionNotFound")
        content = self.state.files.get((name, revision, path))
        if content is None:
            return self._send(404, b"", X_Error_Code="EntryNotFound")
        etag = hashlib.sha256(content).hexdigest()
        return self._send(200, content, ETag=f'"{etag}"', X_Repo_Commit=_commit_id(revision))

    do_HEAD = do_GET = _resolve


def _commit_id(revision: str) -> str:
    return hashlib.sha1(revision.encode()).hexdigest()
