"""The folder of a sweep: what is in its files, how they are written, and what is checked when they are read.

    sweep.json          format version, what the sweep is, fingerprint of the data
    results.jsonl       one JSON object a line for each model: its options, how far it came, its losses, its status
    models.safetensors  all that is needed to go on with the models that are not at their end; gone when all are
    text.txt            what the models are trained on, if that came out of a pipe; dev.txt and test.txt likewise
    best/               the folder of a run: the best model, when all are at their end

All but best/ are replaced together, atomically, as the files of a run are. A folder may come from anybody: what its
files say is checked, against each other too, before memory is taken for it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from torch import Tensor

from charlm import checkpoint, run_folder
from charlm._rules import shown
from charlm.config_json import SWEEP_FILE, check_format
from charlm.configuration import KEPT_TEXTS
from charlm.fingerprint import Fingerprint
from charlm.run_folder import CheckpointError, blamed
from charlm.schema import checked, parse_json
from charlm.sweep.config import SweepConfig
from charlm.sweep.results import Status, SweepResult, order
from charlm.tensor_files import MAX_LARGE_HEADER, TensorFile, format_tensors

RESULTS = "results.jsonl"
MODELS = "models.safetensors"
FORMAT = 1
# A sweep of texts of lists, and of results a line for each model, take far less.
_MAX_BYTES, _MAX_RESULT = 1 << 24, 1 << 12


class _Description(TypedDict):
    format: int
    # Checked by what is made of them: `SweepConfig`, and a `Fingerprint` for each length of contexts.
    sweep: dict
    data: dict


class _Result(TypedDict):
    model: int
    options: dict
    seed: int
    step: int
    loss: float | None
    dev: float | None
    status: Status


@dataclass(frozen=True)
class Saved:
    """What `load` finds in the folder of a sweep.

    Attributes:
        config: what the sweep is.
        data: the fingerprints of what its models are trained on, by the lengths of contexts: boundaries before a line
            are tokens.
        results: of all models, by number.
    """

    config: SweepConfig
    data: Mapping[int, Fingerprint]
    results: tuple[SweepResult, ...]


def save(
    folder: Path,
    saved: Saved,
    tensors: Mapping[str, Tensor] | None,
    step: int,
    texts: Mapping[str, bytes] | None = None,
) -> None:
    """Replaces all files but best/, atomically.

    Args:
        folder: which this process has the lock of.
        saved: what `load` returns again.
        tensors: what `load_tensors` returns again; None where nothing goes on, and there is no such file then.
        step: of the models that are being trained.
        texts: files to keep, by name: those of `charlm.configuration.KEPT_TEXTS`.
    """
    data = {str(length): fingerprint.to_dict() for length, fingerprint in saved.data.items()}
    description = {"format": FORMAT, "sweep": saved.config.to_dict(), "data": data}
    text = json.dumps(description, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    lines = (json.dumps(result.to_dict(), allow_nan=False) + "\n" for result in saved.results)
    files: dict[str, list[bytes]] = {
        # A path that is not UTF-8 has lone surrogates, which are written as Python does: \udcff.
        SWEEP_FILE: [text.encode("utf-8", "backslashreplace")],
        RESULTS: ["".join(lines).encode()],
        **{name: [content] for name, content in (texts or {}).items()},
    }
    if tensors is not None:
        files[MODELS] = format_tensors(tensors, {"charlm_format": str(FORMAT), "step": str(step)})
    run_folder.commit(folder, files)
    if tensors is None:
        run_folder.remove(folder / MODELS)


def discard(folder: Path) -> None:
    """Removes what `save` has written, or begun to write."""
    run_folder.discard_save(folder, (SWEEP_FILE, RESULTS, MODELS, *KEPT_TEXTS.values()))


def load(folder: Path) -> Saved:
    """What a sweep is, and what came of it so far.

    Raises:
        CheckpointError: it is not the folder of a sweep, or damaged, or from a newer charlm.
    """
    path = folder / SWEEP_FILE
    content = _read(folder, SWEEP_FILE, _MAX_BYTES)
    with blamed(path, " is not JSON"):
        values = parse_json(content)
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} is not the description of a sweep: it is {shown(values)}")
    if "format" in values:
        # First of all: what a newer charlm writes may have any form.
        check_format(path, values["format"], FORMAT)
    with blamed(path, " is damaged"):
        found = checked(values, _Description, "")
        config = SweepConfig.from_dict(found["sweep"])
        data = _read_data(found["data"], {own.context_length for own in config.configs})
    return Saved(config, data, _load_results(folder, config))


def load_tensors(
    folder: Path, step: int, expected: Mapping[str, Tensor], growing: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The tensors of a sweep that is to go on.

    Args:
        folder: of the sweep.
        step: that its models are at.
        expected: by name, a tensor of the shape and dtype that each should have.
        growing: likewise, but for the first size, which is at most `step`.

    Raises:
        CheckpointError: they are others, or there are none.
    """
    path = folder / MODELS
    opened, size = run_folder.open_file(folder, MODELS, "sweep")
    with opened, blamed(path, " is truncated or not a safetensors file"):
        file = TensorFile(opened, size, MAX_LARGE_HEADER)
        version = file.metadata.get("charlm_format", "")
        check_format(path, int(version) if version.isascii() and version.isdecimal() else version, FORMAT)
        if file.metadata.get("step") != str(step):
            raise CheckpointError(
                f"{folder} mixes two states: {MODELS} is of step {shown(file.metadata.get('step'))}, "
                f"{RESULTS} of step {step}"
            )
        rows = {name: len(file.tensors[name]) for name in growing if file.tensors.get(name, growing[name]).dim() > 0}
        if any(count > step for count in rows.values()):
            raise CheckpointError(f"{path} is damaged: it has losses of more than the {step} steps that were done")
        sized = {name: tensor.new_empty((rows.get(name, 0), *tensor.shape[1:])) for name, tensor in growing.items()}
        checkpoint.check_tensors(path, f"the models of {SWEEP_FILE}", file.tensors, {**expected, **sized})
        return file.read()


def kept_texts(folder: Path, config: SweepConfig) -> dict[str, bytes]:
    """The texts that came out of a pipe, by the names of their files."""
    found = {}
    for name, file in KEPT_TEXTS.items():
        if getattr(config.base, name) == "-":
            opened, _ = run_folder.open_file(folder, file, "sweep")
            with opened:
                found[file] = opened.readall()
    return found


def _read_data(values: Mapping[str, Any], lengths: set[int]) -> dict[int, Fingerprint]:
    if values.keys() != set(map(str, lengths)):
        raise ValueError(f"data must have the lengths of contexts {sorted(lengths)}, got {shown(sorted(values))}")
    return {length: Fingerprint.from_dict(values[str(length)]) for length in sorted(lengths)}


def _load_results(folder: Path, config: SweepConfig) -> tuple[SweepResult, ...]:
    path = folder / RESULTS
    count = len(config.configs)
    lines = _read(folder, RESULTS, _MAX_RESULT * count).split(b"\n")
    if len(lines) != count + 1 or lines[-1]:
        raise CheckpointError(f"{path} must have {count} lines, one for each model, got {len(lines) - 1}")
    results = []
    for number, line in enumerate(lines[:-1]):
        with blamed(path, f", line {number + 1}, is damaged"):
            found = checked(parse_json(line), _Result, "")
            _check_result(found, number, config)
            options = {name: _hashable(value) for name, value in found["options"].items()}
            results.append(SweepResult(**{**found, "options": options}))
    steps = {result.step for result in results if result.status == "training"}
    if len(steps) > 1:
        raise CheckpointError(f"{path} is damaged: models that are being trained are at the steps {sorted(steps)}")
    return tuple(results)


def _check_result(found: Mapping[str, Any], number: int, config: SweepConfig) -> None:
    """ValueError unless it is a result that this model can have."""
    own = config.configs[number]
    setting = config.settings[number // config.seeds]
    options = {name: _hashable(value) for name, value in found["options"].items()}
    if (found["model"], found["seed"], options) != (number, own.seed, setting):
        raise ValueError(f"it is not of model {number} of {SWEEP_FILE}, with the options {shown(dict(setting))}")
    if not 0 <= found["step"] <= own.steps:
        raise ValueError(f"step must be in 0 .. {own.steps}, got {found['step']}")
    if found["status"] in ("done", "stopped") and found["dev"] is None:
        raise ValueError(f"a model that is {found['status']} must have a loss of dev")


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _read(folder: Path, name: str, most: int) -> bytes:
    file, size = run_folder.open_file(folder, name, "sweep")
    with file:
        if size > most:
            raise CheckpointError(f"{folder / name} is not of a sweep: it has {size} bytes")
        return file.read(size)


def kept_models(results: Sequence[SweepResult]) -> list[int]:
    """The models whose tensors are kept: those in training, and the best of those that were stopped, in case that all
    others diverge.
    """
    training = [result.model for result in results if result.status == "training"]
    stopped = [result for result in results if result.status == "stopped"]
    return [*training, min(stopped, key=order).model] if stopped else training
