"""What every reader of foreign files needs: is it a file, does it parse, is a name inside."""

from __future__ import annotations

import errno
import json
import os
import reprlib
import stat
from typing import Any

__all__ = ["file_problem", "parse_json", "parse_yaml", "read_yaml", "relative_name", "short"]


def file_problem(path: str | os.PathLike[str], kind: str) -> str | None:
    """Say why a path cannot be opened as a file; asked before opening, which a pipe never ends.

    Args:
        path: The path; symbolic links are followed.
        kind: What it should be, e.g. "image file".

    Returns:
        The reason, or None where there is none.
    """
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return f"no such {kind}"
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ENAMETOOLONG):
            return f"no such {kind} ({error.strerror})"
        return f"cannot be read ({error.strerror})"
    except ValueError as error:  # a zero byte, or text that no file name can hold
        return f"no such {kind} ({error})"
    if stat.S_ISDIR(mode):
        return f"a folder, not {'an' if kind[0] in 'aeiou' else 'a'} {kind}"
    if not stat.S_ISREG(mode):
        return "not a regular file (a pipe, a device or a socket), so it is not opened"
    return None


def parse_json(text: str | bytes) -> Any:
    """Parse JSON.

    Raises:
        ValueError: If it is not JSON, holds a number of thousands of digits, or is nested so deep
            that reading it would break the interpreter.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def parse_yaml(text: str | bytes) -> Any:
    """Parse YAML of plain values, each written out.

    Aliases are refused: a few lines of them can stand for more values than fit in memory.

    Raises:
        ValueError: If it is not YAML, has an alias, or is nested so deep that reading it would
            break the interpreter.
    """
    import yaml

    try:
        for token in yaml.scan(text):
            if isinstance(token, yaml.AliasToken):
                line = token.start_mark.line + 1
                raise ValueError(f"aliases (*name) are not read; write the value out (line {line})")
        return yaml.safe_load(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    # Besides its own errors PyYAML lets through those of int() and datetime.
    except Exception as error:
        raise ValueError(str(error)) from None


def read_yaml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a YAML file that holds a mapping.

    Raises:
        ValueError: If the file is missing, holds no mapping, or as `parse_yaml`.
    """
    problem = file_problem(path, "YAML file")
    if problem is not None:
        raise ValueError(f"{path}: {problem}; check the path")
    try:
        with open(path, "rb") as file:
            tree = parse_yaml(file.read())
    except ValueError as error:
        raise ValueError(f"{path}: not usable YAML ({error})") from None
    if not isinstance(tree, dict):
        raise ValueError(f"{path}: must hold a mapping (key: value)")
    return tree


def relative_name(file_name: object) -> str | None:
    """Normalise a file name from a foreign file.

    Only the name is looked at. Symbolic links that the owner of the folder has put there are
    followed: data sets are often links to shared disks, and a name cannot make a link.

    Returns:
        A relative path with the system's separators that stays inside any folder it is joined
        to; None where the name is no text, is empty or leaves the folder.
    """
    if not isinstance(file_name, str) or not file_name or "\0" in file_name:
        return None
    try:
        os.fsencode(file_name)
    except UnicodeEncodeError:  # half a character
        return None
    relative = os.path.normpath(file_name.replace("\\", "/"))
    if os.path.isabs(relative) or os.path.splitdrive(relative)[0]:
        return None
    return None if relative.split(os.sep)[0] in ("..", ".") else relative


def short(value: object) -> str:
    """`repr` for messages, cut where a value is long or deep."""
    return _REPR.repr(value)


_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 120
_REPR.maxdict = _REPR.maxlist = 8
