"""Standard streams, help and Ctrl-C of the command line: what it says to a terminal, a pipe, or nobody."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest
from command_line import SMALL_MLP, CommandLine

import charlm
from charlm import checkpoint, sampler

ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(charlm.__file__).parent.parent)}
TIMEOUT_SECONDS = 120


@pytest.fixture
def run(run_charlm: CommandLine, names: Path) -> str:
    """A run."""
    run_charlm.output("train", names, *SMALL_MLP, "--steps", 20, "--out", "run", "--quiet")
    return "run"


def shell(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs a command of bash, in which `charlm` is this one."""
    script = f'charlm() {{ "{sys.executable}" -m charlm "$@"; }}\n{command}'
    arguments = ["bash", "-c", script]
    return subprocess.run(
        arguments, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False
    )


# Samples


def test_a_billion_samples_are_printed_as_they_are_drawn(run_charlm: CommandLine, run: str, tmp_path: Path) -> None:
    result = shell("charlm sample run -n 1000000000 --seed 7 | head -5; echo ${PIPESTATUS[0]}", tmp_path)
    loaded = checkpoint.load(run)
    assert result.stdout.splitlines() == [*charlm.sample(loaded.model, loaded.vocabulary, 5, seed=7), "1"]
    assert result.stderr == ""


def test_samples_come_in_few_at_first_and_are_the_same_in_any_number(run_charlm: CommandLine, run: str) -> None:
    loaded = checkpoint.load(run)
    expected = charlm.sample(loaded.model, loaded.vocabulary, 500, seed=3, max_length=20)
    endless = sampler.stream(loaded.model, loaded.vocabulary, 10**18, seed=3, max_length=20)
    blocks = list(islice(endless, 4))
    assert [len(block) for block in blocks] == [64, 128, 256, 512]
    assert [text for block in blocks for text in block][:500] == expected
    assert run_charlm.output("sample", run, "-n", 500, "--seed", 3, "--max-length", 20).splitlines() == expected


# Streams that are closed, or full


def test_closed_standard_output_is_an_error(run_charlm: CommandLine, run: str, tmp_path: Path) -> None:
    result = shell("charlm sample run >&-; echo $?; charlm train --out x >&- 2>&-; echo $?", tmp_path)
    assert (result.stdout, result.stderr) == ("2\n2\n", "error: standard output is closed\n")
    assert not Path("x").exists()


def test_without_standard_error_and_input_a_command_works(run_charlm: CommandLine, run: str, tmp_path: Path) -> None:
    result = shell(
        "charlm train names.txt --model bigram --steps 2 --out closed <&- 2>&-; echo $?; charlm eval x 2>&-; echo $?",
        tmp_path,
    )
    assert " saved in closed; next:\n" in result.stdout
    assert result.stdout.splitlines()[-2:] == ["0", "2"]
    assert result.stderr == ""
    assert checkpoint.load("closed").step == 2


def test_a_full_disk_behind_standard_output_is_one_line(run_charlm: CommandLine, run: str, tmp_path: Path) -> None:
    result = shell("charlm sample run -n 9999 > /dev/full; echo $?; charlm --help > /dev/full; echo $?", tmp_path)
    assert (result.stdout, result.stderr) == ("2\n2\n", "error: cannot write: No space left on device\n" * 2)


# Help


def test_h_is_help_for_every_command(run_charlm: CommandLine) -> None:
    assert run_charlm.output("-h") == run_charlm.output("--help")
    for command in ("train", "sample", "eval", "plot", "bench", "info"):
        assert run_charlm.output(command, "-h") == run_charlm.output(command, "--help")


# Ctrl-C

# Ctrl-C arrives when the module named first is imported, as if pressed then.
INTERRUPTED_IMPORT = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == sys.argv[1]:
            try:
                signal.raise_signal(signal.SIGINT)
            except KeyboardInterrupt:
                print("taken for an error of the import", file=sys.stderr)

sys.meta_path.insert(0, Finder())
from charlm.cli import main
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize("module", ["typer", "charlm.cli.train", "torch", "torch._dynamo", "charlm.checkpoint"])
def test_ctrl_c_while_a_command_starts_ends_it_with_a_line(tmp_path: Path, module: str) -> None:
    result = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_IMPORT, module, "train", "--steps", "2", "--backend", "eager"],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "interrupted\n")


def test_ctrl_c_in_a_command_ends_it_with_a_line(
    run_charlm: CommandLine, run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sampler, "stream_lines", interrupt)
    result = run_charlm("sample", run)
    assert (result.code, result.out, result.err) == (130, "", "interrupted\n")


def test_ctrl_c_is_what_it_was_after_a_command(run_charlm: CommandLine, run: str) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        run_charlm.output("sample", run, "-n", 1)
        run_charlm.error("sample", run, "-n", "many")
        run_charlm.output("--version")
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
