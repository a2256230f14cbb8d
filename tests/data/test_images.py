from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unisolo.data import images
from unisolo.data.images import ImageError, read_image, to_rgb_array

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)


def save(tmp_path: Path, image: Image.Image, name: str = "a.png", **options: object) -> Path:
    path = tmp_path / name
    image.save(path, **options)
    return path


def test_rgb_is_unchanged_and_writable(tmp_path: Path) -> None:
    array = read_image(save(tmp_path, Image.fromarray(PIXELS)))
    assert array.dtype == np.uint8 and array.flags.c_contiguous and array.flags.writeable
    np.testing.assert_array_equal(array, PIXELS)


# What each EXIF orientation asks for, in numpy's words.
ORIENTATIONS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_exif_orientation(tmp_path: Path, orientation: int, suffix: str) -> None:
    image = Image.fromarray(PIXELS)
    exif = image.getexif()
    exif[0x0112] = orientation
    path = save(tmp_path, image, f"a.{suffix}", exif=exif)
    np.testing.assert_array_equal(read_image(path), ORIENTATIONS[orientation](PIXELS))


def test_broken_exif_is_no_reason_to_refuse(tmp_path: Path) -> None:
    path = save(tmp_path, Image.fromarray(PIXELS), exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff junk")
    np.testing.assert_array_equal(read_image(path), PIXELS)


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "LA", "RGBA", "PA", "I;16", "YCbCr"])
@pytest.mark.parametrize("size", [(1, 1), (7, 5)])
def test_every_mode_gives_rgb(mode: str, size: tuple[int, int]) -> None:
    image = Image.fromarray(PIXELS).resize(size)
    image = image.convert("L").convert(mode) if mode in ("1", "PA", "I;16") else image.convert(mode)
    array = to_rgb_array(image)
    assert array.shape == (size[1], size[0], 3) and array.dtype == np.uint8


def test_grey(tmp_path: Path) -> None:
    array = read_image(save(tmp_path, Image.fromarray(PIXELS[..., 0])))
    np.testing.assert_array_equal(array, np.repeat(PIXELS[..., :1], 3, axis=2))


def test_cmyk_jpeg(tmp_path: Path) -> None:
    path = save(tmp_path, Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "a.jpg", quality=100)
    assert (np.abs(read_image(path).astype(int) - [255, 0, 0]) < 6).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_over_white(tmp_path: Path, mode: str) -> None:
    image = Image.new(mode, (3, 1), (0,) * len(mode))
    for x, alpha in enumerate((0, 255, 51)):
        image.putpixel((x, 0), (*(0,) * (len(mode) - 1), alpha))
    array = read_image(save(tmp_path, image))
    np.testing.assert_array_equal(array[0], [[255] * 3, [0] * 3, [204] * 3])


def test_transparent_palette_and_rgb(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1), 0)
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    array = read_image(save(tmp_path, image, transparency=1))
    np.testing.assert_array_equal(array[0], [[10, 20, 30], [255] * 3])
    rgb = Image.fromarray(PIXELS)
    array = read_image(save(tmp_path, rgb, transparency=tuple(int(v) for v in PIXELS[0, 0])))
    np.testing.assert_array_equal(array[0, 0], [255] * 3)
    np.testing.assert_array_equal(array[1:], PIXELS[1:])


def test_16_bit_is_scaled(tmp_path: Path) -> None:
    values = np.array([[0, 257, 300, 32768, 65535]], dtype=np.uint16)
    array = read_image(save(tmp_path, Image.fromarray(values)))
    np.testing.assert_array_equal(array[0, :, 0], [0, 1, 1, 128, 255])


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_float_and_32_bit_are_refused_by_name(tmp_path: Path, dtype: type) -> None:
    values = np.array([[0, 1_000_000]], dtype=dtype)
    with pytest.raises(ImageError, match=r"a\.tif.*8 or 16-bit"):
        read_image(save(tmp_path, Image.fromarray(values), "a.tif"))


def test_bad_files_are_named(tmp_path: Path) -> None:
    good = save(tmp_path, Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)))
    jpeg = save(tmp_path, Image.open(good), "good.jpg")
    cases = {
        "missing.png": (None, "no such image file"),
        "zero.jpg": (b"", "empty"),
        "text.jpg": (b"hello" * 100, "not an image"),
        "cut.png": (good.read_bytes()[:2000], "truncated"),
        "cut.jpg": (jpeg.read_bytes()[:900], "truncated"),
    }
    for name, (content, words) in cases.items():
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ImageError, match=words) as caught:
            read_image(path)
        assert str(path) in str(caught.value)
    with pytest.raises(ImageError, match="a folder"):
        read_image(tmp_path)


def test_any_damage_is_an_image_error(tmp_path: Path) -> None:
    path = tmp_path / "damaged.png"
    for suffix in ("png", "jpg", "tif", "gif", "bmp"):
        source = save(tmp_path, Image.fromarray(PIXELS).resize((40, 40)), f"whole.{suffix}")
        content = source.read_bytes()
        for seed in range(20):
            rng = np.random.default_rng(seed)
            damaged = bytearray(content)
            for place in rng.integers(0, len(content), 8):
                damaged[place] = rng.integers(256)
            path.write_bytes(bytes(damaged)[: rng.integers(1, len(content) + 1)])
            try:
                array = read_image(path)
            except ImageError as error:
                assert str(path) in str(error)
            else:
                assert array.ndim == 3 and array.shape[2] == 3


def test_decompression_bomb_is_refused(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    path = tmp_path / "bomb.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b""))
    with pytest.raises(ImageError, match=r"bomb\.png.*decompression bomb"):
        read_image(path)


def test_all_kinds_of_input_agree(tmp_path: Path) -> None:
    path = save(tmp_path, Image.fromarray(PIXELS))
    tensor = torch.from_numpy(PIXELS.copy()).permute(2, 0, 1)
    for image in (path, str(path), Image.open(path), PIXELS, tensor):
        array = to_rgb_array(image)
        np.testing.assert_array_equal(array, PIXELS)
        assert array.flags.c_contiguous
    np.testing.assert_array_equal(to_rgb_array(PIXELS[..., ::-1], bgr=True), PIXELS)
    np.testing.assert_array_equal(to_rgb_array(tensor.flip(0), bgr=True), PIXELS)
    np.testing.assert_array_equal(to_rgb_array(path, bgr=True), PIXELS)
    np.testing.assert_array_equal(to_rgb_array(PIXELS[..., 0])[..., 2], PIXELS[..., 0])


def test_read_only_arrays_are_copied() -> None:
    frozen = PIXELS.copy()
    frozen.flags.writeable = False
    assert to_rgb_array(frozen).flags.writeable


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((4, 5, 3), np.float32), r"float32 \[4, 5, 3\]"),
        (np.zeros((4, 5, 4), np.uint8), r"uint8 \[4, 5, 4\]"),
        (np.zeros((2, 4, 5, 3), np.uint8), r"\[2, 4, 5, 3\]"),
        (np.zeros((0, 5, 3), np.uint8), "no pixels"),
        (torch.zeros(3, 4, 5), r"float32 \[3, 4, 5\]"),
        (torch.zeros(4, 5, 3, dtype=torch.uint8), r"uint8 \[4, 5, 3\]"),
    ],
)
def test_wrong_arrays_are_described(image: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        to_rgb_array(image)  # type: ignore[arg-type]


def test_wrong_type_is_described() -> None:
    with pytest.raises(TypeError, match="got int"):
        images.to_rgb_array(3)  # type: ignore[arg-type]
