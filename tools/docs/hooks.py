"""What mkdocs does while it builds: put generated and shared text where a page asks for it.

A page asks with a line `<!-- insert: NAME -->`; NAME is a key of `INSERTS`.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from references import command_reference, configuration_reference

TOP = Path(__file__).resolve().parents[2]


def top_file(name: str) -> str:
    """A text file of the repository's top folder, without its title, links seen from docs/."""
    text = (TOP / name).read_text(encoding="utf-8")
    body = text.split("\n", 1)[1] if text.startswith("# ") else text
    return re.sub(r"\]\(docs/", "](", body)


INSERTS = {
    "configuration": configuration_reference,
    "commands": command_reference,
    "changelog": lambda: top_file("CHANGELOG.md"),
    "contributing": lambda: top_file("CONTRIBUTING.md"),
}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs with the text of each page.

    Raises:
        ValueError: If a page asks for text that does not exist.
    """

    def text(match: re.Match[str]) -> str:
        if match[1] not in INSERTS:
            raise ValueError(f"no text named {match[1]!r}; there are {', '.join(INSERTS)}")
        return INSERTS[match[1]]()

    return re.sub(r"^<!-- insert: (\S+) -->$", text, markdown, flags=re.MULTILINE)
