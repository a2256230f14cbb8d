"""What every page is made with: its templates and its pictures."""

from __future__ import annotations

import base64
from typing import Any

from PIL import Image

from unisolo.encoding import encode_jpeg

__all__ = ["data_uri", "page_environment"]


def page_environment(package: str) -> Any:
    """Return the jinja environment of pages that extend `base.html.jinja`.

    Args:
        package: Where the page's own templates lie.
    """
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=ChoiceLoader([PackageLoader(package, "."), PackageLoader("unisolo.pages", ".")]),
        autoescape=True,  # file and category names are anybody's text
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def data_uri(picture: Image.Image) -> str:
    """Return a picture as the address that holds it."""
    data = encode_jpeg(picture, quality=80, sharp=False)
    return "data:image/jpeg;base64," + base64.b64encode(data).decode("ascii")
