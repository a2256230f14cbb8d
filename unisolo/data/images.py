"""Pictures of any kind in, upright uint8 RGB arrays out; for the data sets and `Predictor`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

__all__ = ["ImageError", "ImageInput", "read_image", "to_rgb_array"]

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
        ImageError: If the file is missing, empty, truncated, not an image, of a kind that has no
            natural 8-bit form (float or 32-bit values), or so large that it may be a
            decompression bomb.
    """
    path = Path(path)
    if not path.is_file():
        kind = "a folder, not an image file" if path.is_dir() else "no such image file"
        raise ImageError(f"{path}: {kind}; check the path", "image-missing")
    if path.stat().st_size == 0:
        raise ImageError(
            f"{path}: the file is empty (0 bytes); copy or download it again", "image-empty"
        )
    try:
        with Image.open(path) as image:
            return _pil_to_rgb(image)
    except ImageError as error:
        raise ImageError(f"{path}: {error}", error.code) from None
    except Image.DecompressionBombError:
        raise ImageError(
            f"{path}: the image has so many pixels that it may be a decompression bomb, so it is "
            "not decoded; if you trust it, make it smaller or raise PIL.Image.MAX_IMAGE_PIXELS"
        ) from None
    except UnidentifiedImageError:
        raise ImageError(
            f"{path}: not an image in a format Pillow reads; convert it to JPEG or PNG",
            "image-unreadable",
        ) from None
    # A damaged file makes decoders fail in many ways (OSError, SyntaxError, struct.error, ...);
    # whichever it is, the person needs the name of the file.
    except Exception as error:
        raise ImageError(
            f"{path}: damaged or truncated image ({error}); copy or download it again",
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
        return _pil_to_rgb(image)
    if isinstance(image, Tensor):
        array = image.detach().cpu().numpy()
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[0] != 3:
            raise ValueError(
                "an image tensor must be uint8 [3, H, W], got "
                f"{str(image.dtype).removeprefix('torch.')} {list(image.shape)}"
            )
        array = array.transpose(1, 2, 0)
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
    return np.require(array, requirements=["C", "W"])


def _pil_to_rgb(image: Image.Image) -> npt.NDArray[np.uint8]:
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


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    # Broken EXIF blocks are common and say nothing about the pixels.
    except Exception:
        return image


def _grey16_to_rgb(values: npt.NDArray[np.generic]) -> npt.NDArray[np.uint8]:
    wide = values.astype(np.int64)
    if wide.min() < 0 or wide.max() > 65535:
        raise ImageError("32-bit pixels have no natural 8-bit form; save it as 8 or 16-bit")
    grey = ((wide + 128) // 257).astype(np.uint8)  # 65535 / 255 = 257, rounded
    return np.repeat(grey[:, :, None], 3, axis=2)
