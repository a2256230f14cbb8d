"""Fonts for labels: Pillow's own, and the system's for what it cannot write."""

from __future__ import annotations

import functools
import unicodedata
from typing import Any

from PIL import ImageFont, features

from unisolo.categories import Category

__all__ = ["Font", "category_name", "font_for"]

Font = Any  # Pillow has two classes, by whether it was built with FreeType

# Pillow looks these up by name in the system's folders. First fonts with many scripts, then the
# usual ones of Linux, macOS and Windows for Chinese, Japanese, Korean, Arabic and Indic scripts.
_SYSTEM_FONTS = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "NotoSansCJK-Regular.ttc",
    "NotoSansArabic-Regular.ttf",
    "NotoSansDevanagari-Regular.ttf",
    "wqy-microhei.ttc",
    "wqy-zenhei.ttc",
    "DroidSansFallbackFull.ttf",
    "Arial Unicode.ttf",
    "Hiragino Sans GB.ttc",
    "PingFang.ttc",
    "AppleSDGothicNeo.ttc",
    "Kohinoor.ttc",
    "arial.ttf",
    "msyh.ttc",
    "msgothic.ttc",
    "malgun.ttf",
    "Nirmala.ttf",
)
_UNASSIGNED = "\U0010fffe"
"""No character and never one: a font shows it as it shows all that it lacks."""
_SHAPED = ((0x0900, 0x0DFF), (0x0E80, 0x109F), (0x1780, 0x17FF))
"""Indic, Lao, Tibetan, Myanmar and Khmer letters, which join or change places."""


def font_for(text: str, size: int) -> Font | None:
    """Return a font of a size in pixels that has every letter of a text; None if none has."""
    name = _font_name(text)
    return None if name is None else _font(name, size)


def category_name(category: Category) -> str:
    """Return a category's name, or "category <id>" where no font here can write the name."""
    return f"category {category.id}" if _font_name(category.name) is None else category.name


@functools.lru_cache(maxsize=4096)
def _font_name(text: str) -> str | None:
    """The first font that can write a text; "" is Pillow's own."""
    if not text.isprintable() or (_needs_shaping(text) and not _can_shape()):
        return None
    return next((name for name in ("", *_SYSTEM_FONTS) if _covers(name, text)), None)


@functools.lru_cache(maxsize=64)
def _font(name: str, size: int) -> Font | None:
    if not name:
        return ImageFont.load_default(size)
    try:
        return ImageFont.truetype(name, size)
    except OSError:  # not on this machine
        return None


def _covers(name: str, text: str) -> bool:
    font = _font(name, 16)
    return font is not None and all(_has(name, letter) for letter in set(text) if letter != " ")


@functools.lru_cache(maxsize=4096)
def _has(name: str, letter: str) -> bool:
    font = _font(name, 16)
    return font is not None and _picture(font, letter) != _picture(font, _UNASSIGNED)


def _picture(font: Font, letter: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(letter)
    return mask.size, bytes(mask)


def _needs_shaping(text: str) -> bool:
    """Whether letters join, change places or run from right to left."""
    return any(
        unicodedata.bidirectional(letter) in ("R", "AL")
        or any(first <= ord(letter) <= last for first, last in _SHAPED)
        for letter in text
    )


@functools.cache
def _can_shape() -> bool:
    return bool(features.check("raqm") and features.check("fribidi"))
