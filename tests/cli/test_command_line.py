"""What every command promises: help that teaches, exit codes, JSON alone, completion, speed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from command import unisolo
from typer.testing import CliRunner

from unisolo.cli import app
from unisolo.cli.common import answer, check_folder, friendly, parse_size
from unisolo.cli.completion import TASK_NAMES
from unisolo.cli.telling import counted, duration
from unisolo.tasks import TASKS

GROUPS = {"benchmark"}
EPILOGS = {
    command.name or command.callback.__name__.replace("_", "-"): command.epilog or ""
    for command in app.registered_commands
    if command.callback is not None
}
COMMANDS = sorted(EPILOGS)


def test_help_of_every_command_imports_nothing_heavy() -> None:
    code = """
import sys
from typer.testing import CliRunner
from unisolo.cli import app
for name in sys.argv[1:]:
    done = CliRunner().invoke(app, [name, "--help"] if name else ["--help"])
    assert done.exit_code == 0, done.output
heavy = {"torch", "torchvision", "numpy", "timm", "PIL", "unisolo.build"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run(
        [sys.executable, "-c", code, "", *COMMANDS, *GROUPS], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_help_teaches_by_example_and_fits_80_columns(name: str) -> None:
    done = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "80", "TERM": "dumb"})
    assert done.exit_code == 0, done.output
    shown = [line for line in done.output.splitlines() if line.startswith(f" unisolo {name} ")]
    shown += [line for line in done.output.splitlines() if line.strip() == f"unisolo {name}"]
    assert len(shown) >= 2
    assert max(map(len, EPILOGS[name].splitlines())) <= 78  # and so is not broken over two lines
    assert "…" not in done.output  # no option's name is cut
    assert "--debug" in done.output


def test_the_top_help_has_the_exit_codes_and_the_order_of_use() -> None:
    done = unisolo("--help")
    assert done.returncode == 0
    for code in ("  0  done", "  1  the answer is no", "  2  a mistake", " 75 ", "130 ", " 70 "):
        assert code in done.stdout
    places = [re.search(rf"│ {name} ", done.stdout) for name in ("train", "predict", "export")]
    starts = [place.start() for place in places if place is not None]
    assert starts == sorted(starts) and len(starts) == 3
    assert "\x1b[" not in done.stdout  # no colours in a pipe


def test_version_and_mistyped_names() -> None:
    done = CliRunner().invoke(app, ["--version"])
    assert (done.exit_code, done.stderr) == (0, "")
    assert re.fullmatch(r"unisolo \d\S*\n", done.stdout)
    for arguments, words in (
        (["trian"], "Did you mean 'train'?"),
        (["train", "--dta", "x"], "--data"),
        (["benchmark", "latncy"], "Did you mean 'latency'?"),
    ):
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 2
        assert words in " ".join(done.stderr.replace("│", " ").split())
        assert done.stdout == ""


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("unisolo train --task p", ["panoptic"]),
        ("unisolo export m.safetensors --format o", ["onnx", "openvino"]),
        ("unisolo predict a.jpg --device c", ["cpu", "cuda"]),
        ("unisolo evaluate inference.nms_", ["inference.nms_kernel=", "inference.nms_sigma="]),
        ("unisolo quan", ["quantize"]),
    ],
)
def test_completion(words: str, offered: list[str]) -> None:
    asked = {
        "_UNISOLO_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(words.count(" ")),
    }
    done = CliRunner().invoke(app, [], env=asked, prog_name="unisolo")
    assert done.output.split() == offered


def test_completion_knows_every_task() -> None:
    assert set(TASK_NAMES) == set(TASKS)


def test_a_shell_gets_its_script_and_its_answers() -> None:
    script = unisolo(_UNISOLO_COMPLETE="source_bash")
    assert "complete " in script.stdout and "unisolo" in script.stdout
    words = {"COMP_WORDS": "unisolo train --task i", "COMP_CWORD": "3"}
    done = unisolo(_UNISOLO_COMPLETE="complete_bash", **words)
    assert (done.stdout.strip(), done.stderr) == ("instance", "")


def run(error: BaseException, *arguments: str) -> Any:
    tool = typer.Typer()

    @tool.command()
    @friendly
    def fail(debug: bool = False) -> None:
        raise error

    return CliRunner().invoke(tool, arguments)


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (ValueError("a wrong value"), 2, "error: a wrong value\n"),
        (OSError("no space"), 2, "error: no space\n"),
        (ImportError('pip install "unisolo[demo]"'), 2, 'error: pip install "unisolo[demo]"\n'),
        (ValueError(), 2, "error: ValueError\n"),
        (KeyboardInterrupt(), 130, "stopped\n"),
        (KeyError("x"), 70, "error: unisolo failed with KeyError: 'x'. --debug shows the trace; "),
        (typer.Exit(1), 1, ""),
        (typer.Exit(75), 75, ""),
    ],
)
def test_exit_codes(error: BaseException, code: int, words: str) -> None:
    done = run(error)
    assert done.exit_code == code
    assert done.stderr.startswith(words)
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(("error", "code"), [(ValueError("a"), 2), (KeyError("x"), 70)])
def test_debug_shows_the_trace_and_keeps_the_code(error: Exception, code: int) -> None:
    done = run(error, "--debug")
    assert done.exit_code == code
    assert "Traceback (most recent call last)" in done.stderr
    assert "raise error" in done.stderr


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["models", "nothing_like_this", "--json"], "no model has 'nothing_like_this'"),
        (["report", "{tmp}/none", "--json"], "no such folder"),
        (["train", "--data", "{tmp}/none", "--json"], "no such folder"),
        (["doctor", "{tmp}/none", "--json", "-"], "no such folder"),
        (["benchmark", "latency", "--engines", "abacus", "--json", "-"], "unknown engine abacus"),
    ],
)
def test_an_error_is_a_document_for_programs(
    words: list[str], expected: str, tmp_path: Path
) -> None:
    done = CliRunner().invoke(app, [word.format(tmp=tmp_path) for word in words])
    found = json.loads(done.stdout)
    assert expected in found["error"]
    assert found["exit_code"] == done.exit_code == 2
    assert done.stderr.startswith("error: ")


def test_results_folders_are_checked_before_the_work(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("mine")
    for words, said in (
        (["train", "--data", "d", "--out", file], f"--out {file}: {file} is a file"),
        (["predict", "p", "--checkpoint", "m", "--out", file / "a"], f"{file} is a file"),
        (["evaluate", "--data", "d", "--checkpoint", "m", "--out", file], f"{file} is a file"),
        (["compare", "--data", "d", "--checkpoint", "m", "--out", "sheet"], ".jpg or .png"),
        (["convert-data", tmp_path, "--out", file / "a"], f"{file} is a file"),
        (["export", "m", "--out", file / "m.onnx"], f"{file} is a file"),
        (["doctor", "d", "--html", file / "a.html"], f"--html {file}: {file} is a file"),
    ):
        done = CliRunner().invoke(app, [*map(str, words)])
        assert done.exit_code == 2
        assert said in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_to(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(ValueError, match="no permission to write in it"):
        check_folder(tmp_path / "a" / "b", "--out")


def test_numbers_have_their_words() -> None:
    assert [counted(n, "image") for n in (0, 1, 2)] == ["0 images", "1 image", "2 images"]
    assert [duration(s) for s in (0.4, 18, 270, 11520)] == ["0 s", "18 s", "4.5 min", "3.2 h"]


def test_one_way_to_write_arguments() -> None:
    """In capitals, as the texts beside them speak of them."""
    for name in COMMANDS:
        done = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "120", "TERM": "dumb"})
        usage = next(line for line in done.output.splitlines() if "Usage:" in line)
        words = usage.split(f"unisolo {name}")[-1] if f" {name} " in usage else usage
        assert words == words.upper(), usage


ANSWER = """
import os, sys
import typer
from unisolo.cli.common import answer
with answer(sys.argv[1] == "json") as found:
    print("text of ours")
    os.write(1, b"text of a library\\n")
    os.system("echo text of a child")
    found["metrics"] = {"segm/AP": float("nan"), "bbox/AP": 1.5}
    if sys.argv[2] == "no":
        raise typer.Exit(1)
    if sys.argv[2] == "error":
        raise ValueError("broken")
"""


@pytest.mark.parametrize("end", ["yes", "no"])
def test_json_is_alone_on_stdout(end: str) -> None:
    command = [sys.executable, "-c", ANSWER]
    done = subprocess.run([*command, "json", end], capture_output=True, text=True)
    assert json.loads(done.stdout) == {"metrics": {"segm/AP": None, "bbox/AP": 1.5}}
    for line in ("text of ours", "text of a library", "text of a child"):
        assert line in done.stderr
    assert (done.returncode == 0) is (end == "yes")
    plain = subprocess.run([*command, "text", end], capture_output=True, text=True)
    assert "text of ours" in plain.stdout and "metrics" not in plain.stdout


def test_after_an_error_there_is_no_json(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="broken"), answer(True) as found:
        found["half"] = 1
        print("text")
        raise ValueError("broken")
    assert capsys.readouterr().out == ""


def test_a_reader_that_leaves_is_no_error() -> None:
    done = subprocess.run(
        f"{sys.executable} -c 'from unisolo.cli import app; app()' --help | head -1",
        shell=True,
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""


def test_sizes_are_read_in_one_way() -> None:
    assert parse_size("448x768", "--size") == (448, 768)
    for text in ("448", "448 x 768", "x", "-1x2", "1x2x3", "", "448X768"):
        with pytest.raises(ValueError, match="--fixed must be HxW"):
            parse_size(text, "--fixed")
