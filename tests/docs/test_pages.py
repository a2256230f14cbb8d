"""Every page says what is true: its code runs, its links lead somewhere, its commands exist."""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from pages import (
    DOCS,
    INSTALLS,
    PAGES,
    ROOT,
    Block,
    anchors,
    blocks,
    command_lines,
    links,
    read_configuration,
    run_page,
    words_of,
)

from unisolo.cli import app

sys.path.insert(0, str(ROOT / "tools" / "docs"))
from references import command_reference, configuration_reference, sections

FAST = ("index.md", "configuration.md")
"""Pages whose code takes a second; the others' takes a minute or more."""

ALL = [block for page in PAGES for block in blocks(page)]
RUN = [
    page for page in PAGES if page.name != "deploy.md"
]  # test_deploy_page.py looks at its output


def of(language: str) -> list[Block]:
    return [block for block in ALL if block.language == language]


def command(words: list[str]) -> tuple[str, list[str]] | None:
    """Name and arguments of a line that is a command of ours."""
    if words[:1] == ["unisolo"] and len(words) > 1 and not words[1].startswith("-"):
        return words[1], words[2:]
    for number, word in enumerate(words):
        if word.startswith("tools/") and word.count("/") == 1:
            name = Path(word).stem
            return {"make_shapes": "shapes"}.get(name, name), words[number + 1 :]
    return None


def test_what_is_not_run_says_why() -> None:
    reasons = {block.name: block.not_run for block in ALL if block.not_run}
    for name, reason in reasons.items():
        print(f"{name}: {reason}")
        assert len(reason.split()) > 2, name
    assert len(reasons) < len(of("sh") + of("python")) / 2


def test_every_page_that_has_code_is_found() -> None:
    assert {"quickstart.md", "concepts.md", "README.md"} <= {block.page.name for block in ALL}
    assert len(of("python")) > 5
    assert len(of("sh")) > 10


@pytest.mark.parametrize("block", of("sh"), ids=lambda block: block.name)
def test_commands_exist_with_their_options(block: Block) -> None:
    group = typer.main.get_command(app)
    for line in command_lines(block):
        found = command(words_of(line))
        if found is None:
            # A page that sends a reader elsewhere says so with a mark.
            assert block.not_run or line.startswith((*INSTALLS, "python ", "unisolo -")), line
            continue
        name, arguments = found
        group.commands[name].make_context(name, list(arguments))  # type: ignore[attr-defined]


@pytest.mark.parametrize("block", of("python"), ids=lambda block: block.name)
def test_python_compiles(block: Block) -> None:
    compile(block.text, block.name, "exec")


@pytest.mark.parametrize("block", of("yaml"), ids=lambda block: block.name)
def test_yaml_is_a_configuration(block: Block) -> None:
    if not block.not_run:
        read_configuration(block)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        if "://" in link or link.startswith("mailto:"):
            print(f"{page.name}: {link}")
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {link}"
        generated = ("configuration.md", "commands.md", "api.md", "api_parts.md")
        if anchor and target.suffix == ".md" and target.name not in generated:
            assert anchor in anchors(target), f"{page.name}: {link}"


def test_pictures_are_light() -> None:
    for picture in (DOCS / "images").iterdir():
        if picture.name != "quickstart.jpg":
            assert picture.stat().st_size <= 150_000, picture


def test_the_configuration_reference_has_every_field() -> None:
    from unisolo.config import Config

    text = configuration_reference()
    for prefix, section in sections(Config):
        for name in section.model_fields:
            key = f"{prefix}.{name}" if prefix else name
            assert f"| `{key}` |" in text or f"## {key}\n" in text, key
    assert "| `train.lr` | `float > 0` | `0.01` | Learning rate at a batch of" in text


def every_command(group: Any, prefix: str = "") -> dict[str, Any]:
    """All commands of the program by their words, as the parser has them."""
    found = {}
    for name, inner in group.commands.items():
        if hasattr(inner, "commands"):
            found.update(every_command(inner, f"{prefix}{name} "))
        elif not inner.hidden:
            found[prefix + name] = inner
    return found


def test_the_command_reference_has_every_option() -> None:
    text = command_reference()
    found = every_command(typer.main.get_command(app))
    assert re.findall(r"^## (.+)$", text, flags=re.MULTILINE) == sorted(found)
    for name, inner in found.items():
        part = text.split(f"## {name}\n")[1].split("\n## ")[0]
        assert inspect.cleandoc(inner.help).split("\n")[0] in part.replace("\\", "")
        rows = [line for line in part.splitlines() if line.startswith("| `")]
        shown = {flag for row in rows for flag in row.split("`")[1].split(", ")}
        for option in inner.params:
            if option.param_type_name == "option":
                assert {*option.opts, *option.secondary_opts} <= shown, (name, option.opts)
        assert len(rows) == len(inner.params)


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=() if page.name in FAST else pytest.mark.slow) for page in RUN],
    ids=lambda page: page.name,
)
def test_the_code_of_a_page_runs(page: Path, scratch: Path, request: pytest.FixtureRequest) -> None:
    if ".pth" in page.read_text():
        source = request.getfixturevalue("weights")
        for name in ("solov2_r50.pth", "SOLOv2_R50_3x.pth"):
            (scratch / name).unlink(missing_ok=True)
            (scratch / name).symlink_to(source)
    run_page(page, scratch)
