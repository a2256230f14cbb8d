"""ONNX Runtime Web: the files a page needs, fetched once by npm and checked."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

from unisolo.download import exclusive
from unisolo.zoo import cache_home

__all__ = ["RUNTIME_FILES", "RUNTIME_VERSION", "runtime_files"]

PACKAGE = "onnxruntime-web"
RUNTIME_VERSION = "1.30.0"
_TARBALL = f"{PACKAGE}-{RUNTIME_VERSION}.tgz"
_TARBALL_SHA512 = (
    "ab4cbe26baedba45d2cec05610c71c55fa97db92d19a8b171c5f8269126683ca"
    "590a5cdc57bb2f35ce2b298de32f4d956fb42644c0ecd528a0a91e025c07ca61"
)

RUNTIME_FILES = {
    "ort.wasm.min.mjs": "219e6a1fc8a9938268d18efca3c91d310bd2f4a59bbd13744df5b2b7fc6cee3b",
    "ort-wasm-simd-threaded.mjs": (
        "e13f7f94fc51b4ca72b12faeb1ee95f4ace6dfbc8939bc718aabdc0a27c4299b"
    ),
    "ort-wasm-simd-threaded.wasm": (
        "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2"
    ),
    "ort.webgpu.min.mjs": "3dffff71811bc13a3a3d9591c57ca5ee5735b8f5f3eaf789510b02bb040ae3a0",
    "ort-wasm-simd-threaded.asyncify.mjs": (
        "3d1c85995364bb643302fc6fd877a0c3ba5ae72401815e0f24828a53d9191e28"
    ),
    "ort-wasm-simd-threaded.asyncify.wasm": (
        "39f9f0894d478800487ed9f7dbe92618498db320cf55c8e3d89adff8dce658da"
    ),
}
"""Files of the package's folder `dist` that a page loads, with their SHA-256: those for
WebAssembly, then those for WebGPU, which only browsers that have it load."""

_LICENCES = ("LICENSE", "ThirdPartyNotices.txt")
"""ONNX Runtime's; the npm package leaves them out, the Python package has them."""


def runtime_files(out: Path, source: str | os.PathLike[str] | None = None) -> None:
    """Put the runtime's files and their licences into a folder.

    Args:
        out: The folder; made if missing.
        source: The package as a .tgz file, or a folder with its files (unpacked, or installed by
            npm). None = the cache (`UNISOLO_HOME/runtimes`), where npm puts it at the first use.

    Raises:
        ValueError: If the source is not the pinned version or is damaged.
        ImportError: If onnxruntime is not installed.
        OSError: If npm is missing or fails, or a file cannot be read or written.
    """
    try:
        import onnxruntime
    except ImportError:
        raise ImportError('a web page needs onnxruntime: pip install "unisolo[export]"') from None
    out.mkdir(parents=True, exist_ok=True)
    path = _cached() if source is None else Path(source)
    if path.is_dir():
        _copy_from_folder(path, out)
    else:
        _check_tarball(path)
        _unpack(path, out)
    for name in _LICENCES:
        shutil.copyfile(Path(onnxruntime.__file__).parent / name, out / name)


def _cached() -> Path:
    """The package in the cache, fetched if it is not there."""
    path = cache_home() / "runtimes" / _TARBALL
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with exclusive(path):
            if not path.is_file():  # another process may have been faster
                _fetch(path)
    return path


def _fetch(path: Path) -> None:
    """Let npm fetch the package, from the registry that npm is set up for."""
    by_hand = (
        f"run `npm pack {PACKAGE}@{RUNTIME_VERSION}` where npm works, and give the .tgz file that "
        "it writes as --runtime"
    )
    if os.environ.get("UNISOLO_OFFLINE", "") not in ("", "0"):
        raise OSError(f"{_TARBALL} is not in the cache, and UNISOLO_OFFLINE is set: {by_hand}")
    npm = shutil.which("npm")
    if npm is None:
        raise OSError(
            f"npm, which fetches {_TARBALL}, is not installed: install Node.js, or {by_hand}"
        )
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".npm-") as folder:
        command = [npm, "pack", f"{PACKAGE}@{RUNTIME_VERSION}", "--pack-destination", folder]
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)
        except subprocess.TimeoutExpired:
            raise OSError(f"npm took longer than 10 minutes for {_TARBALL}: {by_hand}") from None
        fetched = Path(folder) / _TARBALL
        if done.returncode != 0 or not fetched.is_file():
            lines = [line for line in done.stderr.splitlines() if "error" in line.lower()]
            reason = lines[0].strip() if lines else f"exit code {done.returncode}"
            raise OSError(f"npm could not fetch {_TARBALL} ({reason}): {by_hand}")
        _check_tarball(fetched)
        os.replace(fetched, path)


def _check_tarball(path: Path) -> None:
    if not path.is_file():
        raise ValueError(f"{path}: no such file or folder; --runtime takes {_TARBALL}")
    if _digest(path, hashlib.sha512) != _TARBALL_SHA512:
        raise ValueError(
            f"{path}: is not {_TARBALL} as it was published, or is damaged; delete it and let npm "
            f"fetch it again (`npm pack {PACKAGE}@{RUNTIME_VERSION}`)"
        )


def _unpack(tarball: Path, out: Path) -> None:
    with tarfile.open(tarball) as archive:
        for name in RUNTIME_FILES:
            member = archive.extractfile(f"package/dist/{name}")
            if member is None:
                raise ValueError(f"{tarball}: holds no file dist/{name}")
            with member, open(out / name, "wb") as file:
                shutil.copyfileobj(member, file)


def _copy_from_folder(folder: Path, out: Path) -> None:
    places = (folder, folder / "dist", folder / "package" / "dist")
    found = next((place for place in places if (place / "ort.wasm.min.mjs").is_file()), None)
    if found is None:
        raise ValueError(f"{folder}: holds no {PACKAGE} (a file dist/ort.wasm.min.mjs)")
    for name, sha256 in RUNTIME_FILES.items():
        path = found / name
        if not path.is_file() or _digest(path, hashlib.sha256) != sha256:
            raise ValueError(
                f"{path}: is missing, damaged, or of another version than {RUNTIME_VERSION}"
            )
        shutil.copyfile(path, out / name)


def _digest(path: Path, algorithm: Callable[[], hashlib._Hash]) -> str:
    digest = algorithm()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
