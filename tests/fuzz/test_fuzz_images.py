"""Image files of every kind with arbitrary changes."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuzzing import both, byte_changes, changed_bytes, reads
from hypothesis import strategies as st
from PIL import Image

from unisolo.data.images import read_image

pytestmark = pytest.mark.filterwarnings("ignore")

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 17, 3), dtype=np.uint8)


def _encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def _samples() -> dict[str, bytes]:
    rgb = Image.fromarray(PIXELS)
    exif = rgb.getexif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    moving: dict[str, Any] = {"save_all": True, "append_images": [rgb.transpose(0)]}
    samples = {
        "png": _encoded(rgb, "PNG", exif=exif),
        "png palette": _encoded(rgb.quantize(8), "PNG", transparency=3),
        "png 16": _encoded(Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 257), "PNG"),
        "apng": _encoded(rgb, "PNG", **moving),
        "jpeg": _encoded(rgb, "JPEG", exif=exif),
        "jpeg progressive": _encoded(rgb, "JPEG", progressive=True),
        "jpeg cmyk": _encoded(rgb.convert("CMYK"), "JPEG"),
        "mpo": _encoded(rgb, "MPO", **moving),
        "gif": _encoded(rgb, "GIF", **moving),
        "webp": _encoded(rgb, "WEBP", exif=exif),
        "webp moving": _encoded(rgb, "WEBP", **moving),
        "tiff": _encoded(rgb, "TIFF", exif=exif),
        "tiff lzw": _encoded(rgb, "TIFF", compression="tiff_lzw"),
        "tiff float": _encoded(Image.fromarray(PIXELS[..., 0].astype(np.float32)), "TIFF"),
        "bmp": _encoded(rgb, "BMP"),
        "tga": _encoded(rgb, "TGA"),
        "ppm": _encoded(rgb, "PPM"),
        "ico": _encoded(rgb.resize((16, 16)), "ICO"),
        "pcx": _encoded(rgb, "PCX"),
        "sgi": _encoded(rgb, "SGI"),
        "dds": _encoded(rgb, "DDS"),
        "icns": _encoded(rgb.resize((16, 16)), "ICNS"),
        "eps": _encoded(rgb, "EPS"),
    }
    for kind in ("JPEG2000", "AVIF"):
        try:
            samples[kind.lower()] = _encoded(rgb, kind)
        except (OSError, KeyError):  # not in every build of Pillow
            continue
    return samples


SAMPLES = _samples()


@pytest.fixture(autouse=True, scope="module")
def small_images() -> Iterator[None]:
    """Headers that promise many pixels are refused early, so that no case takes long."""
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, 2**20
    yield
    Image.MAX_IMAGE_PIXELS = before


@both(st.tuples(st.sampled_from(sorted(SAMPLES)), byte_changes()), many=10_000, smoke=60)
def check_image(folder: Path, case: Any) -> None:
    name, changes = case
    path = folder / "image.bin"
    path.write_bytes(changed_bytes(SAMPLES[name], changes))
    array = reads("images", lambda: read_image(path), str(path))
    if array is not None:
        assert array.dtype == np.uint8
        assert array.ndim == 3
        assert array.shape[2] == 3
        assert array.size > 0


TestImages = check_image
