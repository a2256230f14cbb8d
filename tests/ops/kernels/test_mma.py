"""The CUDA C of the tensor-core kernel, without a GPU: compiled, and run on the CPU."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("triton")
from unisolo.ops.kernels import mma
from unisolo.ops.kernels.packed import BLOCK_WORDS, PackedMasks

MMA_STATEMENT = re.compile(r"asm volatile\((.*?)\);", re.DOTALL)


def popcount(words):
    return np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=-1).sum(-1)


def ranges(bits):
    """First and last occupied block of each mask."""
    occupied = (bits.reshape(*bits.shape[:-1], -1, BLOCK_WORDS) != 0).any(-1)
    num_blocks = occupied.shape[-1]
    first = np.where(occupied.any(-1), occupied.argmax(-1), num_blocks)
    last = np.where(occupied.any(-1), num_blocks - 1 - occupied[..., ::-1].argmax(-1), -1)
    return first.astype(np.int32), last.astype(np.int32)


def expected(bits, labels, scores):
    """Shared pixels of every two masks, pair by pair."""
    counts = popcount(bits[:, :, None] & bits[:, None])
    takes_part = scores > 0
    meets = takes_part[:, :, None] & takes_part[:, None] & (labels[:, :, None] == labels[:, None])
    return np.where(meets, counts, 0)


# --- the fragments, in Python, from the formulas and operands that the source is made of


def operands():
    """The six inputs of each mma statement, as written in the source."""
    statements = MMA_STATEMENT.findall(mma.cuda_source())
    return [re.findall(r'"r"\(([^)]*)\)', statement) for statement in statements]


def tensor_core(a, b):
    """m16n8k256 as in the PTX ISA: registers [4, 32], [2, 32] of all lanes to results [4, 32]."""
    rows, columns = np.zeros((16, 8), np.uint32), np.zeros((8, 8), np.uint32)
    for lane in range(32):
        group, quarter = divmod(lane, 4)
        for register in range(4):
            rows[group + 8 * (register % 2), quarter + 4 * (register // 2)] = a[register][lane]
        for register in range(2):
            columns[group, quarter + 4 * register] = b[register][lane]
    product = popcount(rows[:, None] & columns[None])
    lane = np.arange(32)
    return [product[lane // 4 + 8 * (t // 2), lane % 4 * 2 + t % 2] for t in range(4)]


def test_a_turn_of_one_warp_counts_every_pair_of_its_square():
    bits = np.random.default_rng(0).integers(0, 2**32, (2, 32, mma.CHUNK), dtype=np.uint32)
    lane = np.arange(32)
    names = {"lane": lane}
    names["group"] = eval(mma.FORMULAS["group"], names)
    names["quarter"] = eval(mma.FORMULAS["quarter"], names)

    def load(masks, part):
        row = eval(mma.FORMULAS["load"], {**names, "part": part})
        words = masks.reshape(32, -1, 4)[row, names["quarter"]]
        return SimpleNamespace(**dict(zip("xyzw", words.T, strict=True)))

    a, b = ([load(masks, part) for part in range(4)] for masks in bits)
    found = np.zeros((32, 32), np.int64)
    for i in range(2):
        for j in range(4):
            for inputs in operands():
                values = [eval(text, {"a": a, "b": b, "i": i, "j": j}) for text in inputs]
                for t, counts in enumerate(tensor_core(values[:4], values[4:])):
                    place = {**names, "i": i, "j": j, "t": t}
                    row = eval(mma.FORMULAS["result_row"], place)
                    column = eval(mma.FORMULAS["result_col"], place)
                    np.add.at(found, (row, column), counts)

    np.testing.assert_array_equal(found, popcount(bits[0][:, None] & bits[1][None]))


def test_four_warps_cover_a_tile():
    corners = [
        tuple(eval(mma.FORMULAS[name], {"warp": warp}) for name in ("warp_row", "warp_col"))
        for warp in range(mma.THREADS // 32)
    ]
    assert sorted(corners) == [(0, 0), (0, 32), (32, 0), (32, 32)]
    assert mma.TILE == 64


@given(low=st.integers(0, 40), length=st.integers(1, 40), splits=st.integers(1, 50))
def test_splits_share_out_every_turn_once(low, length, splits):
    high = low + length
    turns = []
    for split in range(splits):
        names = {"low": low, "high": high, "split": split, "splits": splits}
        begin, end = (
            eval(mma.FORMULAS[name].replace("/", "//"), names) for name in ("begin", "end")
        )
        turns += range(begin, end)
    assert turns == list(range(low, high))


def test_blocks_fill_the_gpu_but_no_split_is_empty():
    assert mma.num_splits(500, 2112, 1, 132) == 11
    assert mma.num_splits(2000, 2112, 8, 132) == 1
    assert mma.num_splits(1, 16, 1, 132) == 1
    assert mma.num_splits(64, 64, 1, 132) == 4


# --- the whole source, compiled for the CPU

DRIVER = f"""
static struct {{
  const uint4* bits; const int* first; const int* last; const long long* labels;
  const float* scores; int* out; int count, quads, splits;
}} given;

static void lane_main() {{
  {mma.NAME}(given.bits, given.first, given.last, given.labels, given.scores, given.out,
             given.count, given.quads, given.splits);
  done[current] = true;
}}

extern "C" void run(const uint4* bits, const int* first, const int* last, const long long* labels,
                    const float* scores, int* out, int count, int quads, int splits,
                    unsigned x, unsigned y, unsigned z) {{
  given = {{bits, first, last, labels, scores, out, count, quads, splits}};
  for (blockIdx.z = 0; blockIdx.z < z; ++blockIdx.z)
    for (blockIdx.y = 0; blockIdx.y < y; ++blockIdx.y)
      for (blockIdx.x = 0; blockIdx.x < x; ++blockIdx.x)
        for (int warp = 0; warp < {mma.THREADS} / 32; ++warp) run_warp(warp, lane_main);
}}
"""


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory):
    """The kernel's source as a function of the CPU."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++ to run the CUDA C on the CPU")

    def call(match):
        inputs = re.findall(r'"r"\(([^)]*)\)', match[1])
        sums = re.findall(r'"\+r"\(([^)]*)\)', match[1])
        assert sums == [f"sums[i][j][{t}]" for t in range(4)]
        return f"mma(sums[i][j], {', '.join(inputs)});"

    source = MMA_STATEMENT.sub(call, mma.cuda_source())
    folder = tmp_path_factory.mktemp("mma")
    header = Path(__file__).with_name("warp_on_cpu.hpp").read_text()
    (folder / "kernel.cpp").write_text("\n".join((header, source, DRIVER)))
    library = folder / "kernel.so"
    command = [compiler, "-std=c++17", "-O1", "-shared", "-fPIC", "kernel.cpp", "-o", library]
    subprocess.run(command, cwd=folder, check=True, timeout=300)
    loaded = ctypes.CDLL(str(library)).run

    def run(bits, first, last, labels, scores, splits):
        batch_size, count, words = bits.shape
        arrays = [
            np.ascontiguousarray(array)
            for array in (bits, first, last, labels.astype(np.int64), scores.astype(np.float32))
        ]
        out = np.zeros((batch_size, count, count), np.int32)
        tiles = -(-count // mma.TILE)
        pointers = [ctypes.c_void_p(array.ctypes.data) for array in (*arrays, out)]
        loaded(*pointers, count, words // 4, splits, tiles, tiles, batch_size * splits)
        return out

    return run


def scene(seed, batch_size, count, words):
    """Masks of few labels, some empty, some short, some without a score."""
    random = np.random.default_rng(seed)
    bits = random.integers(0, 2**32, (batch_size, count, words), dtype=np.uint32)
    position = np.arange(words)
    begin = random.integers(0, words, (batch_size, count, 1))
    bits[(position < begin) | (position > begin + random.integers(-1, words, begin.shape))] = 0
    labels = random.integers(-1, 2, (batch_size, count))
    scores = random.integers(0, 4, (batch_size, count)) / 4
    return bits, labels, scores


@pytest.mark.parametrize(
    ("batch_size", "count", "words", "splits"),
    [(1, 1, 16, 1), (2, 33, 48, 2), (1, 70, 32, 1), (1, 130, 48, 3), (2, 64, 16, 5)],
)
def test_the_source_counts_what_masks_share(on_cpu, batch_size, count, words, splits):
    bits, labels, scores = scene(count, batch_size, count, words)
    found = on_cpu(bits, *ranges(bits), labels, scores, splits)
    np.testing.assert_array_equal(found, expected(bits, labels, scores))


def test_the_source_leaves_empty_masks_and_empty_places_alone(on_cpu):
    bits = np.zeros((1, 40, 16), np.uint32)
    labels, scores = np.zeros((1, 40), np.int64), np.ones((1, 40))
    assert not on_cpu(bits, *ranges(bits), labels, scores, 2).any()

    bits[:] = 2**32 - 1
    assert not on_cpu(bits, *ranges(bits), labels, np.zeros((1, 40)), 2).any()
    assert (on_cpu(bits, *ranges(bits), labels, scores, 1) == 512).all()


# --- the compilers


@pytest.fixture(scope="module")
def cubins():
    """The kernel as torch's own NVRTC makes it, by compute capability."""
    utilities = pytest.importorskip("torch.cuda._utils")
    if torch.version.cuda is None:
        pytest.skip("a torch without CUDA has no NVRTC")
    with mma.without_toolkit():
        return {
            capability: utilities._nvrtc_compile(mma.cuda_source(), mma.NAME, capability)
            for capability in ("80", "90")
        }


@pytest.mark.parametrize("capability", ["80", "90"])
def test_it_compiles_to_tensor_core_instructions_without_spills(cubins, capability, tmp_path):
    import triton

    binary, name = cubins[capability]
    assert name == mma.NAME
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if not tool.is_file():
        pytest.skip(f"triton came without {tool.name}")
    (tmp_path / "kernel.cubin").write_bytes(binary)

    def dump(option):
        command = [tool, option, tmp_path / "kernel.cubin"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    usage = dump("-res-usage")
    assert " STACK:0 " in usage and " LOCAL:0 " in usage
    registers = int(re.search(r"REG:(\d+)", usage)[1])
    assert registers * mma.THREADS * mma.BLOCKS_PER_PROCESSOR <= 65536
    code = dump("-sass")
    assert "BMMA.168256.AND.POPC" in code and "LDG.E.128" in code
    assert "STL" not in code and "LDL" not in code


def test_a_machine_without_cuda_toolkit_compiles_it(cubins, monkeypatch):
    from torch.cuda._utils import _nvrtc_compile
    from torch.utils import cpp_extension

    monkeypatch.setattr(cpp_extension, "CUDA_HOME", None)
    with mma.without_toolkit():
        binary, name = _nvrtc_compile(mma.cuda_source(), mma.NAME, "90")
    assert (binary, name) == cubins["90"]
    assert cpp_extension.CUDA_HOME is None


# --- where it cannot be had


def test_a_cpu_has_none_and_says_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert mma.mma_kernel(torch.device("cpu")) is None


@pytest.fixture
def hopper(monkeypatch):
    """As if the machine had such a GPU; the cache is emptied before and after."""
    mma._compiled.cache_clear()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    yield monkeypatch
    mma._compiled.cache_clear()


def test_a_torch_without_the_compiler_is_warned_of_once(hopper):
    hopper.delattr(torch.cuda, "_compile_kernel", raising=False)
    with pytest.warns(UserWarning, match="pair by pair.*cuda:0.*2.9 can"):
        assert mma.mma_kernel(torch.device("cuda", 0)) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert mma.mma_kernel(torch.device("cuda", 0)) is None


def test_a_compiler_that_fails_is_named(hopper):
    if torch.cuda.is_available():
        pytest.skip("compiles here")
    with pytest.warns(UserWarning, match=r"pair by pair.*cuda:0: \w+Error: "):
        assert mma.mma_kernel(torch.device("cuda", 0)) is None


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("batch_size", "count", "words"), [(1, 1, 16), (3, 70, 48), (1, 500, 2112), (1, 2000, 128)]
)
def test_the_gpu_counts_what_masks_share(batch_size, count, words):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    device = torch.device("cuda", torch.cuda.current_device())
    launch = mma.mma_kernel(device)
    if launch is None and torch.cuda.get_device_capability()[0] not in mma.CAPABILITIES:
        pytest.skip("this GPU's tensor cores do not count bits")
    assert launch is not None, "see the warning for what the compiler said"
    from unisolo.ops.kernels.intersections import pair_intersections

    bits, labels, scores = scene(count, batch_size, count, words)
    first, last = (torch.from_numpy(part).to(device) for part in ranges(bits))
    areas = torch.from_numpy(popcount(bits).astype(np.int32)).to(device)
    words_on = torch.from_numpy(bits.view(np.int32)).to(device)
    packed = PackedMasks(words_on, areas, (areas > 0).float(), first, last)
    labels_on = torch.from_numpy(labels).to(device)
    scores_on = torch.from_numpy(scores).float().to(device)

    found = mma.mma_intersections(launch, packed, labels_on, scores_on)
    assert torch.equal(found, pair_intersections(packed, labels_on, scores_on))
    assert torch.equal(found, mma.mma_intersections(launch, packed, labels_on, scores_on))
    if count <= 70:
        np.testing.assert_array_equal(found.cpu().numpy(), expected(bits, labels, scores))
