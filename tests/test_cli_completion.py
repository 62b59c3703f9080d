"""What a shell completes, as its script asks for it; without waiting for torch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

import charlm
from charlm import PRESETS
from charlm._rules import RULES, Choice
from charlm.backends import BACKENDS
from charlm.benchmark import WORKLOADS
from charlm.cli import completion
from charlm.cli.commands import COMMANDS, app
from charlm.plots import run_figures

PROGRAM: Any = typer.main.get_command(app)
ROOT = Path(charlm.__file__).parent.parent

# Two runs beside each other, one by itself, one that is hidden; and folders that are none.
RUNS = ("runs/names", "runs/words", "alone", ".hidden", "deep/in/here")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for run in RUNS:
        (tmp_path / run).mkdir(parents=True)
        (tmp_path / run / "config.json").touch()
    (tmp_path / "runs" / "half").mkdir()
    (tmp_path / "runs.txt").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def completed(line: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What bash is told for a command line whose last word is not finished."""
    words = line.split(" ")
    variables = {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1), "_CHARLM_COMPLETE": "complete_bash"}
    script = (
        "import sys\nfrom charlm.cli import main\ntry:\n    main([])\nfinally:\n    assert 'torch' not in sys.modules"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | variables
    result = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout.split()


def test_commands_options_runs_and_words_are_completed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert completed("charlm ", monkeypatch) == list(COMMANDS)
    assert completed("charlm sample ru", monkeypatch) == ["runs/names", "runs/words"]
    assert completed("charlm train --resume al", monkeypatch) == ["alone"]
    assert completed("charlm train --preset b", monkeypatch) == ["best", "bigram"]
    assert completed("charlm train --warm", monkeypatch) == ["--warmup"]
    assert completed("charlm bench --backends eager,", monkeypatch) == ["eager,compile", "eager,ops", "eager,fused"]
    # An argument that is a file is the shell's own matter.
    assert completed("charlm train ", monkeypatch) == []


def test_runs_are_found_one_folder_below(folder: Path) -> None:
    assert completion.runs("") == ["alone", "runs/names", "runs/words"]
    assert completion.runs("runs/w") == ["runs/words"]
    assert completion.runs("runs/") == ["runs/names", "runs/words"]
    assert completion.runs(f"{folder}/runs/n") == [f"{folder}/runs/names"]
    assert completion.runs("deep/") == ["deep/in/here"]
    assert completion.runs(".h") == [".hidden"]
    assert completion.runs("nowhere/") == []
    assert completion.runs("runs.txt/") == []


def test_sweeps_are_found_where_runs_are(folder: Path) -> None:
    for sweep in ("names-sweep", "runs/words-sweep"):
        (folder / sweep / "best").mkdir(parents=True)
        (folder / sweep / "sweep.json").touch()
        (folder / sweep / "best" / "config.json").touch()
    assert completion.sweeps("") == ["names-sweep", "runs/words-sweep"]
    assert completion.sweeps("runs/w") == ["runs/words-sweep"]
    # The best model of a sweep is a run.
    assert completion.runs("names-sweep/") == ["names-sweep/best"]
    (parameter,) = (parameter for parameter in PROGRAM.commands["sweep"].params if parameter.name == "resume")
    context = typer.Context(PROGRAM.commands["sweep"])
    assert [item.value for item in parameter.shell_complete(context, "na")] == ["names-sweep"]


def test_lists_of_words_are_completed() -> None:
    (parameter,) = (parameter for parameter in PROGRAM.commands["sweep"].params if parameter.name == "schedule")
    context = typer.Context(PROGRAM.commands["sweep"])
    assert [item.value for item in parameter.shell_complete(context, "cosine,l")] == ["cosine,linear"]


def test_in_a_folder_of_very_many_some_are_looked_at(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completion, "_MOST_ENTRIES", 2)
    assert len(completion.runs("runs/")) <= 2


@pytest.mark.parametrize("name", COMMANDS)
def test_what_takes_one_of_some_words_or_a_run_is_completed(folder: Path, name: str) -> None:
    command = PROGRAM.commands[name]
    context = typer.Context(command)
    for parameter in command.params:
        items = [item.value for item in parameter.shell_complete(context, "")]
        rule = RULES.get(parameter.name)
        if isinstance(rule, Choice):
            assert items == list(rule.words), parameter.name
        elif parameter.metavar is not None and parameter.metavar.startswith("RUN") and parameter.name != "out":
            assert items == ["alone", "runs/names", "runs/words"], parameter.name


def test_words_that_no_rule_has_are_those_that_there_are() -> None:
    def completed_words(name: str, option: str, incomplete: str = "") -> list[str]:
        (parameter,) = (parameter for parameter in PROGRAM.commands[name].params if parameter.name == option)
        return [item.value for item in parameter.shell_complete(typer.Context(PROGRAM.commands[name]), incomplete)]

    assert completed_words("train", "preset") == list(PRESETS)
    assert completed_words("train", "backend") == completed_words("bench", "backends") == list(BACKENDS)
    assert completed_words("bench", "preset") == list(WORKLOADS)
    assert completed_words("eval", "part") == ["train", "dev", "test", "all"]
    assert completed_words("plot", "only", "loss,ne") == ["loss,next"]
    models = (charlm.MLP(3, 1, 1, 1), charlm.CountBigram(3), charlm.NeuralBigram(3))
    assert set(completed_words("plot", "only")) == {name for model in models for name in run_figures.names(model)}


def test_the_script_for_the_shell_is_shown_and_installed(tmp_path: Path) -> None:
    bash = shutil.which("bash")
    assert bash is not None
    shown, installed = (
        subprocess.run(
            # The shell is that which has started the program: it must not become it.
            [bash, "-c", f'"{sys.executable}" -m charlm {option}; true'],
            env=os.environ | {"PYTHONPATH": str(ROOT), "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=60,
        )
        for option in ("--show-completion", "--install-completion")
    )
    assert shown.stderr == installed.stderr == ""
    assert "_CHARLM_COMPLETE=complete_bash" in shown.stdout
    (script,) = (path for path in tmp_path.rglob("*charlm*") if path.is_file())
    assert script.read_text().strip() == shown.stdout.strip()
    assert f"bash completion installed in {script}" in installed.stdout
