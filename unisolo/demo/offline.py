"""Nothing leaves the machine: telemetry off, outgoing connections refused, pages that load nothing.

Three locks, since the demo's web framework can reach out in several ways (usage statistics, a check
for new versions, fonts, links that a client asks it to fetch): its own switches, a hook in the
interpreter for the server, and a content security policy for the browser.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

__all__ = ["Headers", "is_loopback", "refuse_connections", "silence_telemetry"]

_SWITCHES = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_SHARE": "False",
    "GRADIO_MCP_SERVER": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
}
_POLICY = "; ".join(
    [
        "default-src 'self' data: blob:",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:",  # gradio compiles its templates
        "style-src 'self' 'unsafe-inline'",
        "frame-ancestors 'none'",
        "form-action 'self'",
        "object-src 'none'",
    ]
)
_HEADERS = [
    (b"content-security-policy", _POLICY.encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
]

_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]
_App = Callable[[_Message, _Receive, _Send], Awaitable[None]]


def silence_telemetry() -> None:
    """Set the switches of gradio and huggingface_hub; before gradio is imported."""
    os.environ.update(_SWITCHES)
    os.environ.pop("GRADIO_ALLOWED_PATHS", None)


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's own and no other can reach it."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.split("%")[0]).is_loopback
    except ValueError:
        return False


def refuse_connections(own_host: str) -> None:
    """Make every outgoing connection of this process fail, for good, except to itself.

    Connections that others make to the server are not affected.

    Args:
        own_host: What the server listens on, which it visits once to see that it is up.
    """

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event == "socket.getaddrinfo":
            host = args[0]
        elif event in ("socket.connect", "socket.sendto"):
            if args[0].family not in (socket.AF_INET, socket.AF_INET6):
                return
            host = args[1][0]
        else:
            return
        name = (
            host.decode(errors="replace") if isinstance(host, bytes) else str(host or "localhost")
        )
        if name != own_host and not is_loopback(name) and not _is_any(name):
            raise ConnectionRefusedError(f"the demo connects to nothing, and not to {name}")

    sys.addaudithook(hook)


def _is_any(host: str) -> bool:
    """Whether it is 0.0.0.0 or ::, which a server names to listen everywhere."""
    return host in ("0.0.0.0", "::")


class Headers:
    """Middleware that forbids the browser to load anything from elsewhere.

    Args:
        app: The application behind it.
    """

    def __init__(self, app: _App) -> None:
        self._app = app

    async def __call__(self, scope: _Message, receive: _Receive, send: _Send) -> None:
        """Answer a request, as ASGI has it."""

        async def with_headers(message: _Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *_HEADERS]
            await send(message)

        await self._app(scope, receive, with_headers)
