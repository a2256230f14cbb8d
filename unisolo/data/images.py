"""Pictures of any kind in, upright uint8 RGB arrays out; for the data sets and `Predictor`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from unisolo.reading import file_problem

__all__ = [
    "IMAGE_ENDINGS",
    "ImageError",
    "ImageInput",
    "image_files",
    "read_image",
    "to_rgb_array",
]

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp")
"""Of the files that are taken for images, in lower case, the usual ones first."""

ImageInput: TypeAlias = str | os.PathLike[str] | Image.Image | npt.NDArray[np.uint8] | Tensor
"""What `to_rgb_array` takes."""


class ImageError(ValueError):
    """A file that cannot be used as an image; the message names the file and the fix.

    Attributes:
        code: What kind of fault: "image-missing", "image-empty", "image-damaged",
            "image-unreadable" (not an image) or "image-pixels" (of a kind or number not taken).
    """

    def __init__(self, message: str, code: str = "image-pixels") -> None:
        super().__init__(message)
        self.code = code


def image_files(folder: Path) -> list[Path]:
    """Return the image files under a folder, by name; hidden ones are left out."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_ENDINGS and path.is_file() and not path.name.startswith(".")
    )


def read_image(path: str | os.PathLike[str]) -> npt.NDArray[np.uint8]:
    """Read an image file as people see it.

    The EXIF orientation is applied. Grey, palette and CMYK images become RGB. Transparent areas
    are laid over white, as viewers show them. 16-bit values are scaled to 8 bits (65535 -> 255),
    not clipped. Of an animation the first frame is taken.

    Args:
        path: Any file that Pillow reads.

    Returns:
        [H, W, 3] uint8 RGB, contiguous.

    Raises:
        ImageError: If the file is missing, empty, truncated, not an image, no regular file (a pipe
            or device is never opened), of a kind that has no natural 8-bit form (float or 32-bit
            values), or so large that it may be a decompression bomb.
    """
    path = Path(path)
    problem = file_problem(path, "image file")
    if problem is not None:
        raise ImageError(f"{path}: {problem}; check the path", "image-missing")
    if path.stat().st_size == 0:
        raise ImageError(
            f"{path}: the file is empty (0 bytes); copy or download it again", "image-empty"
        )
    with _named_errors(str(path)), Image.open(path) as image:
        return _pil_to_rgb(image)


@contextmanager
def _named_errors(name: str) -> Iterator[None]:
    """Turn whatever decoding raises into an ImageError that names the image."""
    try:
        yield
    except ImageError as error:
        raise ImageError(f"{name}: {error}", error.code) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError(
            f"{name}: the image has so many pixels that it may be a decompression bomb, so it is "
            "not decoded; if you trust it, make it smaller or raise PIL.Image.MAX_IMAGE_PIXELS"
        ) from None
    except UnidentifiedImageError:
        raise ImageError(
            f"{name}: not an image in a format Pillow reads; convert it to JPEG or PNG",
            "image-unreadable",
        ) from None
    # A damaged file makes decoders fail in many ways (OSError, SyntaxError, struct.error, ...);
    # whichever it is, the person needs the name of the file.
    except Exception as error:
        raise ImageError(
            f"{name}: damaged or truncated image ({error}); copy or download it again",
            "image-damaged",
        ) from error


def to_rgb_array(image: ImageInput, bgr: bool = False) -> npt.NDArray[np.uint8]:
    """Bring any accepted kind of image to one form.

    Args:
        image: A path; a PIL image (treated as `read_image` treats files); an ndarray, uint8,
            [H, W, 3] RGB or [H, W] grey; or a tensor, uint8, [3, H, W] RGB.
        bgr: The channels of an ndarray or tensor are blue, green, red (OpenCV's order). Files and
            PIL images know their own order and are not affected.

    Returns:
        [H, W, 3] uint8 RGB, contiguous and writable; may share memory with `image`.

    Raises:
        ImageError: If a file or PIL image cannot be used.
        ValueError: If an array or tensor has the wrong rank, dtype or no pixels; the message gives
            what was received.
        TypeError: If `image` is none of the kinds above.
    """
    if isinstance(image, (str, os.PathLike)):
        return read_image(image)
    if isinstance(image, Image.Image):
        # Images that were opened and not yet decoded fail only here.
        with _named_errors(str(getattr(image, "filename", "") or "PIL image")):
            return _pil_to_rgb(image)
    if isinstance(image, Tensor):
        if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
            raise ValueError(
                "an image tensor must be uint8 [3, H, W], got "
                f"{str(image.dtype).removeprefix('torch.')} {list(image.shape)}"
            )
        array = image.detach().cpu().numpy().transpose(1, 2, 0)
    elif isinstance(image, np.ndarray):
        array = image
        grey = array.ndim == 2
        if array.dtype != np.uint8 or not (grey or (array.ndim == 3 and array.shape[2] == 3)):
            raise ValueError(
                "an image array must be uint8, [H, W, 3] RGB or [H, W] grey, got "
                f"{array.dtype} {list(array.shape)}"
            )
        if grey:
            array = np.repeat(array[:, :, None], 3, axis=2)
    else:
        raise TypeError(
            "an image must be a path, a PIL image, a numpy array or a tensor, got "
            f"{type(image).__name__}"
        )
    if array.size == 0:
        raise ValueError(f"the image has no pixels: shape {list(image.shape)}")
    if bgr:
        array = array[:, :, ::-1]
    # E: a masked array or matrix becomes a plain one.
    return np.require(array, requirements=["C", "W", "E"])


def _pil_to_rgb(image: Image.Image) -> npt.NDArray[np.uint8]:
    if image.format == "EPS":  # decoded by running it in Ghostscript
        raise ImageError("an EPS file is a program, not an image; save it as PNG")
    image.load()  # before the orientation is asked for: TIFF applies its own while loading
    image = _upright(image)
    if image.mode.startswith("I;16") or image.mode == "I":
        return _grey16_to_rgb(np.asarray(image))
    if image.mode == "F":
        raise ImageError("float pixels have no natural 8-bit form; save it as an 8 or 16-bit image")
    if image.mode in ("La", "RGBa"):  # premultiplied alpha
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))


_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What each value of the EXIF tag Orientation asks for; 1 is upright."""


def _upright(image: Image.Image) -> Image.Image:
    """Turn an image as its EXIF says, where that can be read.

    Not by `ImageOps.exif_transpose`: it writes the whole EXIF block anew, so that damage anywhere
    in it would lose an orientation that every viewer applies.
    """
    try:
        change = _UPRIGHT.get(int(image.getexif().get(0x0112, 1)))
    # Broken EXIF blocks are common and say nothing about the pixels.
    except Exception:
        return image
    return image if change is None else image.transpose(change)


def _grey16_to_rgb(values: npt.NDArray[np.generic]) -> npt.NDArray[np.uint8]:
    wide = values.astype(np.int64)
    if wide.min() < 0 or wide.max() > 65535:
        raise ImageError("32-bit pixels have no natural 8-bit form; save it as 8 or 16-bit")
    grey = ((wide + 128) // 257).astype(np.uint8)  # 65535 / 255 = 257, rounded
    return np.repeat(grey[:, :, None], 3, axis=2)
