"""The page's arithmetic against the package's, run by node: resizes, masks, merge and RLE."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pycocotools import mask as coco_mask

import unisolo
from unisolo.data.transforms import _resize_image, resized_size
from unisolo.ops.masks import upsample_masks
from unisolo.ops.panoptic import merge_panoptic, segment_stuff

PAGE = Path(unisolo.__file__).parent / "export" / "web" / "page"

SIZES = [(1, 1), (1, 97), (64, 1), (37, 53), (120, 90), (300, 211)]
SHORT, LONG = 64, 96


def node(script: str, folder: Path) -> Any:
    """Run a script that may import the page's files; what it prints as JSON."""
    program = shutil.which("node")
    if program is None:
        pytest.skip("node is not on this machine")
    for path in PAGE.glob("*.js"):  # beside a package.json that says what kind of files they are
        shutil.copy(path, folder / path.name)
    (folder / "package.json").write_text('{"type": "module"}')
    (folder / "run.js").write_text("import fs from 'node:fs';\n" + script)
    done = subprocess.run(
        [program, "run.js"], cwd=folder, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def images() -> list[np.ndarray]:
    """Noise, which smooth pictures would flatter, and black and white, the ends of the range."""
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in SIZES]
    return [*noise, rng.integers(0, 2, (80, 200, 3), dtype=np.uint8) * 255]


@pytest.mark.parametrize("kind", ["torch", "opencv"])
def test_resize_is_the_package_s(tmp_path: Path, kind: Any) -> None:
    if kind == "opencv":
        pytest.importorskip("cv2", reason="opencv is not installed")
    for place, image in enumerate(images()):
        (tmp_path / f"{place}.raw").write_bytes(image.tobytes())
    sizes = json.dumps([list(image.shape[:2]) for image in images()])
    rule = json.dumps(
        {"image_size": SHORT, "max_size": LONG, "resize": kind, "divisor": 32, "fixed": None}
    )
    found = node(
        f"""
        import {{ modelInput }} from "./prepare.js";
        const sizes = {sizes}.map(([height, width], place) => {{
          const input = modelInput(fs.readFileSync(`${{place}}.raw`), height, width, {rule});
          fs.writeFileSync(`${{place}}.out`, input.data);
          return [input.padded, input.valid];
        }});
        console.log(JSON.stringify(sizes));
        """,
        tmp_path,
    )
    for place, image in enumerate(images()):
        padded, valid = map(tuple, found[place])
        assert valid == resized_size(image.shape[:2], SHORT, LONG)
        assert padded == tuple(-(-side // 32) * 32 for side in valid)
        ours = np.fromfile(tmp_path / f"{place}.out", dtype=np.uint8).reshape(3, *padded)
        assert not ours[:, valid[0] :].any() and not ours[:, :, valid[1] :].any()
        theirs = _resize_image(image, valid, kind).numpy()
        apart = np.abs(ours[:, : valid[0], : valid[1]].astype(int) - theirs)
        # torch rounds once more on processors without AVX2, where a unit may be lost.
        fast = torch.backends.cpu.get_cpu_capability() not in ("DEFAULT", "NO AVX")
        assert apart.max() <= (0 if fast and kind == "torch" else 1), image.shape


def soft_maps(count: int, height: int, width: int) -> torch.Tensor:
    """Smooth random maps with values on both sides of 0.5."""
    coarse = torch.randn(1, count, 5, 5, generator=torch.Generator().manual_seed(0)) * 3
    return F.interpolate(coarse, (height, width), mode="bicubic")[0]


FRAMES = [
    ((96, 64), (96, 64), (96, 64)),  # nothing to resize
    ((96, 128), (80, 107), (241, 322)),
    ((64, 96), (64, 70), (20, 22)),  # smaller than the input
    ((64, 64), (64, 64), (1, 1)),
    ((32, 96), (1, 96), (3, 290)),
]


@pytest.mark.parametrize("frame", FRAMES, ids=str)
def test_masks_and_map_are_the_package_s(tmp_path: Path, frame: Any) -> None:
    padded, valid, orig = frame
    num_stuff = 3
    maps = soft_maps(16, padded[0] // 4, padded[1] // 4)
    probs, logits = maps[:12].sigmoid(), maps[12:]
    probs[5] = 0.0  # an empty mask
    scores = torch.linspace(0.95, 0.2, 12)
    settings = {"score_threshold": 0.3, "overlap_threshold": 0.5, "stuff_area_threshold": 20}
    probs.numpy().tofile(tmp_path / "probs.raw")
    logits.numpy().tofile(tmp_path / "logits.raw")
    found = node(
        f"""
        import {{ encodeRle }} from "./coco.js";
        import {{ finishMask, finishStuff, makeFrame }} from "./finish.js";
        import {{ mergePanoptic }} from "./merge.js";
        const read = (name) => {{
          const bytes = fs.readFileSync(name);
          return new Float32Array(bytes.buffer.slice(bytes.byteOffset), 0, bytes.length / 4);
        }};
        const scores = Float32Array.from({scores.tolist()});
        const frame = makeFrame(4, {list(padded)}, {list(valid)}, ...{list(orig)});
        const probs = read("probs.raw");
        const masks = [...scores].map((score, place) => {{
          return {{ ...finishMask(probs, place, frame, 0.5), score, label: 0 }};
        }});
        const filled = masks.filter(({{ area }}) => area > 0);
        const stuff = finishStuff(read("logits.raw"), {num_stuff + 1}, frame);
        const merged = mergePanoptic(filled, stuff, ...{list(orig)}, {{
          score: 0.3, overlap: 0.5, area: 20, numThings: 1, numStuff: {num_stuff},
        }});
        fs.writeFileSync("map.out", merged.map);
        fs.writeFileSync("stuff.out", stuff);
        console.log(JSON.stringify({{
          segments: merged.segments,
          masks: masks.map((mask) => ({{ ...mask, rle: encodeRle(mask, ...{list(orig)}) }})),
        }}));
        """,
        tmp_path,
    )
    sizes = {"padded_size": padded, "input_size": valid, "orig_size": orig}
    theirs = upsample_masks(probs, threshold=0.5, **sizes)
    ours = np.stack([coco_mask.decode(mask["rle"]) for mask in found["masks"]]).astype(bool)
    unpacked = np.unpackbits(theirs.packed.numpy(), axis=2)[:, :, : orig[1]].astype(bool)
    for index in range(12):
        assert (ours[index] != unpacked[index]).mean() <= 1e-4
        again = coco_mask.encode(np.asfortranarray(ours[index], dtype=np.uint8))
        assert again["counts"].decode() == found["masks"][index]["rle"]["counts"]
        assert found["masks"][index]["area"] == ours[index].sum()
        if (ours[index] == unpacked[index]).all():
            assert found["masks"][index]["box"] == theirs.boxes[index].tolist()
    stuff = segment_stuff(logits, **sizes)
    our_stuff = np.fromfile(tmp_path / "stuff.out", dtype=np.uint16).reshape(orig)
    assert (our_stuff != stuff.numpy()).mean() <= 1e-4
    kept = theirs.areas > 0
    merged = merge_panoptic(
        theirs.packed[kept], orig[1], scores[kept], stuff, num_stuff=num_stuff, **settings
    )
    our_map = np.fromfile(tmp_path / "map.out", dtype=np.uint16).reshape(orig)
    assert (our_map != merged.panoptic_seg.numpy()).mean() <= 1e-3
    areas = np.bincount(our_map.ravel(), minlength=len(found["segments"]) + 1)
    for segment in found["segments"]:
        rows, columns = np.nonzero(our_map == segment["id"])
        assert segment["area"] == areas[segment["id"]] == len(rows)
        box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert segment["box"] == box


def test_rle_is_coco_s(tmp_path: Path) -> None:
    """Masks whose runs end, begin and go on at every border of the image."""
    rng = np.random.default_rng(1)
    masks = []
    for height, width in [(1, 1), (1, 7), (7, 1), (6, 5), (40, 300)]:
        empty = np.zeros((height, width), dtype=bool)
        for share in (0.1, 0.5, 0.9):
            masks.append(rng.random((height, width)) < share)
        masks += [empty, ~empty]
        for column in range(width):  # full columns: a run that goes on
            mask = empty.copy()
            mask[:, column : column + 2] = True
            masks.append(mask)
        mask = empty.copy()
        mask[height // 2 :, width // 2 :] = True  # to the last pixel
        masks.append(mask)
    runs = []
    for mask in masks:
        rows, columns = np.nonzero(mask)
        box = [0, 0, 0, 0]
        if len(rows):
            box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        runs.append(
            {
                "runs": np.stack([rows, columns, columns + 1], axis=1).ravel().tolist(),
                "box": [int(side) for side in box],
                "size": list(mask.shape),
            }
        )
    (tmp_path / "masks.json").write_text(json.dumps(runs))
    found = node(
        """
        import { encodeRle } from "./coco.js";
        const masks = JSON.parse(fs.readFileSync("masks.json"));
        console.log(JSON.stringify(masks.map((mask) => encodeRle(mask, ...mask.size))));
        """,
        tmp_path,
    )
    for mask, ours in zip(masks, found, strict=True):
        theirs = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
        assert ours == {"size": list(mask.shape), "counts": theirs["counts"].decode()}
