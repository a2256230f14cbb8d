"""The locks that keep the demo on its machine, each in a process of its own (they stay shut)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

OFFLINE = Path(__file__).parents[2] / "unisolo" / "demo" / "offline.py"

SCRIPT = """
import runpy, socket, sys
names = runpy.run_path(sys.argv[1])
names["refuse_connections"]("127.0.0.1")
server = socket.create_server(("127.0.0.1", 0))
socket.create_connection(server.getsockname()).close()
socket.getaddrinfo("localhost", 80)
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
attempts = [
    lambda: socket.socket().connect(("192.0.2.1", 80)),
    lambda: socket.getaddrinfo("telemetry.invalid", 443),
    lambda: udp.sendto(b"x", ("192.0.2.1", 53)),
    lambda: socket.socket(socket.AF_INET6).connect(("2001:db8::1", 80)),
]
for attempt in attempts:
    try:
        attempt()
    except ConnectionRefusedError as error:
        assert "connects to nothing" in str(error), error
        print("refused")
"""


def test_connections_are_refused_but_not_to_itself() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(OFFLINE)], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.split() == ["refused"] * 4, done.stderr


def test_loopback_is_told_from_the_rest() -> None:
    from unisolo.demo.offline import is_loopback

    assert all(map(is_loopback, ("127.0.0.1", "127.8.8.8", "localhost", "::1")))
    assert not any(
        map(is_loopback, ("0.0.0.0", "::", "192.168.1.4", "my-host", "127.evil.example"))
    )
