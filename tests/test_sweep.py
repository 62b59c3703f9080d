"""Sweeps: the bits of models that are trained alone, who is stopped, and how they go on wherever they were ended."""

from __future__ import annotations

import math
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sweeps
import torch
from sweeps import STEPS, contents

from charlm import TrainingConfig, TrainingRun, checkpoint, data
from charlm.distributed import Processes
from charlm.sweep import Sweep, SweepConfig, SweepProgress


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, fifty_names: str) -> TrainingConfig:
    return sweeps.base_on(fifty_names, tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def config(base: TrainingConfig) -> SweepConfig:
    return sweeps.mixed(base)


def run_alone(config: TrainingConfig, folder: Path, checkpoint_every: int | None = None) -> None:
    with TrainingRun.start(config, folder) as training:
        training.run(checkpoint_every)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, config: SweepConfig) -> Path:
    return sweeps.finish(config, tmp_path_factory.mktemp("finished") / "sweep")


def test_every_model_is_the_one_that_is_trained_alone(finished: Path, config: SweepConfig, tmp_path: Path) -> None:
    with Sweep.resume(finished) as sweep:
        results = sweep.results()
        assert sweep.best_run == finished / "best"
    assert len(results) == 16
    alone = {}
    for result in results:
        run_alone(config.configs[result.model], tmp_path / str(result.model))
        last = checkpoint.read_metrics(tmp_path / str(result.model))[-1]
        alone[result.model] = last["dev"]
        assert (result.step, result.status) == (STEPS, "done")
        assert (result.loss, result.dev) == (last["loss"], last["dev"])
    assert [result.model for result in results] == sorted(alone, key=lambda model: alone[model])
    # To the byte: parameters, state of the optimizer, losses and configuration.
    best = contents(tmp_path / str(results[0].model))
    assert contents(finished / "best") == best
    assert {"config.json", "metrics.jsonl", "model.safetensors", "optimizer.safetensors"} == best.keys()
    assert sorted(path.name for path in finished.iterdir()) == ["best", "results.jsonl", "sweep.json"]


def test_the_best_model_goes_on_as_a_run(finished: Path, config: SweepConfig, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "sweep")
    with TrainingRun.resume(tmp_path / "sweep" / "best", steps=STEPS + 5) as training:
        training.run()
        dev = training.losses()["dev"]
    with Sweep.resume(finished) as sweep:
        best = sweep.results()[0]
    run_alone(config.configs[best.model], tmp_path / "alone")
    with TrainingRun.resume(tmp_path / "alone", steps=STEPS + 5) as training:
        training.run()
        assert training.losses()["dev"] == dev


def test_seeds_are_those_of_runs(base: TrainingConfig, tmp_path: Path) -> None:
    config = SweepConfig(base=replace(base, seed=5), options={}, seeds=3)
    with Sweep.start(config, tmp_path / "sweep") as sweep:
        sweep.run(7)
        (setting,) = sweep.settings()
    losses = []
    for seed in (5, 6, 7):
        run_alone(replace(base, seed=seed), tmp_path / str(seed), 7)
        losses.append(checkpoint.read_metrics(tmp_path / str(seed))[-1]["dev"])
    assert sorted(result.dev or 0.0 for result in setting.results) == sorted(losses)
    assert setting.dev == pytest.approx(sum(losses) / 3, rel=1e-12)
    best = 5 + losses.index(min(losses))
    assert contents(tmp_path / "sweep" / "best") == contents(tmp_path / str(best))


def expected_by_hand(config: SweepConfig, folder: Path) -> dict[int, tuple[str, int]]:
    """Status and step of each model, from the losses of dev that runs of their own have at every rung."""
    losses = {}
    for model, own in enumerate(config.configs):
        run_alone(own, folder / str(model), 1)
        losses[model] = {record["step"]: record["dev"] for record in checkpoint.read_metrics(folder / str(model))}
    found: dict[int, tuple[str, int]] = {}
    going_on, eta = list(losses), config.halving or 1
    count = len(going_on)
    for step, power in ((3, 1), (5, 2), (9, 3)):
        going_on.sort(key=lambda model, step=step: (losses[model][step], model))
        keep = max(1, count // eta**power)
        found |= {model: ("stopped", step) for model in going_on[keep:]}
        going_on = going_on[:keep]
    return found | {model: ("done", STEPS) for model in going_on}


def test_halving_keeps_the_best(config: SweepConfig, tmp_path: Path) -> None:
    halved = SweepConfig(base=config.base, options={**config.options, "batch_size": [8]}, halving=2)
    assert halved.rungs == ((3, 4), (5, 2), (9, 1))
    with Sweep.start(halved, tmp_path / "sweep") as sweep:
        sweep.run()
        results = sweep.results()
    expected = expected_by_hand(halved, tmp_path)
    assert {result.model: (result.status, result.step) for result in results} == expected
    assert [status for status, _ in (expected[result.model] for result in results)] == ["done"] + 7 * ["stopped"]
    # Rungs leave no trace in the run.
    run_alone(halved.configs[results[0].model], tmp_path / "alone")
    assert contents(tmp_path / "sweep" / "best") == contents(tmp_path / "alone")


def test_those_that_diverge_lose_first(base: TrainingConfig, tmp_path: Path) -> None:
    config = SweepConfig(base=base, options={"learning_rate": [1e30, 0.02, 3e30, 0.05, 2e30]}, halving=2)
    assert config.rungs == ((5, 2), (9, 1))
    with Sweep.start(config, tmp_path / "sweep") as sweep:
        sweep.run()
        results = sweep.results()
    assert {result.model: result.status for result in results if result.status == "diverged"} == dict.fromkeys(
        (0, 2, 4), "diverged"
    )
    assert sorted(result.status for result in results[:2]) == ["done", "stopped"]
    for result in results[2:]:
        assert (result.loss, result.dev) == (None, None)
        # Alone it ends there too: the loss of that step, or of dev after it, is the first that is not finite.
        run = tmp_path / str(result.model)
        with pytest.raises(ArithmeticError), TrainingRun.start(config.configs[result.model], run) as training:
            training.run(1)
        assert result.step == training.step


def test_the_best_of_the_stopped_ones_is_kept_where_all_others_diverge(
    base: TrainingConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = SweepConfig(base=base, options={"learning_rate": [0.02, 0.05, 0.03]}, halving=3)
    assert config.rungs == ((6, 1),)
    with Sweep.start(config, tmp_path / "sweep") as sweep:
        real = sweep._run_to_next_save

        def ruined_later(*arguments: Any) -> None:
            if sweep.step > 10:
                (member,) = sweep._training
                with torch.no_grad():
                    next(member.trainer.model.parameters()).fill_(math.nan)  # type: ignore[union-attr]
            real(*arguments)

        monkeypatch.setattr(sweep, "_run_to_next_save", ruined_later)
        sweep.run()
        first, *others = sweep.results()
    assert [first.status, *(result.status for result in others)] == ["stopped", "stopped", "diverged"]
    best = checkpoint.load(tmp_path / "sweep" / "best", training=True)
    assert (best.step, best.config) == (6, config.configs[first.model])
    assert sorted(path.name for path in (tmp_path / "sweep").iterdir()) == ["best", "results.jsonl", "sweep.json"]
    # It goes on as if it had been a run that stopped there.
    with TrainingRun.resume(tmp_path / "sweep" / "best") as training:
        training.run()
    run_alone(config.configs[first.model], tmp_path / "alone")
    for name in ("model.safetensors", "metrics.jsonl"):
        assert contents(tmp_path / "sweep" / "best")[name] == contents(tmp_path / "alone")[name]


def test_where_all_diverge_there_is_no_run(base: TrainingConfig, tmp_path: Path) -> None:
    config = SweepConfig(base=base, options={"learning_rate": [1e30, 2e30]})
    with Sweep.start(config, tmp_path / "sweep") as sweep:
        sweep.run()
        assert sweep.finished
        assert sweep.best_run is None
        assert [result.status for result in sweep.results()] == ["diverged", "diverged"]
    assert sorted(path.name for path in (tmp_path / "sweep").iterdir()) == ["results.jsonl", "sweep.json"]


def test_progress_counts_the_steps_of_all_models(config: SweepConfig, tmp_path: Path) -> None:
    halved = replace(config, halving=2)
    assert halved.rungs == ((2, 8), (3, 4), (5, 2), (9, 1))
    told: list[SweepProgress] = []
    with Sweep.start(halved, tmp_path / "sweep") as sweep:
        sweep.run(6, told.append)
    # Sixteen models up to step 2, eight up to 3, four up to 5, two up to 9 and one to the end.
    total = 16 * 2 + 8 * 1 + 4 * 2 + 2 * 4 + 1 * 9
    assert {progress.to_train for progress in told} == {total}
    assert told[-1] == SweepProgress(STEPS, STEPS, total, total, sweep.results()[0].dev, 0)
    trained = [progress.trained for progress in told]
    assert trained == sorted(trained)
    assert {(2, 32), (3, 40), (5, 48), (9, 56), (12, 59)} <= {(progress.step, progress.trained) for progress in told}


# Stopping and going on


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> Callable[[Sweep, int], None]:
    """Runs a sweep until Ctrl-C at some call of what it does."""

    def run(sweep: Sweep, at: int) -> None:
        calls = 0

        def watched(name: str) -> None:
            function = getattr(sweep, name)

            def call(*arguments: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls == at:
                    signal.raise_signal(signal.SIGINT)
                return function(*arguments)

            setattr(sweep, name, call)

        for name in ("_train", "_take", "_stop_all_but", "_save"):
            watched(name)
        sweep.run(4)

    return run


@pytest.mark.usefixtures("usual_signals")
def test_wherever_it_is_interrupted_it_ends_the_same(
    config: SweepConfig, tmp_path: Path, interrupted: Callable[[Sweep, int], None]
) -> None:
    halved = replace(config, options={**config.options, "batch_size": [8]}, halving=2)
    with Sweep.start(halved, tmp_path / "whole") as sweep:
        sweep.run(4)
    whole = contents(tmp_path / "whole")
    for at in range(1, 100):
        folder = tmp_path / str(at)
        sweep = Sweep.start(halved, folder)
        try:
            interrupted(sweep, at)
            break
        except KeyboardInterrupt:
            pass
        finally:
            sweep.close()
        with Sweep.resume(folder) as sweep:
            sweep.run(4)
        assert contents(folder) == whole, at
    assert at > 20


@pytest.mark.usefixtures("usual_signals")
def test_ctrl_c_between_two_steps_loses_none(
    base: TrainingConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = SweepConfig(base=base, options={"learning_rate": [0.02, 0.2], "hidden_dim": [3, 5]})
    with Sweep.start(config, tmp_path / "whole") as sweep:
        sweep.run(6)
    monkeypatch.setattr("charlm.trainer._CHUNK_SECONDS", 0.0)  # every step is a chunk of its own
    steps = []
    with Sweep.start(config, tmp_path / "parts") as sweep:

        def interrupt(progress: SweepProgress) -> None:
            if progress.step == 4:
                signal.raise_signal(signal.SIGINT)

        with pytest.raises(KeyboardInterrupt):
            sweep.run(6, interrupt)
        steps.append(sweep.step)
        assert {result.step for result in sweep.results()} == {4}
    with Sweep.resume(tmp_path / "parts") as sweep:
        sweep.run(6)
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_a_sweep_at_its_end_is_left_as_it_is(finished: Path) -> None:
    before = contents(finished)
    with Sweep.resume(finished, backend="eager") as sweep:
        assert sweep.finished
        assert sweep.dataset is None
        sweep.run()
    assert contents(finished) == before
    # Of a save that was cut off.
    (finished / "models.safetensors").write_bytes(b"left over")
    Sweep.resume(finished).close()
    assert contents(finished) == before


def test_data_and_backend_may_move(base: TrainingConfig, tmp_path: Path, fifty_names: str) -> None:
    config = SweepConfig(base=base, options={"learning_rate": [0.02, 0.05]})
    with Sweep.start(config, tmp_path / "sweep"):
        pass
    moved = tmp_path / "moved.txt"
    moved.write_text(fifty_names)
    with Sweep.resume(tmp_path / "sweep", path=str(moved), backend="eager") as sweep:
        assert sweep.backend == "eager"
        sweep.run()
    assert checkpoint.load(tmp_path / "sweep" / "best").config.path == str(moved)


def test_what_cannot_change_is_named(base: TrainingConfig, tmp_path: Path) -> None:
    config = SweepConfig(base=base, options={"learning_rate": [0.02, 0.05]})
    Sweep.start(config, tmp_path / "sweep").close()
    with pytest.raises(ValueError, match=r"^steps cannot change when a sweep is resumed; only path, dev, "):
        Sweep.resume(tmp_path / "sweep", steps=20)
    other = tmp_path / "other.txt"
    other.write_text("a\nb\nc\nd\ne\nf\ng\nh\ni\nj\n")
    with pytest.raises(ValueError, match=r"other.txt is not the data of this sweep \(it has 41 tokens, not 401\): "):
        Sweep.resume(tmp_path / "sweep", path=str(other))


def test_a_text_from_a_pipe_is_kept(base: TrainingConfig, tmp_path: Path, fifty_names: str) -> None:
    reading, writing = os.pipe()
    os.write(writing, fifty_names.encode())
    os.close(writing)
    config = SweepConfig(
        base=replace(base, path=f"/dev/fd/{reading}"), options={"context_length": [2, 4], "hidden_dim": [3, 5]}
    )
    Sweep.start(config, tmp_path / "sweep").close()
    os.close(reading)
    with Sweep.resume(tmp_path / "sweep") as sweep:
        sweep.run()
    assert (tmp_path / "sweep" / "text.txt").read_text() == fifty_names
    run = checkpoint.load(tmp_path / "sweep" / "best")
    assert run.config.path == "-"
    kept = data.load(tmp_path / "sweep" / "text.txt", context_length=run.config.context_length)
    assert run.load_data().all.tokens.equal(kept.all.tokens)


def test_a_sweep_is_not_shared_by_processes(
    base: TrainingConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = SweepConfig(base=base, options={"learning_rate": [0.02, 0.05]})
    Sweep.start(config, tmp_path / "sweep").close()
    monkeypatch.setattr("charlm.distributed.current", lambda: Processes(rank=0, size=2))
    for begin in (lambda: Sweep.start(config, tmp_path / "other"), lambda: Sweep.resume(tmp_path / "sweep")):
        with pytest.raises(ValueError, match=r"^a sweep trains its models in one process, but there are 2$"):
            begin()
    assert not (tmp_path / "other").exists()
