"""A run folder always holds one whole state, resumes bit for bit, and says what is wrong with it when damaged."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import small_names
import torch

from charlm import MLP, CountBigram, NeuralBigram, TrainingConfig, Vocabulary, checkpoint, data
from charlm.checkpoint import CheckpointError
from charlm.fingerprint import Fingerprint
from charlm.models import LanguageModel
from charlm.trainer import Trainer

CONFIG = TrainingConfig(embedding_dim=4, hidden_dim=8, steps=40, batch_size=8, backend="eager")
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"optimizer": "sgd", "learning_rate": 0.1},
    "momentum": {"optimizer": "sgd", "learning_rate": 0.05, "momentum": 0.9},
    "adamw": {"optimizer": "adamw", "learning_rate": 0.01, "weight_decay": 0.1, "schedule": "cosine"},
}
FILES = ("config.json", "model.safetensors", "optimizer.safetensors")


@pytest.fixture
def dataset(tmp_path: Path) -> data.Dataset:
    return small_names.load(tmp_path)


def start(dataset: data.Dataset, config: TrainingConfig = CONFIG) -> Trainer:
    return config.create_trainer(config.create_model(len(dataset.vocabulary)), dataset)


def save(run: Path, trainer: Trainer, config: TrainingConfig = CONFIG) -> None:
    checkpoint.save(
        run,
        config=config,
        vocabulary=trainer.dataset.vocabulary,
        model=trainer.model,
        training_state=trainer.state_dict(),
        data=Fingerprint.of(trainer.dataset),
    )


@pytest.fixture
def saved(tmp_path: Path, dataset: data.Dataset) -> Path:
    """A run folder at step 10, with the optimizer state of AdamW."""
    config = TrainingConfig.from_dict({**CONFIG.to_dict(), **OPTIMIZERS["adamw"]})
    trainer = start(dataset, config)
    trainer.run(10)
    save(tmp_path / "run", trainer, config)
    return tmp_path / "run"


@pytest.mark.parametrize("batch_size", [8, "full"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_run_resumes_from_disk_bit_for_bit(
    tmp_path: Path, dataset: data.Dataset, optimizer: str, batch_size: int | str
) -> None:
    config = TrainingConfig.from_dict({**CONFIG.to_dict(), **OPTIMIZERS[optimizer], "batch_size": batch_size})
    whole = start(dataset, config)
    losses = whole.run(40)

    stopped = start(dataset, config)
    stopped.run(17)
    save(tmp_path / "run", stopped, config)

    run = checkpoint.load(tmp_path / "run", training=True)
    assert run.step == 17
    assert run.config == config
    assert run.vocabulary == dataset.vocabulary
    assert run.training_state is not None
    resumed = run.config.create_trainer(run.model, dataset)
    resumed.load_state_dict(run.training_state)
    assert torch.equal(resumed.run(23), losses[17:])
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], tensor), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["count-bigram", "bigram", "mlp"])
def test_every_model_comes_back(tmp_path: Path, dataset: data.Dataset, kind: str, dtype: torch.dtype) -> None:
    size = len(dataset.vocabulary)
    model: LanguageModel
    if kind == "count-bigram":
        model = CountBigram(size, smoothing=0.5).fit(dataset.train)
    elif kind == "bigram":
        model = NeuralBigram(size, dtype=dtype)
        torch.nn.init.normal_(model.weight)
    else:
        model = MLP(size, 3, 4, 8, direct=True, softcap=15.0, dtype=dtype)
    checkpoint.save(tmp_path / "run", config=CONFIG, vocabulary=dataset.vocabulary, model=model)

    generator_state = torch.get_rng_state()
    run = checkpoint.load(tmp_path / "run", backend="eager", training=True)
    assert torch.equal(torch.get_rng_state(), generator_state)
    assert run.training_state is None
    assert run.model.config() == model.config()
    assert run.model.backend == "eager"
    assert all(parameter.requires_grad for parameter in run.model.parameters())
    for name, tensor in model.state_dict().items():
        assert run.model.state_dict()[name].dtype == tensor.dtype
        assert torch.equal(run.model.state_dict()[name], tensor)


def test_a_vocabulary_beyond_ascii_comes_back(tmp_path: Path) -> None:
    vocabulary = Vocabulary('aé\u0439\u4e2d\U0001f600\n"\\', boundary="\n")
    checkpoint.save(tmp_path, config=CONFIG, vocabulary=vocabulary, model=NeuralBigram(len(vocabulary)))
    assert checkpoint.load(tmp_path, training=True).vocabulary == vocabulary


def test_a_fingerprint_tells_data_apart(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"

    def fingerprint(text: str, **options: Any) -> Fingerprint:
        path.write_text(text)
        return Fingerprint.of(data.load(path, **options))

    lines = [f"{first}{second}b" for first in "abcd" for second in "abcd"]
    text = "\n".join(lines)
    original = fingerprint(text)
    assert original.tokens == 16 * (3 + 3) + 1
    assert original == fingerprint(text + "\n\n")
    assert Fingerprint.from_dict(json.loads(json.dumps(original.to_dict()))) == original
    others = [
        fingerprint(text.replace("cd", "dc")),
        fingerprint(text.replace("cb\na", "cba\n")),
        fingerprint("\n".join(lines[::-1])),
        fingerprint(text.replace("d", "e")),
        fingerprint(text, seed=1),
        fingerprint(text, context_length=2),
        fingerprint(text, mode="stream"),
    ]
    assert len({other.sha256 for other in [original, *others]}) == 8


def test_a_run_knows_its_data(tmp_path: Path, dataset: data.Dataset, saved: Path) -> None:
    run = checkpoint.load(saved, training=True)
    assert run.data == Fingerprint.of(dataset)


def test_the_folder_holds_the_files_of_the_contract(saved: Path) -> None:
    assert sorted(path.name for path in saved.iterdir()) == sorted(FILES)
    description = json.loads((saved / "config.json").read_text())
    assert description["format"] == 1
    assert description["model"]["kind"] == "mlp"
    assert description["vocabulary"]["boundary"] == "."
    assert description["training"]["learning_rate"] == 0.01
    tensors = safetensors.torch.load_file(saved / "model.safetensors")
    assert set(tensors) == {"embedding", "weight1", "bias1", "weight2", "bias2"}
    assert "optimizer.weight1.exp_avg" in safetensors.torch.load_file(saved / "optimizer.safetensors")


class Crash(BaseException):
    """The machine stops here."""


def crash_at(count: int, monkeypatch: pytest.MonkeyPatch) -> Callable[[], bool]:
    """Makes the `count`-th step of a save that changes or syncs the disk fail; tells whether it was reached."""
    calls = 0

    def failing(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == count:
                raise Crash
            return function(*arguments, **options)

        return call

    for module, name in [(os, "replace"), (os, "rename"), (os, "fsync"), (Path, "mkdir"), (Path, "rmdir")]:
        monkeypatch.setattr(module, name, failing(getattr(module, name)))
    return lambda: calls >= count


def test_a_crash_anywhere_in_a_save_leaves_the_old_state_or_the_new_one(
    tmp_path: Path, dataset: data.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = start(dataset)
    states = {}
    for step in (10, 20, 30):
        trainer.run(10)
        states[step] = trainer.state_dict()

    def save_state(run: Path, step: int) -> None:
        trainer.load_state_dict(states[step])
        save(run, trainer)

    def loaded_step(run: Path) -> int:
        found = checkpoint.load(run, training=True)
        for name, tensor in states[found.step]["model"].items():
            assert torch.equal(found.model.state_dict()[name], tensor)
        assert found.training_state is not None
        assert torch.equal(found.training_state["batches"]["start"], states[found.step]["batches"]["start"])
        return found.step

    outcomes = []
    for count in range(1, 100):
        run = tmp_path / f"run{count}"
        save_state(run, 10)
        with monkeypatch.context() as patch:
            reached = crash_at(count, patch)
            try:
                save_state(run, 20)
            except Crash:
                outcomes.append(loaded_step(run))
            if not reached():
                break
        # Whatever the crash left behind, the next save works and cleans up.
        save_state(run, 30)
        assert loaded_step(run) == 30
        assert sorted(path.name for path in run.iterdir()) == sorted(FILES)
    # Many points before the commit and many after it, and no way back once the new state was seen.
    assert outcomes == sorted(outcomes)
    assert outcomes.count(10) >= 6
    assert outcomes.count(20) >= 6


def test_a_first_save_cut_off_is_not_a_run(
    tmp_path: Path, dataset: data.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        crash_at(4, patch)
        with pytest.raises(Crash):
            save(tmp_path / "run", start(dataset))
    with pytest.raises(CheckpointError, match=r"not a run folder, or is incomplete: it has no config.json"):
        checkpoint.load(tmp_path / "run", training=True)


def rewrite_config(run: Path, change: Callable[[dict[str, Any]], None]) -> None:
    description = json.loads((run / "config.json").read_text())
    change(description)
    (run / "config.json").write_text(json.dumps(description))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(format=2), r"config.json has format version 2; this charlm reads up to 1: install a newer"),
        (lambda c: c.update(format="x"), "config.json has a format version that does not exist: 'x'"),
        (lambda c: c.pop("format"), "config.json is not the configuration of a run: it has no 'format'"),
        (lambda c: c.pop("vocabulary"), "config.json is not the configuration of a run: it has no 'vocabulary'"),
        (lambda c: c["model"].pop("hidden_dim"), "config.json is damaged: .*hidden_dim"),
        (
            lambda c: c["model"].update(hidden_dim=-8),
            "config.json is damaged: hidden_dim must be a positive integer, got -8",
        ),
        (lambda c: c["model"].update(hidden_dim=9), "model.safetensors does not hold the model of config.json"),
        (lambda c: c["training"].update(steps="many"), "config.json is damaged: steps must be int, got 'many'"),
        (lambda c: c["vocabulary"].update(characters="abc"), "config.json is damaged: vocab_size=.*vocabulary has 4"),
        (lambda c: c.update(model=3), "config.json is damaged"),
        (lambda c: c.update(training=None), "config.json is damaged"),
    ],
)
def test_a_damaged_configuration_is_explained(
    saved: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    rewrite_config(saved, change)
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load(saved, training=True)


@pytest.mark.parametrize("content", [b"", b"{", b"[1, 2]", b"\xff\xfe\x00", b"names\n"])
def test_a_configuration_that_is_not_json_is_explained(saved: Path, content: bytes) -> None:
    (saved / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"config\.json is not"):
        checkpoint.load(saved, training=True)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors"])
def test_a_truncated_file_is_named_wherever_it_was_cut(saved: Path, name: str) -> None:
    content = (saved / name).read_bytes()
    for size in (0, 3, 8, 20, len(content) // 2, len(content) - 1):
        (saved / name).write_bytes(content[:size])
        with pytest.raises(CheckpointError, match=f"{name} is truncated or not a safetensors file"):
            checkpoint.load(saved, training=True)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors"])
def test_a_foreign_file_is_named(saved: Path, name: str) -> None:
    path = saved / name
    for content in (b"PK\x03\x04" + bytes(100), b"\x80\x02}q\x00." * 20, bytes(64)):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=f"{name} is truncated or not a safetensors file"):
            checkpoint.load(saved, training=True)
    tensors = {"weight": torch.zeros(2)}
    for metadata in (None, {"step": "1"}, {"charlm_format": "1"}, {"charlm_format": "1", "step": "soon"}):
        safetensors.torch.save_file(tensors, path, metadata=metadata)
        with pytest.raises(CheckpointError, match=f"{name} was not written by charlm"):
            checkpoint.load(saved, training=True)
    safetensors.torch.save_file(tensors, path, metadata={"charlm_format": "2", "step": "10"})
    with pytest.raises(CheckpointError, match=f"{name} has format version 2"):
        checkpoint.load(saved, training=True)
    safetensors.torch.save_file(tensors, path, metadata={"charlm_format": "1", "step": "10"})
    with pytest.raises(CheckpointError, match=rf"{name} does not hold the .*: it has an unknown tensor 'weight'"):
        checkpoint.load(saved, training=True)


def test_a_missing_file_is_named(saved: Path, tmp_path: Path) -> None:
    for name in FILES:
        run = tmp_path / f"without {name}"
        shutil.copytree(saved, run)
        (run / name).unlink()
        with pytest.raises(CheckpointError, match=f"it has no {name}"):
            checkpoint.load(run, training=True)
    with pytest.raises(CheckpointError, match="nowhere is not a run folder: no such folder"):
        checkpoint.load(tmp_path / "nowhere", training=True)
    with pytest.raises(CheckpointError, match=r"config\.json is not a run folder"):
        checkpoint.load(saved / "config.json", training=True)


def test_files_of_two_checkpoints_are_not_mixed(saved: Path, tmp_path: Path, dataset: data.Dataset) -> None:
    trainer = start(dataset)
    trainer.run(20)
    save(tmp_path / "other", trainer)
    shutil.copy(tmp_path / "other" / "model.safetensors", saved)
    with pytest.raises(CheckpointError, match=r"mixes two checkpoints: model.* is of step 20, optimizer.* of step 10"):
        checkpoint.load(saved, training=True)


def test_a_pickle_is_never_executed(saved: Path) -> None:
    class Exploit:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(saved / "owned"),)

    torch.save({"weight": Exploit()}, saved / "model.safetensors")
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        checkpoint.load(saved, training=True)
    assert not (saved / "owned").exists()


def test_metrics_are_appended_and_truncated_to_a_step(tmp_path: Path) -> None:
    assert checkpoint.read_metrics(tmp_path) == []
    checkpoint.truncate_metrics(tmp_path, 0)
    first = [{"step": step, "loss": step / 7} for step in (10, 20)]
    checkpoint.append_metrics(tmp_path, first)
    checkpoint.append_metrics(tmp_path, [{"step": 30, "loss": float("inf"), "dev": 0.5}])
    assert checkpoint.read_metrics(tmp_path) == [*first, {"step": 30, "loss": None, "dev": 0.5}]

    checkpoint.truncate_metrics(tmp_path, 20)
    assert checkpoint.read_metrics(tmp_path) == first
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
    with pytest.raises(ValueError, match=r"must have an integer 'step', got \{'loss': 1\.0\}"):
        checkpoint.append_metrics(tmp_path, [{"loss": 1.0}])


def test_a_metrics_line_cut_off_by_a_crash_is_dropped_and_other_damage_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3, "lo')
    assert checkpoint.read_metrics(tmp_path) == [{"step": 1}, {"step": 2}]
    checkpoint.truncate_metrics(tmp_path, 5)
    checkpoint.append_metrics(tmp_path, [{"step": 3}])
    assert checkpoint.read_metrics(tmp_path) == [{"step": 1}, {"step": 2}, {"step": 3}]

    for damage, message in [("{oops\n", "is not JSON"), ("[1]\n", "is not a record with an integer 'step'")]:
        path.write_text('{"step": 1}\n' + damage + '{"step": 2}\n')
        with pytest.raises(CheckpointError, match=f"metrics.jsonl, line 2, {message}"):
            checkpoint.read_metrics(tmp_path)
