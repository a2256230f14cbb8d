"""The documentation's pages as tests see them: blocks of code, links, headings; and how they run.

What a block's language means: `python` and `sh` are run in order, all of a page in one scratch
folder; `yaml` is read as a configuration; anything else is only shown. A block without a language
counts as `sh` if it begins with a command. A block that cannot run here has a line above it,
`<!-- not run: REASON -->`.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markdown.extensions.toc import slugify
from tiny_model import VALUES

from unisolo import load_config

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [*sorted(DOCS.glob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]

COMMANDS = ("unisolo", "python", "make", "pip", "git", "cd", "torchrun", "npm", "docker")
INSTALLS = ("make", "pip", "git", "cd")
"""Lines that begin so get or install the package, which the tests have."""

_FENCE = re.compile(r"((?:^<!-- .*? -->\n)*)^```(\w*)[^\n]*\n(.*?)^```", re.DOTALL | re.MULTILINE)
_MARK = re.compile(r"<!-- not run: (.+?) -->")
_LINK = re.compile(r"\]\(([^)\s]+)[^)]*\)")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, text, first line in the page, and why it is not run."""

    page: Path
    line: int
    language: str
    text: str
    not_run: str | None

    @property
    def name(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _FENCE.finditer(text):
        marks, language, body = match.groups()
        reason = _MARK.search(marks)
        if not language:
            language = "sh" if body.startswith(tuple(f"{word} " for word in COMMANDS)) else "text"
        language = {"bash": "sh", "console": "sh", "shell": "sh", "py": "python"}.get(
            language, language
        )
        line = text[: match.start(3)].count("\n") + 1
        found.append(Block(page, line, language, body, reason[1] if reason else None))
    return found


def command_lines(block: Block) -> list[str]:
    """The commands of a `sh` block, continued lines joined."""
    joined = block.text.replace("\\\n", " ")
    lines = (line.strip().removeprefix("$ ") for line in joined.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def words_of(line: str) -> list[str]:
    """The words of a command up to a pipe, `&&` or comment."""
    words = shlex.split(line, comments=True)
    ends = [n for n, word in enumerate(words) if word in ("|", "||", "&&", ";", "&", ">", "2>&1")]
    return words[: ends[0]] if ends else words


def links(page: Path) -> Iterator[str]:
    """Targets of the links and pictures of a page, code left out."""
    prose = re.sub(r"`[^`\n]*`", "", _FENCE.sub("", page.read_text(encoding="utf-8")))
    yield from _LINK.findall(prose)


def anchors(page: Path) -> set[str]:
    """Ids of the headings of a page."""
    prose = _FENCE.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", prose, flags=re.MULTILINE)
    plain = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in headings)
    return {slugify(heading.replace("`", ""), "-") for heading in plain}


def run_page(page: Path, folder: Path) -> list[str]:
    """Run the blocks of a page in a folder.

    Args:
        page: The page.
        folder: The working directory, with the files that pages speak of; must be the current one.

    Returns:
        What each `python` block printed.

    Raises:
        AssertionError: If a command's exit code is not one it may have.
        Exception: What a `python` block raises, with the page's name and line in its trace.
    """
    assert Path.cwd() == folder.resolve()
    names: dict[str, Any] = {"__name__": "__main__"}
    printed = []
    for block in blocks(page):
        if block.not_run:
            continue
        if block.language == "sh":
            for line in command_lines(block):
                run_command(line, block.name)
        elif block.language == "python":
            out = io.StringIO()
            code = "\n" * (block.line - 1) + block.text  # lines of the trace are the page's
            with contextlib.redirect_stdout(out):
                exec(compile(code, str(page), "exec"), names)
            printed.append(out.getvalue())
        elif block.language == "yaml":
            read_configuration(block)
    return printed


def read_configuration(block: Block) -> None:
    """Read a `yaml` block as if it were a file in the repository's top folder."""
    import yaml

    tree = yaml.safe_load(block.text)
    base = tree.pop("base", None)
    load_config(ROOT / base if base else None, values=tree)


def run_command(line: str, where: str) -> None:
    """Run one command line in a real shell, with what makes it small."""
    if line.startswith(INSTALLS):
        return
    added, allowed = _small(line)
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "UNISOLO_OFFLINE": "1",
    }
    done = subprocess.run(
        ["bash", "-c", " ".join([line.partition(" # ")[0], *added])],
        capture_output=True,
        text=True,
        env=environment,
        timeout=600,
        check=False,
    )
    assert done.returncode in allowed, f"{where}: {line}\n{done.stdout}\n{done.stderr}"


def _small(line: str) -> tuple[list[str], tuple[int, ...]]:
    """Words that make a command small, and the exit codes it may then have."""
    command = words_of(line)
    if command[0] == "python" and len(command) > 2 and command[1].startswith("docs/examples/"):
        command = command[1:]  # an example that is the `unisolo` command with more in it
    name = Path(command[1]).stem if len(command) > 1 else ""
    if name == "train" and "--replay" not in command:
        return [*tiny_settings(), "--overwrite"] if "resume" not in line else [], (0,)
    if name in ("shapes", "make_shapes"):
        return ["--train", "8", "--val", "3", "--size", "64"], (0,)
    if name == "export" and "--no-verify" not in command:
        return ["--no-verify"], (0,)  # tests/export compares files with their models
    if name == "doctor" and "--overfit" in command:
        return ["--steps", "2"], (0, 1)  # two steps teach nothing: the answer is no
    return [], (0,)


def tiny_settings() -> list[str]:
    """Settings that make any recipe a tiny one."""
    flat = {
        f"{section}.{key}": value for section, part in VALUES.items() for key, value in part.items()
    }
    flat.update({"model.frozen_stages": 0, "data.augment.sizes": [], "train.accumulate": 1})
    return [f"'{key}={value}'" for key, value in flat.items()]
