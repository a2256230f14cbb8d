from __future__ import annotations

import subprocess
import sys

import unisolo

HEAVY = ("albumentations", "matplotlib", "pycocotools", "hotcoco", "supervision", "gradio", "cv2")


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True, check=True
    )
    return done.stderr


def test_import_pulls_in_nothing_heavy() -> None:
    loaded = {
        line.rsplit("|", 1)[-1].strip().split(".")[0] for line in run("import unisolo").splitlines()
    }
    assert loaded.isdisjoint(HEAVY)


def test_predictor_pulls_in_no_training_packages() -> None:
    code = "from unisolo import Predictor, Result, build_model, load_model, matrix_nms"
    loaded = {line.rsplit("|", 1)[-1].strip() for line in run(code).splitlines()}
    assert {name.split(".")[0] for name in loaded}.isdisjoint(HEAVY)
    assert not any(name.startswith("unisolo.engine") for name in loaded)


def test_every_public_name_loads() -> None:
    for name in unisolo.__all__:
        assert getattr(unisolo, name) is not None
    assert set(unisolo.__all__) <= set(dir(unisolo))
