"""Runs on disk: a folder that always holds one complete, consistent state of a training run.

    config.json             format version, model, vocabulary, training options, fingerprint of the data
    model.safetensors       the model's parameters and buffers
    optimizer.safetensors   the optimizer's state and the batch generator
    metrics.jsonl           one JSON object a line, each with its "step"
    text.txt                what the run was trained on, if that came out of a pipe; dev.txt and test.txt likewise

A save writes all files into `.saving`, flushes them to disk, and commits by renaming that folder to `.saved`; only
then do the files move, one rename each, to their places. A reader takes a file from `.saved` while it is there. So
whenever a save is cut off, readers find the whole old state or the whole new one, and the next save finishes the move.
Both tensor files also name the step they belong to. Nothing is ever unpickled.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_safetensors
from safetensors.torch import save as format_safetensors
from torch import Tensor

from charlm import models
from charlm.data import Dataset
from charlm.fingerprint import Fingerprint
from charlm.models import LanguageModel
from charlm.presets import KEPT_TEXTS, TrainingConfig
from charlm.vocabulary import Vocabulary

FORMAT = 1

_CONFIG = "config.json"
_MODEL = "model.safetensors"
_OPTIMIZER = "optimizer.safetensors"
_METRICS = "metrics.jsonl"
_SAVING = ".saving"
_SAVED = ".saved"
# The parts of `Trainer.state_dict()` that optimizer.safetensors holds, as prefixes of its tensor names.
_TRAINING_PARTS = ("optimizer", "batches")


class CheckpointError(ValueError):
    """A file of a run is missing, damaged, foreign, or newer than this charlm."""


@dataclass(frozen=True)
class Run:
    """What `load` finds in a run folder.

    Attributes:
        config: the options the run was started with.
        vocabulary: of the model.
        model: with its trained parameters.
        step: training steps done.
        training_state: for `Trainer.load_state_dict`; None if the model is not trained in steps.
        data: the fingerprint of the data it was trained on; None if it was saved without.
        run_dir: the folder.
    """

    config: TrainingConfig
    vocabulary: Vocabulary
    model: LanguageModel
    step: int
    training_state: dict[str, Any] | None
    data: Fingerprint | None
    run_dir: Path

    def load_data(self, path: str | None = None, *, dev: str | None = None, test: str | None = None) -> Dataset:
        """The data that the run was trained on.

        Args:
            path, dev, test: where it is now; None is where it was.

        Raises:
            ValueError: the file is not what it was.
        """
        moved: dict[str, Any] = {
            name: value for name, value in (("path", path), ("dev", dev), ("test", test)) if value is not None
        }
        config = replace(self.config, **moved)
        kept = {name: str(_place(self.run_dir, file)) for name, file in KEPT_TEXTS.items()}
        dataset = config.load_data(self.vocabulary, kept)
        if self.data is not None and Fingerprint.of(dataset) != self.data:
            size, original_size = len(dataset.all.tokens), self.data.tokens
            difference = f"it has {size:,} tokens, not {original_size:,}" if size != original_size else "other tokens"
            files = [file for file in config.texts(kept).values() if file is not None]
            raise ValueError(
                f"{', '.join(files) or 'the file of embedded names'} is not the data of this run ({difference}): "
                "give the path of the file as it was"
            )
        return dataset


def save(
    run_dir: str | os.PathLike[str],
    *,
    config: TrainingConfig,
    vocabulary: Vocabulary,
    model: LanguageModel,
    training_state: Mapping[str, Any] | None = None,
    data: Fingerprint | None = None,
    texts: Mapping[str, bytes] | None = None,
) -> None:
    """Writes a checkpoint, atomically replacing the one in `run_dir`; creates the folder.

    Args:
        run_dir: the folder of the run.
        config, vocabulary, model: what `load` returns again.
        training_state: `Trainer.state_dict()`; None for a model that is not trained in steps.
        data: `Fingerprint.of` the dataset, so that the run only goes on with the same.
        texts: files to keep beside the checkpoint, by name: those of `charlm.presets.KEPT_TEXTS`.
    """
    run_dir = Path(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    step = 0 if training_state is None else training_state["step"]
    training_tensors = {
        f"{part}.{name}": value
        for part in _TRAINING_PARTS
        for name, value in ({} if training_state is None else training_state[part]).items()
    }
    description = {
        "format": FORMAT,
        "model": model.config(),
        "vocabulary": vocabulary.to_dict(),
        "training": config.to_dict(),
        "data": None if data is None else data.to_dict(),
        "trained_in_steps": training_state is not None,
    }
    files = {
        _CONFIG: (json.dumps(description, indent=2, ensure_ascii=False) + "\n").encode(),
        _MODEL: _format_tensors(model.state_dict(), step),
        _OPTIMIZER: _format_tensors(training_tensors, step),
        **(texts or {}),
    }

    _publish(run_dir)
    saving = run_dir / _SAVING
    shutil.rmtree(saving, ignore_errors=True)
    saving.mkdir()
    for name, content in files.items():
        _write_synced(saving / name, content)
    _sync_folder(saving)
    os.rename(saving, run_dir / _SAVED)
    _sync_folder(run_dir)
    _publish(run_dir)


def load(run_dir: str | os.PathLike[str], *, backend: str = "ops") -> Run:
    """Reads the checkpoint in `run_dir`; writes nothing.

    Args:
        run_dir: the folder of the run.
        backend: of the model.

    Raises:
        CheckpointError: a file is missing, truncated, not of charlm, or from a newer charlm; the message names it.
    """
    run_dir = Path(run_dir)
    description = _read_config(run_dir)
    path = run_dir / _CONFIG
    try:
        config = TrainingConfig.from_dict(description["training"])
        vocabulary = Vocabulary.from_dict(description["vocabulary"])
        model = models.from_config(description["model"], backend=backend, generator=torch.Generator())
        data = None if description["data"] is None else Fingerprint.from_dict(description["data"])
    except KeyError as error:
        raise CheckpointError(f"{path} is not the configuration of a run: it has no {error}") from error
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    if len(vocabulary) != model.vocab_size:
        raise CheckpointError(
            f"{path} is damaged: vocab_size={model.vocab_size}, but the vocabulary has {len(vocabulary)} characters"
        )

    model_tensors, step = _read_tensors(run_dir, _MODEL)
    try:
        # `assign` keeps the dtype that was trained; the shapes are checked either way.
        model.load_state_dict(model_tensors, assign=True)
    except RuntimeError as error:
        raise CheckpointError(f"{run_dir / _MODEL} does not hold the model of {_CONFIG}: {error}") from error
    if not description.get("trained_in_steps", True):
        return Run(config, vocabulary, model, step, None, data, run_dir)

    training_tensors, training_step = _read_tensors(run_dir, _OPTIMIZER)
    if training_step != step:
        raise CheckpointError(
            f"{run_dir} mixes two checkpoints: {_MODEL} is of step {step}, {_OPTIMIZER} of step {training_step}"
        )
    state: dict[str, Any] = {"step": step, "model": model_tensors, **{part: {} for part in _TRAINING_PARTS}}
    for name, value in training_tensors.items():
        part, _, rest = name.partition(".")
        if part not in _TRAINING_PARTS or not rest:
            raise CheckpointError(f"{run_dir / _OPTIMIZER} has an unknown tensor {name!r}")
        state[part][rest] = value
    return Run(config, vocabulary, model, step, state, data, run_dir)


def append_metrics(run_dir: str | os.PathLike[str], records: Iterable[Mapping[str, Any]]) -> None:
    """Appends records, each with an integer "step", to metrics.jsonl; numbers that are not finite become null."""
    lines = []
    for record in records:
        if not isinstance(record.get("step"), int):
            raise ValueError(f"a metrics record must have an integer 'step', got {dict(record)}")
        finite = {name: None if _is_non_finite(value) else value for name, value in record.items()}
        lines.append(json.dumps(finite, allow_nan=False) + "\n")
    with open(Path(run_dir) / _METRICS, "a", encoding="utf-8") as file:
        file.writelines(lines)
        file.flush()
        os.fsync(file.fileno())


def read_metrics(run_dir: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The records of metrics.jsonl in order; empty without the file. A last line cut off by a crash does not count.

    Raises:
        CheckpointError: another line is not a record.
    """
    path = Path(run_dir) / _METRICS
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    records = []
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):
        try:
            record = json.loads(line)
        except ValueError as error:
            raise CheckpointError(f"{path}, line {number}, is not JSON: {error}") from error
        if not isinstance(record, dict) or not isinstance(record.get("step"), int):
            raise CheckpointError(f"{path}, line {number}, is not a record with an integer 'step'")
        records.append(record)
    return records


def truncate_metrics(run_dir: str | os.PathLike[str], step: int) -> None:
    """Drops, atomically, the records after `step`: what a resumed run is going to write again."""
    kept = [record for record in read_metrics(run_dir) if record["step"] <= step]
    content = "".join(json.dumps(record) + "\n" for record in kept)
    path = Path(run_dir) / _METRICS
    temporary = path.with_name(f".{_METRICS}.saving")
    _write_synced(temporary, content.encode())
    os.replace(temporary, path)
    _sync_folder(path.parent)


def _publish(run_dir: Path) -> None:
    """Moves the files of a committed save to their places; also finishes a move that was cut off."""
    saved = run_dir / _SAVED
    if not saved.is_dir():
        return
    for path in sorted(saved.iterdir()):
        os.replace(path, run_dir / path.name)
    _sync_folder(run_dir)
    saved.rmdir()


def _place(run_dir: Path, name: str) -> Path:
    """Where a file is that is only saved once."""
    saved = run_dir / _SAVED / name
    return saved if saved.exists() else run_dir / name


def _read(run_dir: Path, name: str) -> bytes:
    # A save in another process may move the file between the two attempts, but never away from its place.
    for path in (run_dir / _SAVED / name, run_dir / name):
        try:
            return path.read_bytes()
        except FileNotFoundError:
            continue
        except (NotADirectoryError, IsADirectoryError) as error:
            raise CheckpointError(f"{run_dir} is not a run folder: {error}") from error
    if not run_dir.is_dir():
        raise CheckpointError(f"{run_dir} is not a run folder: no such folder")
    raise CheckpointError(f"{run_dir} is not a run folder, or is incomplete: it has no {name}")


def _read_config(run_dir: Path) -> dict[str, Any]:
    path = run_dir / _CONFIG
    try:
        description = json.loads(_read(run_dir, _CONFIG))
    except ValueError as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    if not isinstance(description, dict) or "format" not in description:
        raise CheckpointError(f"{path} is not the configuration of a run: it has no 'format'")
    _check_format(path, description["format"])
    return description


def _format_tensors(tensors: Mapping[str, Tensor], step: int) -> bytes:
    contiguous = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    content: bytes = format_safetensors(contiguous, metadata={"charlm_format": str(FORMAT), "step": str(step)})
    return content


def _read_tensors(run_dir: Path, name: str) -> tuple[dict[str, Tensor], int]:
    path = run_dir / name
    content = _read(run_dir, name)
    try:
        tensors = parse_safetensors(content)
    except (SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} is truncated or not a safetensors file: {error}") from error
    # The header, valid as the file was parsed: its length in 8 bytes, then JSON.
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    metadata = header.get("__metadata__", {})
    if "charlm_format" not in metadata or not metadata.get("step", "").isdecimal():
        raise CheckpointError(f"{path} was not written by charlm: its metadata has no format and step")
    _check_format(path, int(metadata["charlm_format"]) if metadata["charlm_format"].isdecimal() else None)
    return tensors, int(metadata["step"])


def _check_format(path: Path, version: object) -> None:
    if not isinstance(version, int) or version < 1:
        raise CheckpointError(f"{path} has a format version that does not exist: {version!r}")
    if version > FORMAT:
        raise CheckpointError(
            f"{path} has format version {version}; this charlm reads up to {FORMAT}: install a newer charlm"
        )


def _is_non_finite(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _write_synced(path: Path, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
