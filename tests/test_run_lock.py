"""One process at a time writes into a run folder; others may read it; a lock ends with its process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import SMALL_MLP, CommandLine

import charlm
from charlm import NeuralBigram, TrainingConfig, Vocabulary, checkpoint
from charlm.checkpoint import RunInUseError
from charlm.run_lock import Claim, locked

IN_USE = "run is in use: another process is training or saving this run"


def in_another_thread(action: Callable[[], object]) -> BaseException | None:
    """What `action` raises in a thread of its own."""
    raised: list[BaseException | None] = []

    def run() -> None:
        try:
            action()
            raised.append(None)
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return raised[0]


def test_two_trainings_into_one_folder_at_once(run_charlm: CommandLine, names: Path, tmp_path: Path) -> None:
    """The second is refused whether it starts or resumes; others may read; after kill -9 nothing is in the way."""
    options = (names, *SMALL_MLP, "--checkpoint-every", 20)
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "charlm",
            "train",
            *map(str, options),
            "--steps",
            "100000000",
            "--out",
            "run",
            "--quiet",
        ],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(charlm.__file__).parent.parent)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    try:
        metrics = tmp_path / "run" / "metrics.jsonl"
        while process.poll() is None and not (metrics.exists() and metrics.stat().st_size > 0):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert run_charlm.error("train", *options, "--out", "run") == IN_USE
        assert run_charlm.error("train", "--resume", "run") == IN_USE
        assert run_charlm.output("sample", "run", "-n", 3).count("\n") == 3
        assert "dev" in run_charlm.output("eval", "run")
        assert run_charlm.output("plot", "run").splitlines()[0] == "run/loss.png"
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=60)
    step = checkpoint.load("run").step
    run_charlm.output("train", "--resume", "run", "--steps", step + 5, "--quiet")
    assert checkpoint.load("run").step == step + 5
    steps = [record["step"] for record in checkpoint.read_metrics("run")]
    assert steps == sorted(set(steps))


def test_a_lock_leaves_nothing_and_what_others_left_is_no_lock(run_charlm: CommandLine, names: Path) -> None:
    run_charlm.output("train", names, *SMALL_MLP, "--steps", 2, "--out", "run", "--quiet")
    files = {"config.json", "model.safetensors", "optimizer.safetensors", "metrics.jsonl"}
    assert {path.name for path in Path("run").iterdir()} == files
    Path("run/.lock").write_text("12345")
    run_charlm.output("train", "--resume", "run", "--steps", 4, "--quiet")
    assert checkpoint.load("run").step == 4


def test_saving_from_python_into_a_run_that_is_being_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config, vocabulary = TrainingConfig(model="bigram"), Vocabulary("ab")

    def save() -> None:
        checkpoint.save("run", config=config, vocabulary=vocabulary, model=NeuralBigram(3))

    save()
    claim = Claim(Path("run"), create=False)
    before = Path("run/config.json").stat()
    for action in (
        save,
        lambda: checkpoint.append_metrics("run", [{"step": 1}]),
        lambda: checkpoint.truncate_metrics("run", 0),
        lambda: checkpoint.discard("run"),
    ):
        error = in_another_thread(action)
        assert isinstance(error, RunInUseError)
        assert str(error) == IN_USE
    assert Path("run/config.json").stat() == before
    # Whoever has the lock may write, and reading needs none.
    save()
    assert in_another_thread(lambda: checkpoint.load("run")) is None
    claim.release()
    claim.release()
    assert in_another_thread(save) is None


def test_a_lock_is_held_until_its_outermost_block_ends(tmp_path: Path) -> None:
    def taken() -> bool:
        return isinstance(in_another_thread(lambda: Claim(tmp_path, create=False).release()), RunInUseError)

    with locked(tmp_path):
        with locked(tmp_path):
            assert taken()
        assert taken()
    assert not taken()


def test_a_child_that_was_forked_meanwhile_does_not_keep_the_lock(tmp_path: Path) -> None:
    claim = Claim(tmp_path, create=False)
    (told, tell), (asked, ask) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        try:
            Claim(tmp_path, create=False)
            os.write(tell, b"taken")
        except RunInUseError:
            os.write(tell, b"in use")
        os.read(asked, 1)
        os._exit(0)
    # The lock is that of the parent; and once it lets go, others can have it while the child still lives.
    assert os.read(told, 10) == b"in use"
    claim.release()
    Claim(tmp_path, create=False).release()
    os.write(ask, b".")
    os.waitpid(child, 0)
    for descriptor in (told, tell, asked, ask):
        os.close(descriptor)


def test_a_claim_that_is_refused_leaves_no_folder(tmp_path: Path) -> None:
    inner = tmp_path / "a" / "b" / "run"
    claim = Claim(inner, create=True)
    assert isinstance(in_another_thread(lambda: Claim(inner, create=True)), RunInUseError)
    claim.abandon()
    assert not (tmp_path / "a").exists()

    claim = Claim(inner, create=True)
    (tmp_path / "a" / "mine.txt").touch()
    claim.abandon()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["mine.txt"]


def test_a_folder_that_is_replaced_while_it_is_locked_is_taken_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process gives up its new run, and removes the folder, between our opening and locking it."""
    run, calls = tmp_path / "run", []
    run.mkdir()
    monkeypatch.setattr("charlm.run_lock._flock", lambda *_: calls.append(1) or (len(calls) == 1 and run.rmdir()))
    Claim(run, create=True).release()
    assert len(calls) == 2
    assert run.is_dir()


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(descriptor: int, operation: int) -> None:
        raise OSError(95, os.strerror(95))

    with monkeypatch.context() as patch:
        patch.setattr("fcntl.flock", no_locks)
        claim = Claim(tmp_path, create=False)
    claim.release()
