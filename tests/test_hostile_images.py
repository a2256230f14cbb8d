"""Images from people who mean harm, or whose disk does: an answer or one sentence, never a hang."""

from __future__ import annotations

import io
import os
import signal
import socket
import struct
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_predictor import picture, same
from tiny_model import lively_model

from unisolo import Predictor
from unisolo.data.images import ImageError, read_image, to_rgb_array
from unisolo.predict_files import find_images, predict_files

PIXELS = picture(20, 30)


@pytest.fixture(autouse=True)
def in_time() -> Iterator[None]:
    """A test that waits for a pipe fails instead of hanging."""

    def stop(*_: object) -> None:
        raise TimeoutError("took longer than a minute")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor(lively_model(), device="cpu")


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_chunks(*chunks: bytes) -> bytes:
    """A good PNG with more chunks after its header."""
    png = encoded(Image.fromarray(PIXELS), "PNG")
    return png[:33] + b"".join(chunks) + png[33:]


def bomb(kind: bytes, before: bytes) -> bytes:
    return with_chunks(chunk(kind, before + zlib.compress(bytes(2**27), 9)))


def header(width: int, height: int) -> bytes:
    values = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", values) + chunk(b"IDAT", data)


GOOD_PNG = encoded(Image.fromarray(PIXELS), "PNG")
GOOD_JPEG = encoded(Image.fromarray(picture(64, 64)), "JPEG")

BROKEN = {
    "zero.png": (b"", "0 bytes"),
    "text.jpg": (b"not an image, but a note\n" * 50, "not an image in a format"),
    "cut.png": (GOOD_PNG[: len(GOOD_PNG) // 2], "damaged or truncated"),
    "cut.jpg": (GOOD_JPEG[: len(GOOD_JPEG) // 2], "damaged or truncated"),
    "only_header.png": (GOOD_PNG[:8], "not an image|damaged"),
    "pixels.png": (header(60_000, 60_000), "decompression bomb"),
    "text_bomb.png": (bomb(b"zTXt", b"a\0\0"), "damaged.*too large"),
    "itxt_bomb.png": (bomb(b"iTXt", b"a\0\1\0\0\0"), "damaged.*too large"),
    "icc_bomb.png": (bomb(b"iCCP", b"a\0\0"), "damaged.*too large"),
    "program.eps": (encoded(Image.fromarray(PIXELS), "EPS"), "EPS file is a program"),
    "float.tif": (
        encoded(Image.fromarray(np.full((3, 4), np.nan, np.float32)), "TIFF"),
        "float pixels",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_broken_files_are_one_sentence(predictor: Predictor, tmp_path: Path, name: str) -> None:
    content, words = BROKEN[name]
    path = tmp_path / name
    path.write_bytes(content)
    for read in (read_image, predictor.predict):
        with pytest.raises(ImageError, match=words) as caught:
            read(path)
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)


def test_a_file_of_many_pixels_that_is_only_warned_of_is_read_or_refused(tmp_path: Path) -> None:
    (tmp_path / "large.png").write_bytes(header(10_000, 10_000))
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with pytest.raises(ImageError, match="decompression bomb"):
            read_image(tmp_path / "large.png")


def animation(kind: str) -> bytes:
    frames = [Image.fromarray(PIXELS), Image.fromarray(255 - PIXELS)]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=50)


UNUSUAL = {
    "cmyk.jpg": encoded(Image.fromarray(PIXELS).convert("CMYK"), "JPEG"),
    "animated.gif": animation("GIF"),
    "animated.webp": animation("WEBP"),
    "animated.png": animation("PNG"),
    "grey16.png": encoded(Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 257), "PNG"),
    "palette.png": encoded(
        Image.fromarray(PIXELS).quantize(16), "PNG", transparency=bytes(range(0, 160, 10))
    ),
    "la.png": encoded(Image.fromarray(PIXELS).convert("LA"), "PNG"),
    "many_texts.png": with_chunks(*(chunk(b"tEXt", b"k\0" + b"x" * 50) for _ in range(500))),
    "junk_after.png": GOOD_PNG + b"\0" * 1000,
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_files_are_answered(predictor: Predictor, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(UNUSUAL[name])
    assert read_image(path).shape == PIXELS.shape
    assert predictor.predict(path).image_size == (20, 30)


def test_the_first_frame_of_an_animation_is_taken(tmp_path: Path) -> None:
    for name in ("animated.png", "animated.webp"):
        (tmp_path / name).write_bytes(UNUSUAL[name])
        close = np.abs(read_image(tmp_path / name).astype(int) - PIXELS).mean()
        assert close < 20, name


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (1, 30_000), (30_000, 1), (3, 9000)])
def test_extreme_shapes(predictor: Predictor, tmp_path: Path, size: tuple[int, int]) -> None:
    Image.fromarray(np.full((*size, 3), 90, np.uint8)).save(tmp_path / "a.png")
    result = predictor.predict(tmp_path / "a.png", score_threshold=0.0)
    assert result.image_size == size
    assert result.panoptic_seg is not None
    assert result.panoptic_seg.shape == size
    report = predict_files(predictor, tmp_path / "a.png", tmp_path / "out")
    assert (report.predicted, report.broken) == (1, ())


def test_orientation_counts_even_if_other_exif_tags_are_broken(tmp_path: Path) -> None:
    # Orientation 6, then a tag whose values would lie far beyond the end of the block.
    entries = struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0) + struct.pack(
        ">HHII", 0x9286, 7, 2**31, 2**30
    )
    exif = b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">H", 2) + entries + b"\0\0\0\0"
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(Image.fromarray(PIXELS), "JPEG", exif=exif, quality=100))
    assert read_image(path).shape == (30, 20, 3)
    for junk in (b"Exif\0\0", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"Exif\0\0II" + bytes(50)):
        path.write_bytes(encoded(Image.fromarray(PIXELS), "JPEG", exif=junk))
        assert read_image(path).shape == (20, 30, 3)


def no_regular_files(folder: Path) -> dict[Path, str]:
    os.mkfifo(folder / "pipe.png")
    (folder / "loop.png").symlink_to(folder / "loop.png")
    (folder / "dangling.png").symlink_to(folder / "nowhere.png")
    (folder / "zero.png").symlink_to("/dev/zero")
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(folder / "s.png"))
    server.close()
    return {
        folder / "pipe.png": "not a regular file",
        folder / "zero.png": "not a regular file",
        folder / "s.png": "not a regular file",
        Path("/dev/zero"): "not a regular file",
        folder / "loop.png": "cannot be read",
        folder / "dangling.png": "no such image file",
        folder / ("n" * 300 + ".png"): "no such image file",
        folder / "a\0.png": "no such image file",
        folder: "a folder",
    }


def test_pipes_devices_and_loops_are_never_opened(predictor: Predictor, tmp_path: Path) -> None:
    for path, words in no_regular_files(tmp_path).items():
        for read in (read_image, predictor.predict):
            with pytest.raises(ImageError, match=words) as caught:
                read(path)
            assert str(caught.value).startswith(f"{path}: ")
    with pytest.raises(ValueError, match="no image in this folder"):
        find_images(tmp_path)
    Image.fromarray(PIXELS).save(tmp_path / "good.png")
    (tmp_path / "again").symlink_to(tmp_path)  # a folder inside itself
    assert tmp_path / "good.png" in find_images(tmp_path)


ARRAYS = {
    "negative strides": PIXELS[::-1, ::-1],
    "transposed": np.ascontiguousarray(PIXELS.transpose(1, 0, 2)).transpose(1, 0, 2),
    "every second": np.repeat(PIXELS, 2, axis=1)[:, ::2],
    "fortran": np.asfortranarray(PIXELS),
    "masked": np.ma.masked_array(PIXELS, mask=np.zeros_like(PIXELS)),
    "broadcast": np.broadcast_to(PIXELS[:1, :1], PIXELS.shape),
}


@pytest.mark.parametrize("name", [*ARRAYS, "read-only"])
@pytest.mark.parametrize("bgr", [False, True])
def test_arrays_of_every_layout(predictor: Predictor, name: str, bgr: bool) -> None:
    array = PIXELS.copy() if name == "read-only" else ARRAYS[name]
    if name == "read-only":
        array.flags.writeable = False
    before = np.array(array)
    result = predictor.predict(array, bgr=bgr)
    assert same(result, predictor.predict(before.copy(), bgr=bgr))
    np.testing.assert_array_equal(array, before)
    assert type(to_rgb_array(array)) is np.ndarray


@pytest.mark.parametrize(
    "image",
    [
        np.full((4, 5, 3), np.nan),
        np.full((4, 5, 3), np.inf, np.float16),
        torch.full((3, 4, 5), float("nan")),
        torch.zeros(3, 4, 5, dtype=torch.bfloat16),
        np.zeros((4, 5, 3), np.int64),
        np.zeros((4, 5, 3), object),
        np.array("text"),
        torch.zeros(3, 4, 5).to_sparse(),
        torch.zeros(3, 0, 5, dtype=torch.uint8),
    ],
)
def test_what_is_no_image_of_bytes_is_refused(predictor: Predictor, image: Any) -> None:
    with pytest.raises(ValueError, match=r"uint8|no pixels"):
        predictor.predict(image)


@pytest.mark.parametrize("image", [[], [1, 2], [[1]], None, 3.5, {"a": 1}, b"bytes"])
def test_other_objects_are_refused(predictor: Predictor, image: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=r"an image must be|image file"):
        predictor.predict(image)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    "name",
    [
        "score_threshold",
        "candidate_threshold",
        "mask_threshold",
        "nms_sigma",
        "update_threshold",
        "panoptic_score_threshold",
        "panoptic_overlap_threshold",
    ],
)
def test_thresholds_must_be_numbers(predictor: Predictor, name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        predictor.predict(PIXELS, **{name: value})


def test_an_image_that_was_opened_and_is_broken_names_its_file(tmp_path: Path) -> None:
    (tmp_path / "cut.png").write_bytes(BROKEN["cut.png"][0])
    with pytest.raises(ImageError, match=r"cut\.png: damaged or truncated"):
        to_rgb_array(Image.open(tmp_path / "cut.png"))
    with pytest.raises(ImageError, match="PIL image: damaged or truncated"):
        to_rgb_array(Image.open(io.BytesIO(BROKEN["cut.png"][0])))


# Batches


def test_errors_can_be_returned_in_place(tmp_path: Path) -> None:
    # In double precision, so that the order of sums in a batch cannot turn near ties.
    predictor = Predictor(lively_model().double(), device="cpu")
    (tmp_path / "cut.jpg").write_bytes(BROKEN["cut.jpg"][0])
    os.mkfifo(tmp_path / "pipe")
    good = [picture(60, 84, seed) for seed in range(3)]
    images: list[Any] = [
        good[0], tmp_path / "cut.jpg", good[1], np.zeros((2, 2)), 7, tmp_path / "pipe", good[2],
    ]  # fmt: skip
    results = predictor.predict_batch(images, batch_size=2, on_error="return")
    assert len(results) == len(images)
    broken = [n for n, result in enumerate(results) if isinstance(result, ImageError)]
    assert broken == [1, 3, 4, 5]
    assert str(results[1]).startswith(str(tmp_path / "cut.jpg"))
    assert str(results[3]).startswith("image 3 of the list: an image array must be uint8")
    assert str(results[4]).startswith("image 4 of the list: an image must be a path")
    for number, array in zip((0, 2, 6), good, strict=True):
        result = results[number]
        assert not isinstance(result, ImageError)
        assert same(result, predictor.predict(array))
    with pytest.raises(ImageError, match=r"cut\.jpg"):
        predictor.predict_batch(images)


def test_every_image_may_be_broken(predictor: Predictor, tmp_path: Path) -> None:
    results = predictor.predict_batch([tmp_path / "a", tmp_path / "b"], on_error="return")
    assert [type(result) for result in results] == [ImageError, ImageError]
    assert predictor.predict_batch([], on_error="return") == []


def test_mistakes_of_the_call_are_raised_all_the_same(predictor: Predictor) -> None:
    with pytest.raises(ValueError, match="on_error must be 'raise' or 'return', got 'ignore'"):
        predictor.predict_batch([], on_error="ignore")  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="score_threshold"):
        predictor.predict_batch([PIXELS], on_error="return", score_threshold=2.0)
    with pytest.raises(TypeError, match="for one image use predict"):
        predictor.predict_batch("a.png", on_error="return")  # type: ignore[call-overload]
