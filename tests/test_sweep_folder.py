"""The folder of a sweep: whose it is, what is in it, and what a damaged one says."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sweeps
import torch
from sweeps import STEPS, contents

from charlm import TrainingConfig, checkpoint, data
from charlm.run_folder import CheckpointError
from charlm.run_lock import RunInUseError
from charlm.search_space import LogUniform
from charlm.sweep import Sweep, SweepConfig, SweepResult
from charlm.tensor_files import TensorFile, format_tensors


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, fifty_names: str) -> TrainingConfig:
    return sweeps.base_on(fifty_names, tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, base: TrainingConfig) -> Path:
    return sweeps.finish(sweeps.mixed(base), tmp_path_factory.mktemp("finished") / "sweep")


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
