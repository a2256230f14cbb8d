from __future__ import annotations

import hashlib
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from weight_server import DATE, WeightServer, serving

from unisolo.download import DownloadError, download, exclusive, mirrored

CONTENT = np.random.default_rng(0).bytes(3_000_001)
OTHER = np.random.default_rng(1).bytes(len(CONTENT))
SHA256 = hashlib.sha256(CONTENT).hexdigest()
HALF = len(CONTENT) // 2


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WeightServer]:
    monkeypatch.setenv("NO_PROXY", "*")
    for name in ("UNISOLO_MIRROR", "UNISOLO_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    with serving(WeightServer(CONTENT)) as running:
        yield running


def fetch(server: WeightServer, path: Path, **arguments: object) -> Path:
    values = {"quiet": True, "wait": 0.01, "timeout": 5.0, "attempts": 3, "sha256": SHA256}
    return download(server.url, path, **{**values, **arguments})  # type: ignore[arg-type]


def ranges(server: WeightServer) -> list[str | None]:
    return [seen.range for seen in server.seen]


def leftovers(path: Path) -> list[str]:
    return sorted(found.name for found in path.parent.iterdir())


def test_a_file_arrives_whole_and_once(server: WeightServer, tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "weights.pth"
    for _ in range(2):
        assert fetch(server, path) == path
        assert path.read_bytes() == CONTENT
        assert leftovers(path) == ["weights.pth"]
    assert ranges(server) == [None]  # the second call asks nobody
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask


def test_a_cut_is_resumed_in_the_same_call(server: WeightServer, tmp_path: Path) -> None:
    server.manners = ["cut", "cut"]
    path = fetch(server, tmp_path / "weights.pth")
    assert path.read_bytes() == CONTENT
    rest = len(CONTENT) - HALF
    assert ranges(server) == [None, f"bytes={HALF}-", f"bytes={HALF + rest // 2}-"]
    assert [seen.if_range for seen in server.seen] == [None, '"one"', '"one"']
    assert [seen.status for seen in server.seen] == [200, 206, 206]
    assert leftovers(path) == ["weights.pth"]


def test_a_failed_call_is_resumed_by_the_next(server: WeightServer, tmp_path: Path) -> None:
    server.manners = ["cut"]
    path = tmp_path / "weights.pth"
    with pytest.raises(DownloadError) as caught:
        fetch(server, path, attempts=1)
    message = str(caught.value)
    assert f"cut off after {HALF} of {len(CONTENT)} bytes" in message
    assert f"call again to go on after {HALF} bytes" in message
    assert f"fetch {server.url} on another machine and put the file here: {path}" in message
    assert not path.exists()
    assert leftovers(path) == ["weights.pth.part", "weights.pth.part.json"]
    fetch(server, path)
    assert path.read_bytes() == CONTENT and ranges(server)[1] == f"bytes={HALF}-"


def test_a_killed_process_is_resumed(server: WeightServer, tmp_path: Path) -> None:
    server.manners = ["stop"]
    path = tmp_path / "weights.pth"
    process = start(server, path)
    part = tmp_path / "weights.pth.part"
    wait_for(lambda: part.exists() and part.stat().st_size == HALF)
    process.send_signal(signal.SIGKILL)
    process.wait()
    fetch(server, path)
    assert path.read_bytes() == CONTENT and ranges(server) == [None, f"bytes={HALF}-"]
    assert leftovers(path) == ["weights.pth"]


def test_a_complete_part_needs_no_request(server: WeightServer, tmp_path: Path) -> None:
    """The process ended between the last byte and the renaming."""
    server.manners = ["cut"]
    path = tmp_path / "weights.pth"
    with pytest.raises(DownloadError):
        fetch(server, path, attempts=1)
    (tmp_path / "weights.pth.part").write_bytes(CONTENT)
    fetch(server, path)
    assert path.read_bytes() == CONTENT and len(server.seen) == 1


@pytest.mark.parametrize("manner", ["no-range", "wrong-range"])
def test_servers_without_ranges_start_anew(
    server: WeightServer, tmp_path: Path, manner: str
) -> None:
    server.manners = ["cut", manner]
    path = fetch(server, tmp_path / "weights.pth")
    assert path.read_bytes() == CONTENT and ranges(server)[1] == f"bytes={HALF}-"
    assert leftovers(path) == ["weights.pth"]


@pytest.mark.parametrize("manner", ["", "ignore-if-range"])
def test_a_changed_file_starts_anew(server: WeightServer, tmp_path: Path, manner: str) -> None:
    """Without a hash nothing else would notice the mixture."""
    server.manners = ["cut"]
    path = tmp_path / "weights.pth"
    with pytest.raises(DownloadError):
        fetch(server, path, attempts=1, sha256="")
    server.manners, server.content, server.etag = [manner], OTHER, '"two"'
    fetch(server, path, sha256="")
    assert path.read_bytes() == OTHER and ranges(server)[1] == f"bytes={HALF}-"


def test_a_part_belongs_to_its_address(server: WeightServer, tmp_path: Path) -> None:
    server.manners = ["cut"]
    path = tmp_path / "weights.pth"
    with pytest.raises(DownloadError):
        fetch(server, path, attempts=1)
    server.content = OTHER
    download(f"{server.base}/other.pth", path, quiet=True)
    assert path.read_bytes() == OTHER and ranges(server) == [None, None]


def test_a_file_that_became_shorter_than_the_part(server: WeightServer, tmp_path: Path) -> None:
    server.manners = ["cut", "ignore-if-range"]
    path = tmp_path / "weights.pth"
    with pytest.raises(DownloadError):
        fetch(server, path, attempts=1, sha256="")
    server.content = CONTENT[:1000]
    fetch(server, path, sha256="")
    assert path.read_bytes() == CONTENT[:1000]
    assert [seen.status for seen in server.seen] == [200, 416, 200]


@pytest.mark.parametrize(
    ("etag", "modified", "asked"),
    [
        (None, DATE, f"bytes={HALF}-"),
        ('W/"weak"', DATE, f"bytes={HALF}-"),
        ('W/"weak"', None, None),  # promises no equal bytes
        (None, None, None),
    ],
)
def test_only_what_can_be_told_unchanged_is_resumed(
    server: WeightServer, tmp_path: Path, etag: str | None, modified: str | None, asked: str | None
) -> None:
    server.manners, server.etag, server.modified = ["cut"], etag, modified
    path = fetch(server, tmp_path / "weights.pth")
    assert path.read_bytes() == CONTENT and ranges(server) == [None, asked]
    assert server.seen[1].if_range == (DATE if asked else None)


@pytest.mark.parametrize("note", [b"", b"[]", b'{"address": 3}', b"\xff", b'{"size": "x"}'])
def test_a_damaged_note_is_no_reason_to_fail(
    server: WeightServer, tmp_path: Path, note: bytes
) -> None:
    (tmp_path / "weights.pth.part").write_bytes(OTHER)
    (tmp_path / "weights.pth.part.json").write_bytes(note)
    path = fetch(server, tmp_path / "weights.pth")
    assert path.read_bytes() == CONTENT and ranges(server) == [None]


def test_errors_that_stay_are_told_at_once(server: WeightServer, tmp_path: Path) -> None:
    server.manners = ["404", "403"]
    path = tmp_path / "weights.pth"
    for number, words in ((1, "answers 404 Not Found"), (2, "answers 403 Forbidden")):
        with pytest.raises(DownloadError, match=words) as caught:
            fetch(server, path)
        assert len(server.seen) == number
        assert f"fetch {server.url} on another machine and put the file here: {path}" in str(
            caught.value
        )
    assert leftovers(path) == []


def test_errors_that_pass_are_tried_again(
    server: WeightServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.manners = ["500", "503"]
    path = fetch(server, tmp_path / "weights.pth", quiet=False)
    assert path.read_bytes() == CONTENT and len(server.seen) == 3
    printed = capsys.readouterr().err
    assert "answers 500 Internal Server Error; trying again in 0.01 s" in printed
    assert "answers 503 Service Unavailable; trying again in 0 s" in printed
    server.manners = ["500"] * 9
    with pytest.raises(DownloadError, match=r"answers 500 .* \(4 attempts\); try later"):
        fetch(server, tmp_path / "other.pth", attempts=4)
    assert len(server.seen) == 7


def test_a_body_shorter_than_said_is_no_file(server: WeightServer, tmp_path: Path) -> None:
    server.manners = ["long"] * 3
    path = tmp_path / "weights.pth"
    with pytest.raises(DownloadError, match=rf"after {len(CONTENT)} of {len(CONTENT) + 1000}"):
        fetch(server, path, sha256="", attempts=1)
    assert not path.exists()


def test_without_a_length_the_hash_decides(server: WeightServer, tmp_path: Path) -> None:
    server.manners = ["no-length"]
    assert fetch(server, tmp_path / "weights.pth").read_bytes() == CONTENT


def test_a_server_that_falls_silent_is_left(server: WeightServer, tmp_path: Path) -> None:
    server.manners = ["stop"]
    began = time.monotonic()
    path = fetch(server, tmp_path / "weights.pth", timeout=0.3)
    assert time.monotonic() - began < 5
    assert path.read_bytes() == CONTENT and ranges(server) == [None, f"bytes={HALF}-"]


def test_a_wrong_hash_leaves_nothing(server: WeightServer, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    with pytest.raises(DownloadError) as caught:
        fetch(server, path, sha256="0123abcd")
    assert f"starts with {SHA256[:8]} where 0123abcd is published; it was deleted" in str(
        caught.value
    )
    assert leftovers(path) == [] and len(server.seen) == 1
    assert fetch(server, path, sha256=SHA256[:8].upper()).read_bytes() == CONTENT


def test_a_file_put_by_hand_is_used_if_it_is_the_right_one(
    server: WeightServer, tmp_path: Path
) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(CONTENT)
    fetch(server, path)
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(DownloadError, match=r"damaged or another file.*delete it"):
        fetch(server, path)
    assert path.exists() and not server.seen  # not ours to delete


def test_redirects_stay_on_http(server: WeightServer, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    for address in ("ftp://127.0.0.1/weights.pth", "file:///etc/passwd", "data:,hello"):
        server.manners = [f"to {address}"]
        with pytest.raises(DownloadError, match=r"not followed|not allowed"):
            fetch(server, path, sha256="")
        assert not path.exists()
    server.manners = ["cut", f"to {server.base}/elsewhere"]
    assert fetch(server, path).read_bytes() == CONTENT
    assert server.seen[-1].path == "/elsewhere" and server.seen[-1].range == f"bytes={HALF}-"


@pytest.mark.parametrize(
    ("manner", "words"), [("html", "a web page instead"), ("gzip", "encoding 'gzip'")]
)
def test_other_answers_are_refused(
    server: WeightServer, tmp_path: Path, manner: str, words: str
) -> None:
    server.manners = [manner]
    with pytest.raises(DownloadError, match=words):
        fetch(server, tmp_path / "weights.pth", sha256="")
    assert leftovers(tmp_path / "weights.pth") == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_named(server: WeightServer, tmp_path: Path) -> None:
    (tmp_path / "weights.pth.part").symlink_to("/dev/full")
    with pytest.raises(DownloadError, match=r"disk is full.*UNISOLO_HOME"):
        fetch(server, tmp_path / "weights.pth")
    assert len(server.seen) == 1  # trying again would not help
    server.manners = ["endless"]
    with pytest.raises(DownloadError, match=f"needs {2**60} bytes and its disk has"):
        fetch(server, tmp_path / "other.pth")


def test_a_folder_that_cannot_be_made_is_named(server: WeightServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DownloadError, match=r"file.* cannot be written"):
        fetch(server, tmp_path / "file" / "weights.pth")
    assert not server.seen


def test_no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    with serving(WeightServer(b"")) as stopped:
        pass
    path = tmp_path / "weights.pth"
    with pytest.raises(DownloadError, match=r"no connection .*\(3 attempts\).*put the file here"):
        fetch(stopped, path)
    with pytest.raises(DownloadError, match=r"no connection .*check the network.*put the file"):
        download("http://host.invalid/weights.pth", path, quiet=True)


def test_offline_and_mirror(
    server: WeightServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, path = "https://weights.invalid/a/b.pth?x=1", tmp_path / "weights.pth"
    monkeypatch.setenv("UNISOLO_OFFLINE", "1")
    with pytest.raises(DownloadError) as caught:
        download(url, path)
    expected = f"fetch {url} on another machine and put the file here: {path}"
    assert str(caught.value) == f"UNISOLO_OFFLINE is set: {expected}"
    monkeypatch.setenv("UNISOLO_OFFLINE", "0")
    monkeypatch.setenv("UNISOLO_MIRROR", f"{server.base}/mirror/")
    assert mirrored(url) == f"{server.base}/mirror/a/b.pth?x=1"
    download(url, path, sha256=SHA256, quiet=True)
    assert path.read_bytes() == CONTENT and server.seen[0].path == "/mirror/a/b.pth?x=1"
    monkeypatch.setenv("UNISOLO_MIRROR", "ftp://mirror")
    with pytest.raises(ValueError, match="UNISOLO_MIRROR 'ftp://mirror' must look like"):
        download(url, tmp_path / "new.pth")
    with pytest.raises(ValueError, match="address 'file:///etc/passwd' must look like"):
        mirrored("file:///etc/passwd")


def test_progress_in_lines_and_none(
    server: WeightServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fetch(server, tmp_path / "weights.pth", quiet=False)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "weights.pth: 0.0 of 3.0 MB" and lines[-1] == "weights.pth: 3.0 of 3.0 MB"
    assert 3 <= len(lines) <= 12
    fetch(server, tmp_path / "other.pth")
    assert capsys.readouterr() == ("", "")


def test_progress_on_a_terminal_is_a_bar(server: WeightServer, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    process = start(server, tmp_path / "weights.pth", stderr=theirs)
    os.close(theirs)
    printed = b""
    while process.poll() is None or printed.count(b"\n") < 1:
        try:
            printed += os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
    os.close(ours)
    assert process.wait() == 0
    assert "━" in printed.decode(errors="replace") and b"3.0" in printed


def test_two_processes_fetch_once(server: WeightServer, tmp_path: Path) -> None:
    server.manners = ["stop"]  # the first one is held up until the second one waits
    path = tmp_path / "weights.pth"
    first = start(server, path)
    part = tmp_path / "weights.pth.part"
    wait_for(lambda: part.exists() and part.stat().st_size == HALF)
    second = start(server, path)
    assert second.stderr is not None
    assert "waiting for another process" in second.stderr.readline()
    server.go_on.set()
    assert first.wait() == 0 and second.wait() == 0
    assert path.read_bytes() == CONTENT and ranges(server) == [None, f"bytes={HALF}-"]
    assert leftovers(path) == ["weights.pth"]
    assert "MB" not in second.stderr.read()


def test_the_lock_lets_one_in_and_leaves_nothing(tmp_path: Path) -> None:
    """Many short holders: the lock's file comes and goes, and still only one is inside."""
    code = (
        "import sys, time; from pathlib import Path; from unisolo.download import exclusive\n"
        "path = Path(sys.argv[1])\n"
        "for _ in range(60):\n"
        "    with exclusive(path, quiet=True):\n"
        "        number = int(path.read_text()); time.sleep(0.0005)\n"
        "        path.write_text(str(number + 1))\n"
    )
    path = tmp_path / "number"
    path.write_text("0")
    processes = [subprocess.Popen([sys.executable, "-c", code, str(path)]) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert path.read_text() == "180" and leftovers(path) == ["number"]
    with (
        pytest.raises(OSError, match=r"none/\.a\.lock cannot be made"),
        exclusive(tmp_path / "none" / "a"),
    ):
        pass


def start(
    server: WeightServer, path: Path, *, stderr: int = subprocess.PIPE
) -> subprocess.Popen[str]:
    code = (
        "import sys; from pathlib import Path; from unisolo.download import download\n"
        f"download(sys.argv[1], Path(sys.argv[2]), sha256={SHA256!r}, wait=0.01, timeout=30)\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, server.url, str(path)], stderr=stderr, text=True
    )


def wait_for(condition: object, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        if time.monotonic() > deadline:
            raise TimeoutError("it did not come to that")
        time.sleep(0.01)
