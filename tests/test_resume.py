"""Runs that exist already: never overwritten, and continued as if they had never stopped."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from command_line import CALLED_AS_MODULE, SMALL_MLP, CommandLine, assert_same_weights, weights

import charlm
from charlm import checkpoint


def test_a_run_is_never_overwritten(run_charlm: CommandLine, names: Path) -> None:
    run_charlm.output("train", names, "--model", "count-bigram")
    before = {path: path.read_bytes() for path in Path("runs/names").iterdir()}
    message = "runs/names holds a run already: resume it, or choose another --out"
    assert run_charlm.error("train", names, "--model", "bigram") == message
    assert run_charlm.error("train", names, "--out", "runs/names") == message
    assert {path: path.read_bytes() for path in Path("runs/names").iterdir()} == before


def test_a_folder_with_other_files_is_left_alone(run_charlm: CommandLine, names: Path) -> None:
    Path("notes").mkdir()
    Path("notes/today.txt").write_text("mine")
    assert run_charlm.error("train", "--out", "notes") == "notes is not empty: choose another --out"
    assert run_charlm.error("train", "--out", names) == f"{names} is a file: choose another --out"
    assert [path.name for path in Path("notes").iterdir()] == ["today.txt"]


def test_an_empty_folder_is_taken(run_charlm: CommandLine, names: Path) -> None:
    Path("run").mkdir()
    run_charlm.output("train", names, "--model", "count-bigram", "--out", "run")
    assert checkpoint.load("run").config.model == "count-bigram"


def test_bad_input_leaves_no_run_behind(run_charlm: CommandLine, names: Path) -> None:
    run_charlm.error("train", names, *SMALL_MLP, "--learning-rate", -1)
    assert not Path("runs").exists()


def test_a_longer_resumed_run_equals_one_that_never_stopped(run_charlm: CommandLine, names: Path) -> None:
    options = (names, *SMALL_MLP, "--momentum", 0.9, "--quiet")
    run_charlm.output("train", *options, "--steps", 40, "--out", "whole")
    run_charlm.output("train", *options, "--steps", 15, "--out", "parts")
    out = run_charlm.output("train", "--resume", "parts", "--steps", 40, "--quiet")
    assert "mlp: 105 parameters, 40 steps from step 15, sgd, backend eager\n" in out
    assert_same_weights(Path("whole"), Path("parts"))
    whole, parts = (checkpoint.read_metrics(run) for run in ("whole", "parts"))
    assert [record["loss"] for record in parts] == [record["loss"] for record in whole]


def test_resume_goes_back_to_the_last_checkpoint(
    run_charlm: CommandLine, names: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = (names, *SMALL_MLP, "--steps", 30, "--checkpoint-every", 10, "--quiet")
    run_charlm.output("train", *options, "--out", "whole")

    # A crash right after the records of step 20, before its checkpoint.
    with monkeypatch.context() as patch:
        real_save = checkpoint.save

        def save(run_dir: Path, *, training_state: dict[str, Any], **parts: Any) -> None:
            if training_state["step"] == 20:
                raise OSError("disk full")
            real_save(run_dir, training_state=training_state, **parts)

        patch.setattr(checkpoint, "save", save)
        assert run_charlm("train", *options, "--out", "crashed").err == "error: disk full\n"
    assert checkpoint.load("crashed").step == 10

    run_charlm.output("train", "--resume", "crashed", "--checkpoint-every", 10, "--quiet")
    assert_same_weights(Path("whole"), Path("crashed"))
    assert checkpoint.read_metrics("crashed") == checkpoint.read_metrics("whole")


def test_resuming_a_finished_run_changes_nothing(run_charlm: CommandLine, names: Path) -> None:
    out = run_charlm.output("train", names, *SMALL_MLP, "--steps", 5, "--out", "run", "--quiet")
    before = {path: path.read_bytes() for path in Path("run").iterdir()}
    again = run_charlm.output("train", "--resume", "run", "--quiet")
    assert again.splitlines()[2:] == [
        "nothing left to train, saved in run; next:" if line.startswith("trained in ") else line
        for line in out.splitlines()[2:]
    ]
    assert {path: path.read_bytes() for path in Path("run").iterdir()} == before


def test_data_that_moved_can_be_given_when_resuming(run_charlm: CommandLine, names: Path, tmp_path: Path) -> None:
    run_charlm.output("train", names, *SMALL_MLP, "--steps", 5, "--out", "run", "--quiet")
    moved = names.rename(tmp_path / "moved.txt")
    assert run_charlm.error("train", "--resume", "run") == f"{names}: No such file or directory"
    run_charlm.output("train", moved, "--resume", "run", "--steps", 6, "--quiet")
    assert checkpoint.load("run").config.path == str(moved)


def test_a_run_does_not_go_on_with_other_data(run_charlm: CommandLine, names: Path, tmp_path: Path) -> None:
    run_charlm.output("train", names, *SMALL_MLP, "--steps", 5, "--out", "run", "--quiet")
    before = {path: path.read_bytes() for path in Path("run").iterdir()}
    text = names.read_text()
    # Fifty lines of three boundaries and five letters, and a boundary at the end.
    names.write_text(text + "aeik\n")
    message = f"{names} is not the data of this run (it has 408 tokens, not 401): give the path of the file as it was"
    assert run_charlm.error("train", "--resume", "run", "--steps", 6) == message
    assert run_charlm.error("eval", "run") == message
    names.write_text("".join(sorted(text.splitlines(keepends=True))))
    other = f"{names} is not the data of this run (other tokens): give the path of the file as it was"
    assert run_charlm.error("train", "--resume", "run", "--steps", 6) == other
    assert run_charlm.error("train", names, "--resume", "run", "--steps", 6) == other
    assert {path: path.read_bytes() for path in Path("run").iterdir()} == before

    moved = tmp_path / "moved.txt"
    moved.write_text(text)
    run_charlm.output("train", moved, "--resume", "run", "--steps", 6, "--quiet")
    assert checkpoint.load("run").step == 6


def test_resume_refuses_what_would_be_another_run(run_charlm: CommandLine, names: Path) -> None:
    run_charlm.output("train", names, *SMALL_MLP, "--steps", 5, "--out", "run", "--quiet")
    assert run_charlm.error("train", "--resume", "run", "--learning-rate", 1, "--warmup", 2, "--out", "x") == (
        "--learning-rate, --out, --warmup cannot change when a run is resumed; "
        "only FILE, --dev, --test, --steps, --backend and --device can"
    )
    run_charlm.output("train", names, "--model", "count-bigram", "--out", "counts")
    assert run_charlm.error("train", "--resume", "counts") == (
        "counts holds a count-bigram, which is not trained in steps: it is complete"
    )


@pytest.mark.usefixtures("usual_signals")
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_and_sigterm_save_and_print_the_command_that_continues(
    run_charlm: CommandLine, names: Path, tmp_path: Path, signum: int, code: int
) -> None:
    options = ["train", str(names), *map(str, SMALL_MLP), "--checkpoint-every", "20"]
    process = subprocess.Popen(
        [sys.executable, "-m", "charlm", *options, "--steps", "1000000", "--out", "a run"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(charlm.__file__).parent.parent)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = tmp_path / "a run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    try:
        while process.poll() is None and not (metrics.exists() and metrics.stat().st_size > 0):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signum)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()

    assert process.returncode == code, err
    message, command = err.splitlines()[-2:]
    assert "saved in" not in out
    step = checkpoint.load("a run").step
    assert message == f"interrupted and saved at step {step:,}; continue with:"
    program, arguments = CALLED_AS_MODULE, shlex.split(command)[len(CALLED_AS_MODULE) :]
    assert command == f"  {shlex.join(program)} train --resume 'a run' --checkpoint-every 20"
    run_charlm.output(*arguments, "--steps", step + 5, "--quiet")
    run_charlm.output(*options, "--steps", step + 5, "--out", "whole", "--quiet")
    assert_same_weights(Path("a run"), Path("whole"))


@pytest.mark.usefixtures("usual_signals")
def test_ctrl_c_waits_for_a_checkpoint_to_be_written(
    run_charlm: CommandLine, names: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_append = checkpoint.append_metrics

    def append(run_dir: Path, records: list[dict[str, Any]]) -> None:
        if any(record["step"] == 10 for record in records):
            signal.raise_signal(signal.SIGINT)
        real_append(run_dir, records)

    monkeypatch.setattr(checkpoint, "append_metrics", append)
    result = run_charlm("train", names, *SMALL_MLP, "--steps", 30, "--checkpoint-every", 10, "--out", "run", "--quiet")
    assert result.code == 130
    assert "interrupted and saved at step 10; continue with:\n" in result.err
    assert checkpoint.load("run").step == 10
    assert [record["step"] for record in checkpoint.read_metrics("run")] == list(range(1, 11))


def test_a_diverging_run_says_where_its_last_checkpoint_is(run_charlm: CommandLine, names: Path) -> None:
    options = (names, *SMALL_MLP, "--learning-rate", 1e30, "--steps", 9, "--quiet")
    result = run_charlm("train", *options, "--checkpoint-every", 9, "--out", "run")
    assert result.code == 1
    assert re.fullmatch(
        r"error: the loss of step \d is (inf|nan), at learning rate 1e\+30: "
        r"lower --learning-rate, or set --max-grad-norm \(run holds step 0\)\n",
        result.err,
    )
    # The loss is that of before the update: here the first update ruins the parameters, and dev shows it.
    result = run_charlm("train", *options, "--checkpoint-every", 1, "--out", "checked")
    assert result.code == 1
    assert re.fullmatch(
        r"error: the loss of dev after step \d is (inf|nan): lower --learning-rate, or set --max-grad-norm "
        r"\(checked holds step \d\)\n",
        result.err,
    )
    assert all(tensor.isfinite().all() for tensor in weights(Path("checked")).values())
    assert all(tensor.isfinite().all() for tensor in weights(Path("run")).values())


def test_resuming_to_a_step_that_is_past_says_so(run_charlm: CommandLine, names: Path) -> None:
    run_charlm.output("train", names, *SMALL_MLP, "--steps", 20, "--out", "run", "--quiet")
    before = {path: path.read_bytes() for path in Path("run").iterdir()}
    assert run_charlm.error("train", "--resume", "run", "--steps", 10) == (
        "run is at step 20 already, past --steps 10: it goes on with more steps only"
    )
    out = run_charlm.output("train", "--resume", "run", "--steps", 20, "--quiet")
    assert "20 steps from step 20" in out
    assert {path: path.read_bytes() for path in Path("run").iterdir()} == before
