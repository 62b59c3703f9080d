"""`charlm export`: which file it writes, and which it refuses to."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import onnx
import pytest
from command_line import SMALL_MLP, CommandLine

import charlm
from charlm import export


@pytest.fixture
def run(run_charlm: CommandLine, names: Path) -> charlm.checkpoint.Run:
    run_charlm.output("train", names, *SMALL_MLP, "--steps", 3, "--out", "run", "--quiet")
    return charlm.load("run")


def test_each_kind_of_file_goes_into_the_run(run: charlm.checkpoint.Run, run_charlm: CommandLine) -> None:
    before = set(os.listdir("run"))
    for to, expected in (
        ("c", export.to_c(run.model, run.vocabulary).encode()),
        ("html", export.to_html(run.model, run.vocabulary, title="run").encode()),
        ("onnx", export.to_onnx(run.model, run.vocabulary).SerializeToString()),
    ):
        assert run_charlm.output("export", "run", "--to", to) == f"run/model.{to}: {len(expected):,} bytes\n"
        assert Path(f"run/model.{to}").read_bytes() == expected
    onnx.checker.check_model("run/model.onnx", full_check=True)
    assert set(os.listdir("run")) - before == {"model.c", "model.html", "model.onnx"}
    # They are no part of the run, which goes on.
    run_charlm.output("train", "--resume", "run", "--steps", 5, "--quiet")


def test_a_file_is_replaced_and_not_what_a_link_leads_to(run: charlm.checkpoint.Run, run_charlm: CommandLine) -> None:
    Path("precious.txt").write_text("precious")
    os.symlink("precious.txt", "names.c")
    for _ in range(2):
        run_charlm.output("export", "run", "--to", "c", "--out", "names.c")
        assert Path("names.c").read_text() == export.to_c(run.model, run.vocabulary)
    assert Path("precious.txt").read_text() == "precious"
    assert sorted(os.listdir()) == ["names.c", "names.txt", "precious.txt", "run"]


def test_the_title_of_a_page_is_the_name_of_the_run(run: charlm.checkpoint.Run, run_charlm: CommandLine) -> None:
    os.rename("run", "<i>run")
    run_charlm.output("export", "<i>run", "--to", "html", "--out", "page.html")
    assert "<title>&lt;i&gt;run</title>" in Path("page.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("run", "Missing option '--to'."),
        ("run --to pdf", "Invalid value for '--to': 'pdf' is not one of c, onnx, html"),
        ("run --to c --out names.txt", "--out must end in .c, got 'names.txt'"),
        ("run --to c --out names", "--out must end in .c, got 'names'"),
        ("run --to html --out names.c", "--out must end in .html, got 'names.c'"),
        ("run --to c --out missing/names.c", "missing: No such file or directory"),
        ("run --to c --out folder.c", "folder.c is not a regular file"),
        ("run --to c --out pipe.c", "pipe.c is not a regular file"),
        ("nothing --to c", "nothing is not a run folder: no such folder"),
    ],
)
def test_what_cannot_be_written_is_named(
    run: charlm.checkpoint.Run, run_charlm: CommandLine, arguments: str, message: str
) -> None:
    os.mkdir("folder.c")
    os.mkfifo("pipe.c")
    before = {path: path.stat().st_mtime_ns for path in Path.cwd().rglob("*")}
    assert run_charlm.error("export", *arguments.split()) == message
    assert {path: path.stat().st_mtime_ns for path in Path.cwd().rglob("*")} == before


def test_without_onnx_the_package_is_named(
    run: charlm.checkpoint.Run, run_charlm: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    message = run_charlm.error("export", "run", "--to", "onnx")
    assert message == "ONNX needs the package onnx. Run: pip install onnx"
    assert not Path("run/model.onnx").exists()
