"""`optimize`: the same outputs from a prepared copy."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_model import lively_model, tiny_config
from torch import Tensor, nn

from unisolo import Predictor, UniSolo, optimize, save_model
from unisolo.fast import fold_batch_norms
from unisolo.fast.captured import CapturedCalls, MostUsed, copied, first_line
from unisolo.graphs import select
from unisolo.structures import Outputs


def seasoned_model(*overrides: str) -> UniSolo:
    """A model whose batch norms do something: their statistics are not those of the start."""
    model = lively_model(*overrides)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.running_mean, 0, 0.2)
                nn.init.uniform_(module.running_var, 0.5, 2.0)
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0, 0.2)
    return model


def batch(count: int = 2, height: int = 64, width: int = 96) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(height + width)
    images = torch.randint(0, 256, (count, 3, height // 16, width // 16), generator=generator)
    images = images.to(torch.uint8).repeat_interleave(16, 2).repeat_interleave(16, 3)
    return images, torch.tensor([[height, width - 7]] * count)


def change(ours: Outputs, theirs: Outputs) -> float:
    """The largest difference of an output, of its largest value."""
    pairs = [*zip(ours[:3], theirs[:3], strict=True)]
    pairs += [(ours.extras[name], value) for name, value in theirs.extras.items()]
    return max(
        float((one.float() - other.float()).abs().amax() / other.float().abs().amax())
        for one, other in pairs
    )


def norms_of(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


# Folding


@pytest.mark.parametrize(
    "overrides",
    [
        ("model.head_norm=batch",),
        ("model.backbone=test_efficientnet",),  # its norms hold activations
        ("model.backbone=test_byobnet", "model.fpn_norm=group"),
    ],
)
def test_folding_changes_nothing_but_rounding(overrides: tuple[str, ...]) -> None:
    model = seasoned_model(*overrides)
    images, sizes = batch()
    count = norms_of(model)
    with torch.inference_mode():
        before = model(images, sizes)
        assert fold_batch_norms(model) == count > 10
        assert norms_of(model) == 0
        assert change(model(images, sizes), before) < 1e-4


def test_without_batch_norms_there_is_nothing_to_fold() -> None:
    model = lively_model("model.backbone=test_vit", "model.fpn_norm=group")
    assert fold_batch_norms(model) == norms_of(model) == 0


def test_training_cannot_be_folded() -> None:
    with pytest.raises(ValueError, match="eval"):
        fold_batch_norms(lively_model().train())


def test_other_convolutions_keep_their_norms() -> None:
    model = seasoned_model("model.backbone_deform=v2", "model.backbone=resnet18")
    images, sizes = batch()
    with torch.inference_mode():
        before = model(images, sizes)
        fold_batch_norms(model)
        assert norms_of(model) == 6  # one deformable convolution a block, two blocks a stage
        assert change(model(images, sizes), before) < 1e-4


class Twofold(nn.Module):
    """A head that reads a convolution's result before and after its norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(16, 4, 1)
        self.norm = nn.BatchNorm2d(4)
        nn.init.constant_(self.norm.running_mean, 3.0)

    def forward(self, pyramid: list[Tensor], trunk: Tensor) -> Tensor:
        mixed = self.conv(trunk)
        return mixed + self.norm(mixed)


def test_a_model_that_would_change_is_left_alone() -> None:
    model = seasoned_model()
    model.heads["twofold"] = Twofold().eval()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.warns(UserWarning, match="not folded"):
        assert fold_batch_norms(model) == 0
    after = model.state_dict()
    assert after.keys() == weights.keys()
    assert all(torch.equal(after[name], value) for name, value in weights.items())


# The optimised copy


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_the_copy_answers_as_the_model_does(norm: str) -> None:
    model = seasoned_model(f"model.head_norm={norm}")
    fast = optimize(model, compile=False)
    images, sizes = batch()
    with torch.inference_mode():
        expected = model(images, sizes)
        assert change(fast(images, sizes), expected) < 1e-4
        settings = tiny_config().inference
        ours = fast.select(images, sizes, settings).instances
        theirs = select(expected, model.grid, settings).instances
    assert ours.valid.any()
    assert torch.equal(ours.cells, theirs.cells) and torch.equal(ours.labels, theirs.labels)
    torch.testing.assert_close(ours.scores, theirs.scores, rtol=1e-3, atol=1e-4)


def test_the_model_stays_as_it_is() -> None:
    model = seasoned_model("model.head_norm=batch")
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    optimize(model, dtype="bf16", compile=False)
    after = model.state_dict()
    assert after.keys() == weights.keys()
    assert all(torch.equal(after[name], value) for name, value in weights.items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_half_precision_equals_autocast_up_to_rounding() -> None:
    model = seasoned_model()
    images, sizes = batch()
    fast = optimize(model, dtype="bf16", compile=False)
    with torch.inference_mode():
        exact = model(images, sizes)
        with torch.autocast("cpu", torch.bfloat16):
            usual = model(images, sizes)
    ours = fast(images, sizes)
    assert change(ours, exact) < max(0.05, 2 * change(usual, exact))


def test_wrong_inputs_are_told_as_by_the_model() -> None:
    fast = optimize(lively_model(), compile=False)
    with pytest.raises(ValueError, match="multiples of 32"):
        fast(torch.zeros(1, 3, 33, 64, dtype=torch.uint8), torch.tensor([[33, 64]]))
    with pytest.raises(ValueError, match="max_shapes"):
        optimize(lively_model(), max_shapes=0)
    with pytest.raises(ValueError, match="precision"):
        optimize(lively_model(), dtype="int8")


def test_threads_share_a_copy() -> None:
    fast = optimize(lively_model(), compile=False)
    inputs = [batch(1, 64, 96), batch(2, 64, 64)]
    expected = [fast(*pair) for pair in inputs]
    wrong: list[float] = []

    def work(number: int) -> None:
        for _ in range(3):
            wrong.append(change(fast(*inputs[number]), expected[number]))

    threads = [threading.Thread(target=work, args=(n % 2,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wrong) == 12 and max(wrong) < 1e-5


def test_copies_have_memory_of_their_own() -> None:
    outputs = Outputs(torch.zeros(1), torch.zeros(2), torch.zeros(3), {"a": torch.zeros(4)})
    twin = copied((outputs, {"b": torch.ones(1)}))
    assert isinstance(twin[0], Outputs)
    assert twin[0].extras["a"].data_ptr() != outputs.extras["a"].data_ptr()
    assert twin[0].kernels.data_ptr() != outputs.kernels.data_ptr()


def test_the_graphs_used_most_are_kept() -> None:
    kept: MostUsed[str] = MostUsed(2)

    def use(key: str) -> bool:
        """Whether a value was there; else make one, if it would be kept."""
        if kept.ask(key) is not None:
            return True
        if kept.would_keep(key):
            if kept.is_full():
                kept.drop_least()
            kept.put(key, key)
        return False

    assert [use(key) for key in "abab"] == [False, False, True, True]
    # More shapes than fit, in turns: none drives out another.
    assert [use(key) for key in "cabcabcab"] == 3 * [False, True, True]
    # One that comes more often than another takes its place.
    assert [use(key) for key in "ccccb"] == [False, False, False, True, True]
    assert len(kept) == 2 and not use("a")


def test_an_error_is_told_in_a_line() -> None:
    assert first_line(RuntimeError("no room.\nHere is a trace.")) == "no room"
    assert first_line(MemoryError()) == "MemoryError"


# Compiled


def picture(height: int = 60, width: int = 84, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (-(-height // 12), -(-width // 12), 3), dtype=np.uint8)
    return small.repeat(12, axis=0).repeat(12, axis=1)[:height, :width]


@pytest.mark.slow
def test_a_compiled_predictor_gives_the_same_answers() -> None:
    model = lively_model("model.head_norm=batch")
    plain, fast = Predictor(model), Predictor(model, compile=True)
    images = [picture(seed=1), picture(84, 60, seed=2)]
    for ours, theirs in zip(fast.predict_batch(images), plain.predict_batch(images), strict=True):
        assert len(ours) == len(theirs) > 2
        np.testing.assert_allclose(ours.scores, theirs.scores, rtol=1e-3)
    sample = fast.preprocess(images[0])
    assert change(fast.forward([sample]), plain.forward([sample])) < 1e-3


@pytest.mark.slow
def test_without_a_compiler_a_warning_says_so() -> None:
    from torch._inductor import config

    images, sizes = batch(1)
    model = lively_model()
    fast = optimize(model)
    with (
        config.patch({"cpp.cxx": ("/nowhere/g++",), "force_disable_caches": True}),
        pytest.warns(UserWarning, match="uncompiled"),
    ):
        outputs = fast(images, sizes)
    with torch.inference_mode():
        assert change(outputs, model(images, sizes)) < 1e-4


@pytest.mark.slow
def test_the_command_takes_compile(tmp_path: Path) -> None:
    save_model(lively_model(), tmp_path / "model.safetensors")
    Image.fromarray(picture()).save(tmp_path / "a.png")
    words = [tmp_path / "a.png", "--checkpoint", tmp_path / "model.safetensors", "--device", "cpu"]
    done = subprocess.run(
        [Path(sys.executable).with_name("unisolo"), "predict", *words, "--out", tmp_path / "out",
         "--compile"],
        env={**os.environ, "CXX": "/nowhere/g++", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "the network runs uncompiled" in done.stderr  # so it has tried


@pytest.mark.slow
def test_a_network_can_be_traced_in_one_piece() -> None:
    model = lively_model()
    images, sizes = batch(1)
    whole = torch.compile(model, fullgraph=True, dynamic=False, backend="eager")
    with torch.inference_mode():
        assert change(whole(images, sizes), model(images, sizes)) < 1e-5


# On a GPU


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_cuda_graphs_answer_as_the_model_does(dtype: str, compile: bool) -> None:
    model = seasoned_model().cuda()
    fast = optimize(model, dtype=dtype, compile=compile, max_shapes=2)
    settings = tiny_config().inference
    for _ in range(2):
        for pair in (batch(1, 64, 96), batch(2, 96, 64), batch(1, 64, 64)):
            with torch.inference_mode():
                expected = model(*(value.cuda() for value in pair))
            assert change(fast(*pair), expected) < (2e-2 if dtype == "fp32" else 0.1)
            # The first may be launched by itself: too few calls of its shape so far.
            _, first, again = (fast.select(*pair, settings).instances for _ in range(3))
            assert first.valid.any()
            assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    assert fast._captured is not None and len(fast._captured) == 2
    assert fast._captured._works


@pytest.mark.gpu
@needs_cuda
def test_streams_share_a_captured_call() -> None:
    captured = CapturedCalls(torch.device("cuda"), keep=2)

    def call(values: Tensor) -> tuple[Tensor]:
        for _ in range(50):
            values = values + 1
        return (values,)

    wrong = []

    def work(number: int) -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(20):
                start = torch.full((1000, 1000), float(number), device="cuda")
                (answer,) = captured(None, call, (start,))
                wrong.append((answer != number + 50).any())
            torch.cuda.current_stream().synchronize()

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    torch.cuda.synchronize()
    assert len(wrong) == 80 and not any(bool(flag) for flag in wrong)
    assert len(captured) == 1


@pytest.mark.gpu
@needs_cuda
def test_models_in_threads_are_captured_one_at_a_time() -> None:
    states = []

    def work(number: int) -> None:
        captured = CapturedCalls(torch.device("cuda"), keep=10)

        def call(values: Tensor) -> tuple[Tensor]:
            if not torch.cuda.is_current_stream_capturing():
                torch.cuda.synchronize()  # as compilers do that measure kernels in a warm-up
            return (values + number,)

        right = []
        for size in range(1, 11):
            (answer,) = captured(None, call, (torch.zeros(size),))
            right.append(answer.tolist() == size * [number])
        states.append((all(right), captured._works, len(captured)))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert states == 4 * [(True, True, 10)]


@pytest.mark.gpu
@needs_cuda
def test_what_cannot_be_captured_runs_all_the_same() -> None:
    # In a process of its own: in some versions of torch a capture that fails leaves its random
    # numbers unusable.
    code = (
        "import torch\n"
        "from unisolo.fast.captured import CapturedCalls\n"
        "captured = CapturedCalls(torch.device('cuda'), keep=2)\n"
        "def call(values):\n"
        "    return (values * float(values.sum()),)\n"
        "for _ in range(2):\n"
        "    (answer,) = captured(None, call, (torch.ones(3),))\n"
        "    print(answer.tolist(), len(captured))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout.splitlines() == 2 * ["[3.0, 3.0, 3.0] 0"], done.stderr
    assert done.stderr.count("CUDA graphs are not used") == 1
