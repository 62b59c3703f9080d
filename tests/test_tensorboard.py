"""`charlm train --tensorboard`: the events that TensorBoard reads."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import SMALL_MLP, CommandLine
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from charlm import PRESETS, checkpoint, tensorboard
from charlm.cli.train import _train
from charlm.distributed import Processes
from charlm.schedules import Schedule
from charlm.training_run import TrainingRun

OPTIONS = (*SMALL_MLP, "--schedule", "linear", "--quiet", "--out", "run")


def scalars(folder: str = "logs") -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(folder)
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def recorded(name: str) -> list[tuple[int, Any]]:
    return [
        (record["step"], pytest.approx(record[name], rel=1e-6))
        for record in checkpoint.read_metrics("run")
        if name in record
    ]


def rates(steps: int, total: int) -> list[tuple[int, Any]]:
    schedule = Schedule("linear", 0.1, total)
    return [(step, pytest.approx(schedule(step - 1), rel=1e-6)) for step in range(1, steps + 1)]


def test_events_are_the_records_of_the_run(run_charlm: CommandLine, names: Path) -> None:
    run_charlm.output("train", names, *OPTIONS, "--steps", 20, "--tensorboard", "logs")
    assert scalars() == {
        "loss/train": recorded("loss"),
        "loss/dev": recorded("dev"),
        "learning_rate": rates(20, 20),
    }
    assert len(recorded("loss")) == 20


def test_a_run_that_goes_on_has_each_step_once(
    run_charlm: CommandLine, names: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those that were done, and lost, after the checkpoint that it goes on from."""
    real = TrainingRun._write
    writes = []

    def fail_at_the_end(run: TrainingRun, texts: Any) -> None:
        writes.append(run.step)
        if len(writes) == 4:
            raise OSError(28, "No space left on device", "run")
        real(run, texts)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingRun, "_write", fail_at_the_end)
        result = run_charlm("train", names, *OPTIONS, "--steps", 20, "--tensorboard", "logs", "--checkpoint-every", 4)
    assert result.code == 2
    assert checkpoint.load("run").step == 8
    assert [step for step, _ in scalars()["loss/train"]] == [*range(1, 13)]
    assert run_charlm.output("train", "--resume", "run", "--tensorboard", "logs", "--quiet")
    assert scalars() == {"loss/train": recorded("loss"), "loss/dev": recorded("dev"), "learning_rate": rates(20, 20)}


def test_of_several_processes_the_first_writes(names: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = PRESETS["bigram"]
    options = json.loads(json.dumps(config.to_dict())) | {"path": str(names), "steps": 2, "backend": "eager"}
    for rank, written in ((1, False), (0, True)):
        with TrainingRun.start(type(config).from_dict(options), tmp_path / f"run{rank}") as run:
            _train(run, Processes(rank=rank, size=1), None, True, str(tmp_path / "logs"))
        assert (tmp_path / "logs").exists() == written


@pytest.mark.parametrize("folder", ["names.txt", "names.txt/logs"])
def test_what_is_no_folder_is_said_before_training(run_charlm: CommandLine, names: Path, folder: str) -> None:
    assert run_charlm.error("train", names, *OPTIONS, "--tensorboard", folder) == f"{folder}: Not a directory"
    assert not Path("run").exists()


def test_a_folder_that_cannot_be_written_is_said_before_training(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(PermissionError, match=f"Permission denied: '{tmp_path}'"):
        tensorboard.check_folder(tmp_path / "new" / "logs")


def test_a_counted_model_has_no_events(run_charlm: CommandLine, names: Path) -> None:
    assert run_charlm.error("train", names, "--model", "count-bigram", "--tensorboard", "logs") == (
        "--tensorboard goes with --model mlp or --model bigram, not with --model count-bigram"
    )


def test_without_tensorboard_the_command_that_installs_it_is_shown(
    run_charlm: CommandLine, names: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert run_charlm.error("train", names, *OPTIONS, "--tensorboard", "logs") == (
        "event files need tensorboard. Run: pip install tensorboard"
    )
    assert not Path("run").exists()


def test_the_command_that_continues_has_the_folder(
    run_charlm: CommandLine, names: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(TrainingRun, "run", interrupt)
    result = run_charlm("train", names, *OPTIONS, "--tensorboard", "my logs")
    assert result.err.splitlines()[-1] == "  charlm train --resume run --tensorboard 'my logs'"
