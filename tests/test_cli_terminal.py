"""The command line on a terminal: colours there and nowhere else, and lines that fit."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import shlex
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import pytest
from command_line import CALLED_AS_MODULE, SMALL_MLP
from rich.console import Console

import charlm
from charlm.cli.bench import _table
from charlm.cli.console import elapsed, progress

COLUMNS = 60
# What a terminal is told: colours are 30 to 37 and 90 to 97, bold 1, dim 2.
STYLE = re.compile(r"\x1b\[([\d;]*)m")
CONTROL = re.compile(r"\x1b\[[\d;?]*[A-Za-z]")
COLOURS = {str(number) for number in (*range(30, 38), *range(90, 98))}


def environment(**variables: str) -> dict[str, str]:
    """That of this process, without what asks for colours, a width, or none."""
    asking = ("FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS", "TERMINAL_WIDTH", "NO_COLOR", "COLUMNS", "LINES")
    own = {name: value for name, value in os.environ.items() if name not in asking}
    return own | {"PYTHONPATH": str(Path(charlm.__file__).parent.parent), "TERM": "xterm-256color"} | variables


def on_terminal(folder: Path, *arguments: object, **variables: str) -> str:
    """What `charlm` writes to a terminal of 60 columns, standard error included."""
    terminal, end = pty.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
    command = [sys.executable, "-m", "charlm", *map(str, arguments)]
    process = subprocess.Popen(
        command, cwd=folder, env=environment(**variables), stdin=end, stdout=end, stderr=end, close_fds=True
    )
    os.close(end)
    written = b""
    while True:
        try:
            block = os.read(terminal, 1 << 16)
        except OSError:  # what Linux says where the other end is closed
            break
        if not block:
            break
        written += block
    os.close(terminal)
    process.wait(timeout=60)
    return written.decode().replace("\r\n", "\n")


def piped(folder: Path, *arguments: object) -> str:
    """What it writes to pipes."""
    command = [sys.executable, "-m", "charlm", *map(str, arguments)]
    result = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=60)
    return result.stdout + result.stderr


def styles(text: str) -> set[str]:
    return {code for sequence in STYLE.findall(text) for code in sequence.split(";")}


SHORT: list[tuple[Any, ...]] = [(), ("--help",), ("sample", "--help"), ("train", "--nothing")]


@pytest.mark.parametrize("arguments", SHORT, ids=" ".join)
def test_colours_are_for_terminals_that_want_them(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    coloured = on_terminal(tmp_path, *arguments)
    assert styles(coloured) & COLOURS
    plain = CONTROL.sub("", coloured)
    assert "\x1b" not in plain
    without = on_terminal(tmp_path, *arguments, NO_COLOR="1")
    assert not styles(without) & COLOURS
    assert CONTROL.sub("", without) == plain
    assert "\x1b" not in on_terminal(tmp_path, *arguments, TERM="dumb")
    assert "\x1b" not in piped(tmp_path, *arguments)


def test_training_on_a_narrow_terminal(tmp_path: Path, fifty_names: str) -> None:
    (tmp_path / "names.txt").write_text(fifty_names)
    arguments = ("train", "names.txt", *SMALL_MLP, "--steps", 400)
    shown = on_terminal(tmp_path, *arguments, "--out", "one")
    # The head of the table of losses is bold, the commands at the end are coloured.
    assert re.search(r"\x1b\[1msplit +nll +perplexity +bits/character\x1b\[0m", shown)
    command = re.escape(shlex.join([*CALLED_AS_MODULE, "sample", "one"]))
    assert re.search(rf"\x1b\[36m{command} *\x1b\[0m", shown)
    lines = [line for part in CONTROL.sub("", shown).split("\n") for line in part.split("\r")]
    table = lines[lines.index("split      nll   perplexity   bits/character") :][:4]
    assert [line.split()[0] for line in table] == ["split", "train", "dev", "test"]
    bar = [line for line in lines if "400/400" in line]
    assert bar
    assert all(len(line) <= COLUMNS for line in [*table, *bar])
    assert "\x1b" not in piped(tmp_path, *arguments, "--out", "two")


def test_progress_fits_into_any_terminal() -> None:
    for width in (40, 60, 80, 200):
        console = Console(file=io.StringIO(), force_terminal=True, width=width)
        with progress(0, 200_000, quiet=False, console=console) as on_progress:
            on_progress(1, 3.0)
            on_progress(123_456, 2.0)
        # One line, written over and over: nothing was wrapped into a second one.
        assert console.file.getvalue().count("\n") == 1  # type: ignore[attr-defined]
        last = CONTROL.sub("", console.file.getvalue().split("\x1b[2K")[-1])  # type: ignore[attr-defined]
        assert len(last.rstrip()) <= width
        assert ("━" in last) == (width >= 80)


ROW = {
    **{"name": "eager (distinct)", "median_s": 1.23e-3, "steps_per_second": 813.0, "ratio_to_eager": 1.0},
    **{"examples_per_second": 142_901_234.0, "gflops": 123.4, "share_of_sgemm": 1.25},
}


def test_the_table_of_a_race_has_the_columns_that_fit() -> None:
    everything = ["backend", "time/step", "steps/s", "x eager", "examples/s", "GFLOP/s", "of sgemm"]
    for width, columns in ((100, 7), (60, 4), (30, 2), (5, 2)):
        table = _table([ROW], Console(file=io.StringIO(), width=width))
        assert [column.header for column in table.columns] == everything[:columns]
        console = Console(file=io.StringIO(), width=max(width, 40))
        console.print(table)
        (row,) = [line for line in console.file.getvalue().splitlines() if "eager (" in line]  # type: ignore[attr-defined]
        shown = ["eager (distinct)", "1.23 ms", "813", "1.00", "142,901,234", "123.4", "125%"]
        assert re.split(r"\s{2,}", row.strip()) == shown[:columns]


def test_elapsed_time() -> None:
    assert [elapsed(seconds) for seconds in (0.04, 1.96, 59.94)] == ["0.0 s", "2.0 s", "59.9 s"]
    assert [elapsed(seconds) for seconds in (60.0, 125.4, 3599.4)] == ["1 min 0 s", "2 min 5 s", "59 min 59 s"]
    assert [elapsed(seconds) for seconds in (3599.6, 3600.0, 90061.0)] == ["1 h 0 min", "1 h 0 min", "25 h 1 min"]
