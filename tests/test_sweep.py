"""Sweeps: the bits of models that are trained alone, who is stopped, what is saved, and what a damaged folder says."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from charlm import TrainingConfig, TrainingRun, checkpoint, data
from charlm.distributed import Processes
from charlm.run_folder import CheckpointError
from charlm.run_lock import RunInUseError
from charlm.search_space import LogUniform
from charlm.sweep import Sweep, SweepConfig, SweepProgress, SweepResult
from charlm.tensor_files import TensorFile, format_tensors

STEPS = 18


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, fifty_names: str) -> TrainingConfig:
    """What the models of these tests have in common."""
    path = tmp_path_factory.mktemp("data") / "names.txt"
    path.write_text(fifty_names)
    return TrainingConfig(
        path=str(path), embedding_dim=2, hidden_dim=4, batch_size=8, steps=STEPS, optimizer="adamw", learning_rate=0.05
    )


@pytest.fixture(scope="module")
def config(base: TrainingConfig) -> SweepConfig:
    """Several shapes, lengths of contexts and kinds of optimizers; rungs at 3, 6 and 9, of which the first keeps 6."""
    options: dict[str, Any] = {
        "learning_rate": [0.02, 0.2],
        "optimizer": ["sgd", "adamw"],
        "context_length": [2, 3],
        "batch_size": ["full", 8],
    }
    return SweepConfig(base=base, options=options)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def run_alone(config: TrainingConfig, folder: Path, checkpoint_every: int | None = None) -> None:
    with TrainingRun.start(config, folder) as training:
        training.run(checkpoint_every)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, config: SweepConfig) -> Path:
    """A sweep at its end."""
    folder = tmp_path_factory.mktemp("finished") / "sweep"
    with Sweep.start(config, folder) as sweep:
        sweep.run()
    return folder


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


# Folders


def test_a_folder_is_for_one_sweep(base: TrainingConfig, finished: Path, tmp_path: Path) -> None:
    config = SweepConfig(base=base, options={"learning_rate": [0.02, 0.05]})
    with pytest.raises(ValueError, match=r"sweep holds a sweep already: resume it, or choose another sweep_dir$"):
        Sweep.start(config, finished)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("today")
    with pytest.raises(ValueError, match=r"mine is not empty: choose another sweep_dir$"):
        Sweep.start(config, tmp_path / "mine")
    with Sweep.start(config, tmp_path / "sweep"):
        child = os.fork()
        if child == 0:
            try:
                Sweep.resume(tmp_path / "sweep")
            except RunInUseError:
                os._exit(3)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3


def test_what_is_refused_leaves_no_folder(
    base: TrainingConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = SweepConfig(base=base, options={"hidden_dim": [4, 1_000_000]})
    monkeypatch.setattr("charlm._memory.total_memory", lambda: 10**6)
    with pytest.raises(ValueError, match=r"takes .* of memory, and this machine has 1 MB \(hidden_dim=1000000\)$"):
        Sweep.start(config, tmp_path / "deep" / "sweep")
    many = SweepConfig(base=base, options={"hidden_dim": [4, 5]}, seeds=200)
    with pytest.raises(ValueError, match=r"^a sweep of 400 models takes 1 MB of memory, and this machine has 1 MB$"):
        Sweep.start(many, tmp_path / "deep" / "sweep")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory, base: TrainingConfig) -> Path:
    """A sweep that was interrupted at step 8, after a rung."""
    folder = tmp_path_factory.mktemp("begun") / "sweep"
    config = SweepConfig(base=base, options={"learning_rate": LogUniform(0.02, 0.2)}, trials=4, halving=2)
    assert config.rungs == ((5, 2), (9, 1))
    with Sweep.start(config, folder) as sweep:
        save = sweep._save

        def save_and_fail() -> None:
            save()
            if sweep.step == 8:
                raise RuntimeError("power cut")

        sweep._save = save_and_fail  # type: ignore[method-assign]
        with pytest.raises(RuntimeError, match=r"^power cut$"):
            sweep.run(4)
    return folder


def edit_json(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        values = json.loads((folder / "sweep.json").read_text())
        change(values)
        (folder / "sweep.json").write_text(json.dumps(values))

    return edit


def edit_result(**changes: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        first, *others = (folder / "results.jsonl").read_text().splitlines()
        (folder / "results.jsonl").write_text("\n".join([json.dumps({**json.loads(first), **changes}), *others]) + "\n")

    return edit


def edit_tensors(change: Callable[[dict[str, torch.Tensor], dict[str, str]], None]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "models.safetensors"
        with open(path, "rb", buffering=0) as file:
            found = TensorFile(file, path.stat().st_size)
            tensors, metadata = found.read(), found.metadata
        change(tensors, metadata)
        path.write_bytes(b"".join(format_tensors(tensors, metadata)))

    return edit


def write(name: str, content: bytes) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return edit


def training_model(tensors: dict[str, torch.Tensor]) -> str:
    """The number of a model, as its tensors begin."""
    return min(tensors).partition(".")[0]


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "no description": (
        lambda folder: (folder / "sweep.json").unlink(),
        "is not a sweep folder, or is incomplete: ",
    ),
    "not JSON": (write("sweep.json", b"{"), "sweep.json is not JSON: "),
    "a list": (write("sweep.json", b"[]"), "sweep.json is not the description of a sweep: it is []"),
    "a newer format": (
        edit_json(lambda values: values.update(format=2)),
        "sweep.json has format version 2; this charlm reads up to 1: install a newer charlm",
    ),
    "no sweep": (edit_json(lambda values: values.pop("sweep")), "sweep.json is damaged: it has no 'sweep'"),
    "another option": (
        edit_json(lambda values: values["sweep"].update(dropout=0.1)),
        "sweep.json is damaged: sweep has an unknown key 'dropout', with the value 0.1",
    ),
    "a range of three": (
        edit_json(lambda values: values["sweep"]["options"].update(learning_rate={"log": [1, 2, 3]})),
        "sweep.json is damaged: options.learning_rate must be a list, or a range of two numbers, got ",
    ),
    "a model that fits nowhere": (
        edit_json(lambda values: values["sweep"]["base"].update(hidden_dim=2**31 - 1, embedding_dim=2**31 - 1)),
        "takes ",
    ),
    "other draws": (
        edit_json(lambda values: values["sweep"].update(draw_seed=9)),
        "results.jsonl, line 1, is damaged: it ",
    ),
    "more models": (
        edit_json(lambda values: values["sweep"].update(trials=5)),
        "results.jsonl must have 5 lines, one for each model, got 4",
    ),
    "an unknown status": (
        edit_result(status="lost"),
        "results.jsonl, line 1, is damaged: status must be ",
    ),
    "a step beyond the end": (
        edit_result(step=19),
        "line 1, is damaged: step must be in 0 .. 18, got 19",
    ),
    "no loss": (
        edit_result(status="done", dev=None),
        "line 1, is damaged: a model that is done must have a loss",
    ),
    "a number that is none": (
        write("results.jsonl", b'{"dev": NaN}\n' * 4),
        "line 1, is damaged: NaN is not a number",
    ),
    "another step": (
        edit_result(status="training", step=3, dev=1.0),
        "models that are being trained are at the steps [3, 8",
    ),
    "no tensors": (lambda folder: (folder / "models.safetensors").unlink(), "it has no models.safetensors"),
    "half of the tensors": (
        lambda folder: os.truncate(folder / "models.safetensors", 1000),
        "models.safetensors is truncated or not a safetensors file: ",
    ),
    "tensors of another step": (
        edit_tensors(lambda tensors, metadata: metadata.update(step="4")),
        "mixes two states: models.safetensors is of step '4', results.jsonl of step 8",
    ),
    "tensors of a newer format": (
        edit_tensors(lambda tensors, metadata: metadata.update(charlm_format="2")),
        "models.safetensors has format version 2",
    ),
    "a tensor too many": (
        edit_tensors(lambda tensors, metadata: tensors.update(spare=torch.zeros(1))),
        "models.safetensors does not hold the models of sweep.json: it has an unknown tensor 'spare'",
    ),
    "a tensor of another shape": (
        edit_tensors(lambda tensors, _: tensors.update({f"{training_model(tensors)}.model.bias1": torch.zeros(5)})),
        ".model.bias1' has the shape (5,), not (4,)",
    ),
    "too many losses": (
        edit_tensors(lambda tensors, _: tensors.update({f"{training_model(tensors)}.unrecorded": torch.zeros(9)})),
        "models.safetensors is damaged: it has losses of more than the 8 steps that were done",
    ),
    "losses of other steps": (
        edit_tensors(lambda tensors, _: tensors.update({f"{training_model(tensors)}.unrecorded": torch.zeros(3)})),
        ": its losses are not those of ",
    ),
    "a curve of infinities": (
        edit_tensors(lambda tensors, _: tensors[f"{training_model(tensors)}.curve"].fill_(math.inf)),
        ": its records have numbers that are not finite",
    ),
    "a link to elsewhere": (
        lambda folder: ((folder / "sweep.json").unlink(), os.symlink("/dev/zero", folder / "sweep.json"))[1],
        "sweep.json is not a regular file",
    ),
    "a folder in its place": (
        lambda folder: ((folder / "results.jsonl").unlink(), (folder / "results.jsonl").mkdir())[1],
        "Is a directory",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_folder_is_named(begun: Path, tmp_path: Path, name: str) -> None:
    damage, message = DAMAGE[name]
    folder = tmp_path / "sweep"
    shutil.copytree(begun, folder)
    damage(folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and not path.is_symlink()}
    with pytest.raises((CheckpointError, ValueError, IsADirectoryError)) as caught:
        Sweep.resume(folder)
    assert message in str(caught.value)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path in before} == before
    # The lock is let go: a second look says the same.
    with pytest.raises(type(caught.value)):
        Sweep.resume(folder)


def test_the_undamaged_one_goes_on(begun: Path, tmp_path: Path) -> None:
    shutil.copytree(begun, tmp_path / "sweep")
    with Sweep.resume(tmp_path / "sweep") as sweep:
        assert sweep.step == 8
        assert [result.status for result in sweep.results()] == ["training", "training", "stopped", "stopped"]
        sweep.run(4)
    with Sweep.start(sweep.config, tmp_path / "whole") as other:
        other.run(4)
    assert contents(tmp_path / "sweep") == contents(tmp_path / "whole")


def test_nothing_is_written_through_a_link(begun: Path, tmp_path: Path) -> None:
    shutil.copytree(begun, tmp_path / "sweep")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "file").write_text("mine")
    os.symlink(tmp_path / "elsewhere", tmp_path / "sweep" / "best")
    (tmp_path / "sweep" / "models.safetensors").rename(tmp_path / "models")
    os.symlink(tmp_path / "models", tmp_path / "sweep" / "models.safetensors")
    before = (tmp_path / "models").read_bytes()
    with Sweep.resume(tmp_path / "sweep") as sweep:
        sweep.run(4)
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert (tmp_path / "models").read_bytes() == before
    assert not (tmp_path / "sweep" / "best").is_symlink()
    assert checkpoint.load(tmp_path / "sweep" / "best").step == STEPS


def test_what_is_left_of_the_best_run_is_replaced(begun: Path, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(begun, tmp_path / "clean")
    shutil.copytree(begun, tmp_path / "sweep")
    shutil.copytree(finished / "best", tmp_path / "sweep" / "best")
    (tmp_path / "sweep" / "best" / "metrics.jsonl").write_text("no record\n")
    for name in ("clean", "sweep"):
        with Sweep.resume(tmp_path / name) as sweep:
            sweep.run(4)
    assert contents(tmp_path / "sweep") == contents(tmp_path / "clean")


def test_what_is_no_sweep_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere is not a sweep folder: no such folder$"):
        Sweep.resume(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"file is not a sweep folder: it is a file$"):
        Sweep.resume(tmp_path / "file")


def test_results_are_those_of_the_file(finished: Path) -> None:
    lines = [json.loads(line) for line in (finished / "results.jsonl").read_text().splitlines()]
    assert [line["model"] for line in lines] == list(range(16))
    with Sweep.resume(finished) as sweep:
        results = sorted(sweep.results(), key=lambda result: result.model)
    assert [SweepResult(**line) for line in lines] == results
    assert data.load(sweep.config.base.path).name == "names"
