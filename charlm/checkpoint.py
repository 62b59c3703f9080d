"""Runs on disk: a folder that always holds one complete, consistent state of a training run.

    config.json             format version, model, vocabulary, training options, fingerprint of the data
    model.safetensors       the model's parameters and buffers
    optimizer.safetensors   the optimizer's state, the batch generator, and losses that no record has yet
    metrics.jsonl           one JSON object a line, each with its "step"
    text.txt                what the run was trained on, if that came out of a pipe; dev.txt and test.txt likewise

All but metrics.jsonl are one checkpoint, and replaced together, atomically: `charlm.run_folder` says how. Both tensor
files also name the step they belong to. Equal states are equal bytes. A model can be used, but not trained on, without
optimizer.safetensors and metrics.jsonl. One process at a time writes: see `charlm.run_lock`.

A folder may come from anybody. Nothing is ever unpickled, and what its files say is checked, against each other too,
before memory is taken for it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import Tensor

from charlm import config_json, metrics, models, optimizers, run_folder, sampler, scoring
from charlm._rules import shown
from charlm.batches import BatchSampler
from charlm.config_json import FORMAT, check_format, format_description, read_description
from charlm.configuration import KEPT_TEXTS, TrainingConfig
from charlm.data import Dataset
from charlm.fingerprint import Fingerprint
from charlm.metrics import append_metrics, read_metrics, truncate_metrics
from charlm.models import LanguageModel
from charlm.run_folder import CheckpointError, blamed
from charlm.run_lock import RunInUseError, locked
from charlm.sampler import SampleOptions, ScoredText
from charlm.scoring import Scores
from charlm.tensor_files import TensorFile, format_tensors
from charlm.token_arrays import OnRead
from charlm.vocabulary import Vocabulary

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = [
    "FORMAT",
    "OPTIMIZER",
    "CheckpointError",
    "Run",
    "RunInUseError",
    "append_metrics",
    "discard",
    "load",
    "read_metrics",
    "save",
    "truncate_metrics",
]

_CONFIG = config_json.FILE
_MODEL = "model.safetensors"
OPTIMIZER = "optimizer.safetensors"
# The parts of `Trainer.state_dict()` that optimizer.safetensors holds, as prefixes of its tensor names.
_TRAINING_PARTS = ("optimizer", "batches")
_UNRECORDED = "unrecorded.losses"


@dataclass(frozen=True)
class Run:
    """What `load` finds in a run folder.

    Attributes:
        config: the options the run was started with.
        vocabulary: of the model.
        model: with its trained parameters.
        step: training steps done.
        training_state: for `Trainer.load_state_dict`; None if the model is not trained in steps, or `load` was not
            asked for it.
        data: the fingerprint of the data it was trained on; None if it was saved without.
        run_dir: the folder.
        unrecorded: as it was given to `save`.
    """

    config: TrainingConfig
    vocabulary: Vocabulary
    model: LanguageModel
    step: int
    training_state: dict[str, Any] | None
    data: Fingerprint | None
    run_dir: Path
    unrecorded: Tensor = field(default_factory=lambda: torch.empty(0, device="cpu"))

    def load_data(
        self,
        path: str | None = None,
        *,
        dev: str | None = None,
        test: str | None = None,
        on_read: OnRead | None = None,
    ) -> Dataset:
        """The data that the run was trained on.

        Args:
            path, dev, test: where it is now; None is where it was.
            on_read: as in `charlm.data.load`.

        Raises:
            ValueError: the file is not what it was.
        """
        moved: dict[str, Any] = {
            name: value for name, value in (("path", path), ("dev", dev), ("test", test)) if value is not None
        }
        config = replace(self.config, **moved)
        kept = {name: str(run_folder.place(self.run_dir, file)) for name, file in KEPT_TEXTS.items()}
        dataset = config.load_data(self.vocabulary, kept, on_read)
        if self.data is not None:
            self.data.check(dataset, config.texts(kept).values(), "run")
        return dataset

    @overload
    def sample(self, n: int, *, scores: Literal[False] = False, **options: Unpack[SampleOptions]) -> list[str]: ...

    @overload
    def sample(self, n: int, *, scores: Literal[True], **options: Unpack[SampleOptions]) -> list[ScoredText]: ...

    def sample(self, n: int, *, scores: bool = False, **options: Unpack[SampleOptions]) -> list[str] | list[ScoredText]:
        """`charlm.sample` of its model: arguments and results are as there.

        `novel=True` is for texts that are no line of the run's own data.
        """
        if options.get("novel") is True:
            options["novel"] = self.load_data()
        if scores:
            return sampler.sample(self.model, self.vocabulary, n, scores=True, **options)
        return sampler.sample(self.model, self.vocabulary, n, **options)

    def score(self, texts: Sequence[str]) -> Scores:
        """`charlm.score` by its model."""
        return scoring.score(self.model, self.vocabulary, texts)


def discard(run_dir: str | os.PathLike[str]) -> None:
    """Removes a run from its folder: what `save` and `append_metrics` have written, or begun to write."""
    with locked(Path(run_dir)):
        run_folder.discard_save(Path(run_dir), (_CONFIG, _MODEL, OPTIMIZER, metrics.FILE, *KEPT_TEXTS.values()))


def save(
    run_dir: str | os.PathLike[str],
    *,
    config: TrainingConfig,
    vocabulary: Vocabulary,
    model: LanguageModel,
    training_state: Mapping[str, Any] | None = None,
    data: Fingerprint | None = None,
    unrecorded: Tensor | None = None,
    texts: Mapping[str, bytes] | None = None,
) -> None:
    """Writes a checkpoint, atomically replacing the one in `run_dir`; creates the folder.

    Args:
        run_dir: the folder of the run.
        config, vocabulary, model: what `load` returns again.
        training_state: `Trainer.state_dict()`, of a trainer with the options of `config`; None for a model that is not
            trained in steps.
        data: `Fingerprint.of` the dataset, so that the run only goes on with the same.
        unrecorded: (k,), the losses of the last k steps, if they are to be part of a later record in metrics.jsonl.
        texts: files to keep beside the checkpoint, by name: those of `charlm.configuration.KEPT_TEXTS`.

    Raises:
        RunInUseError: somebody else is writing into the folder.
        OSError: it cannot be written; the checkpoint that was there is there still.
    """
    run_dir = Path(run_dir)
    step = 0 if training_state is None else training_state["step"]
    training_tensors = {
        f"{part}.{name}": value
        for part in _TRAINING_PARTS
        for name, value in ({} if training_state is None else training_state[part]).items()
    }
    if unrecorded is not None and len(unrecorded) > 0:
        training_tensors[_UNRECORDED] = unrecorded
    metadata = {"charlm_format": str(FORMAT), "step": str(step)}
    files: dict[str, list[bytes]] = {
        _CONFIG: [
            format_description(
                model=model.config(),
                vocabulary=vocabulary.to_dict(),
                training=config.to_dict(),
                data=None if data is None else data.to_dict(),
                trained_in_steps=training_state is not None,
            )
        ],
        _MODEL: format_tensors(model.state_dict(), metadata),
        OPTIMIZER: format_tensors(training_tensors, metadata),
        **{name: [text] for name, text in (texts or {}).items()},
    }
    run_dir.mkdir(parents=True, exist_ok=True)
    with locked(run_dir):
        run_folder.commit(run_dir, files)


def load(run_dir: str | os.PathLike[str], *, backend: str = "ops", training: bool = False) -> Run:
    """A run on disk: its model, vocabulary and configuration. It is read, never written to.

    Args:
        run_dir: the folder of the run.
        backend: of the model: whose ops compute.
        training: also what training goes on with, from optimizer.safetensors, which need not be there otherwise.

    Raises:
        CheckpointError: a file is missing, truncated, not of charlm, or from a newer charlm; the message names it.
    """
    run_dir = Path(run_dir)
    described = read_description(run_dir)
    with blamed(run_dir / _CONFIG, " is damaged"):
        config = TrainingConfig.from_dict(described["training"])
        vocabulary = Vocabulary.from_dict(described["vocabulary"])
        data = None if described["data"] is None else Fingerprint.from_dict(described["data"])
        size = described["model"]["vocab_size"]
        if len(vocabulary) != size:
            raise ValueError(f"vocab_size={size}, but the vocabulary has {len(vocabulary)} characters")
        model = _without_memory(described["model"], backend)
    training = training and described.get("trained_in_steps", True)

    with _tensor_file(run_dir, _MODEL) as (file, step):
        check_tensors(run_dir / _MODEL, f"the model of {_CONFIG}", file.tensors, _parameters_and_buffers(model))
        # `assign` keeps the dtypes that were trained.
        model.load_state_dict(file.tensors, assign=True)
        expected = _training_tensors(run_dir, config, model) if training else {}
        model_tensors = file.read()
        model.load_state_dict(model_tensors, assign=True)
    if not training:
        return Run(config, vocabulary, model, step, None, data, run_dir)

    if not run_folder.has_file(run_dir, OPTIMIZER):
        raise CheckpointError(f"{run_dir} cannot be trained on: it has no {OPTIMIZER}, the state of the optimizer")
    with _tensor_file(run_dir, OPTIMIZER) as (file, training_step):
        if training_step != step:
            raise CheckpointError(
                f"{run_dir} mixes two checkpoints: {_MODEL} is of step {step}, {OPTIMIZER} of step {training_step}"
            )
        if _UNRECORDED in file.tensors:
            expected[_UNRECORDED] = _checked_unrecorded(run_dir / OPTIMIZER, file.tensors[_UNRECORDED], step)
        check_tensors(run_dir / OPTIMIZER, f"the training state of {_CONFIG}", file.tensors, expected)
        tensors = file.read()
    unrecorded = tensors.pop(_UNRECORDED, torch.empty(0, device="cpu"))
    state: dict[str, Any] = {"step": step, "model": model_tensors, **{part: {} for part in _TRAINING_PARTS}}
    for name, value in tensors.items():
        part, _, rest = name.partition(".")
        state[part][rest] = value
    return Run(config, vocabulary, model, step, state, data, run_dir, unrecorded)


def _without_memory(config: Mapping[str, Any], backend: str) -> LanguageModel:
    """The model on the device "meta"."""
    try:
        with torch.device("meta"):
            return models.from_config(config, backend=backend)
    except RuntimeError as error:
        raise ValueError(f"model {shown(dict(config))} is larger than any memory") from error


def _parameters_and_buffers(model: LanguageModel) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _training_tensors(run_dir: Path, config: TrainingConfig, model: LanguageModel) -> dict[str, Tensor]:
    """What optimizer.safetensors should have by name, of a model on the device "meta" and there too."""
    with blamed(run_dir / _CONFIG, " is damaged"):
        optimizer = optimizers.create(model, config, config.learning_rate)
    batches = {} if config.batch_size == "full" else BatchSampler(1, 1, 0).state_dict()
    return {
        **{f"optimizer.{name}": value for name, value in optimizers.named_state(model, optimizer).items()},
        **{f"batches.{name}": value for name, value in batches.items()},
    }


@contextmanager
def _tensor_file(run_dir: Path, name: str) -> Iterator[tuple[TensorFile, int]]:
    """The file, of which only the header has been read, and its step."""
    path = run_dir / name
    opened, size = run_folder.open_file(run_dir, name)
    with opened, blamed(path, " is truncated or not a safetensors file"):
        file = TensorFile(opened, size)
        version, step = file.metadata.get("charlm_format"), file.metadata.get("step")
        if version is None or step is None or not _is_decimal(step):
            raise CheckpointError(
                f"{path} was not written by charlm: its metadata has no format and step, but {shown(file.metadata)}"
            )
        check_format(path, int(version) if _is_decimal(version) else version)
        yield file, int(step)


def check_tensors(path: Path, whose: str, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """CheckpointError unless a file has the tensors that it should: their names, shapes and dtypes."""
    fault = f"{path} does not hold {whose}: "
    for name in found:
        if name not in expected:
            raise CheckpointError(f"{fault}it has an unknown tensor {shown(name)}")
    for name, tensor in expected.items():
        if name not in found:
            raise CheckpointError(f"{fault}it has no tensor {name!r}")
        shape, dtype = tuple(found[name].shape), found[name].dtype
        if shape != tuple(tensor.shape):
            raise CheckpointError(f"{fault}{name!r} has the shape {shape}, not {tuple(tensor.shape)}")
        # A parameter may have any floating dtype; what belongs to it then has the same.
        if not (dtype.is_floating_point if tensor.requires_grad else dtype == tensor.dtype):
            raise CheckpointError(f"{fault}{name!r} has the dtype {dtype}, not {tensor.dtype}")


def _checked_unrecorded(path: Path, losses: Tensor, step: int) -> Tensor:
    if losses.dim() != 1 or not losses.is_floating_point() or len(losses) > step:
        raise CheckpointError(
            f"{path} is damaged: {_UNRECORDED!r} must be the losses of at most {step} steps, "
            f"got shape {tuple(losses.shape)} and dtype {losses.dtype}"
        )
    return losses


def _is_decimal(text: str) -> bool:
    """Whether it is a number as `str` writes it, of steps or a version."""
    return text.isascii() and text.isdecimal() and len(text) <= 18
