"""A training run on disk, from its start or where it has come to, up to its last step: trains, records, saves.

Of several processes that train one model all do the same, and the first one writes.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from charlm import checkpoint, config_json, distributed
from charlm._rules import check
from charlm.claimed_folder import ClaimedFolder
from charlm.configuration import KEPT_TEXTS, STANDARD_INPUT, TrainingConfig
from charlm.data import Dataset
from charlm.evaluation import evaluate
from charlm.fingerprint import Fingerprint
from charlm.interrupts import Interrupt, deferred_interrupt
from charlm.models import CountBigram, LanguageModel
from charlm.run_folder import blamed
from charlm.token_arrays import OnRead
from charlm.trainer import NonFiniteLossError, Trainer

# Options that a resumed run may change: none of them is part of the saved state.
CHANGEABLE = ("path", "dev", "test", "steps", "backend", "device")

# Loss curves have about this many points, each the mean over the steps since the one before.
_RECORDS = 200
# A run saves itself, and measures dev, this many times unless told otherwise.
_CHECKPOINTS = 10


def record_interval(steps: int) -> int:
    """The steps between two records of a run of `steps`."""
    return max(1, steps // _RECORDS)


def save_interval(steps: int) -> int:
    """The steps between two checkpoints of a run of `steps`, unless another number is asked for."""
    return max(1, steps // _CHECKPOINTS)


@dataclass
class TrainingRun:
    """A run in the making: `start` or `resume` one, and `run` it.

        with TrainingRun.start(charlm.PRESETS["fast"], "runs/names") as training:
            training.run()
            training.losses()

    Of several processes the first alone writes into the folder, and no other program, from `start` or `resume` to
    `close`, which is also the end of a `with` block.

    Attributes:
        run_dir: its folder.
        config: its options.
        dataset, model: as `config` describes them.
        trainer: None for a model that is not trained in steps, which is then complete.
    """

    run_dir: Path
    config: TrainingConfig
    dataset: Dataset
    model: LanguageModel
    trainer: Trainer | None
    _folder: ClaimedFolder
    # The losses of the steps after the last record, which are to be part of the next.
    _unrecorded: Tensor = field(default_factory=lambda: torch.empty(0, device="cpu"))
    _records: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._data = Fingerprint.of(self.dataset)
        self._processes = distributed.current()

    @classmethod
    def start(
        cls,
        config: TrainingConfig,
        run_dir: str | os.PathLike[str] | None = None,
        on_read: OnRead | None = None,
    ) -> TrainingRun:
        """A new run, saved at its step 0, so that a folder that cannot be written is found before the work is done.

        Args:
            config: all options.
            run_dir: a folder that does not exist or is empty; None is "runs/" and the name of the data.
            on_read: as in `charlm.data.load`.

        Raises:
            ValueError: the folder is in use; or whatever is wrong with `config` or the data.
        """
        processes = distributed.current()
        processes.check_device(config.device)
        folder = _new_claim()
        try:
            if run_dir is not None:
                processes.on_first(partial(folder.take_new, Path(run_dir)))
            dataset = config.load_data(on_read=on_read)
            if run_dir is None:
                run_dir = Path("runs", dataset.name)
                processes.on_first(partial(folder.take_new, run_dir))
            model = config.create_model(len(dataset.vocabulary))
            trainer = None if isinstance(model, CountBigram) else config.create_trainer(model, dataset)
            if isinstance(model, CountBigram):
                model.fit(dataset.train)
            # What came out of a pipe is kept in the folder, where "-" then leads to.
            texts = {KEPT_TEXTS[name]: text for name, text in dataset.piped.items()}
            kept: dict[str, Any] = dict.fromkeys(dataset.piped, STANDARD_INPUT)
            run = cls(Path(run_dir), replace(config, **kept), replace(dataset, piped={}), model, trainer, folder)
            run._save(texts)
            return run
        except BaseException:
            folder.abandon()
            raise

    @classmethod
    def resume(cls, run_dir: str | os.PathLike[str], *, on_read: OnRead | None = None, **changes: Any) -> TrainingRun:
        """The run in `run_dir`, as it was saved, with some options changed: those in `CHANGEABLE`.

        Raises:
            ValueError: another option was given; the run is not trained in steps, or is past its last step; or its data
                has changed. CheckpointError: it is damaged, or not a run.
        """
        if fixed := sorted(set(changes) - set(CHANGEABLE)):
            raise ValueError(
                f"{', '.join(fixed)} cannot change when a run is resumed; only {', '.join(CHANGEABLE)} can"
            )
        run_dir = Path(run_dir)
        processes = distributed.current()
        folder = _new_claim()
        try:
            processes.on_first(partial(folder.take, run_dir))
            run = checkpoint.load(run_dir, training=True)
            if run.training_state is None:
                raise ValueError(f"{run_dir} holds a {run.config.model}, which is not trained in steps: it is complete")
            config = replace(run.config, **changes)
            if run.step > config.steps:
                raise ValueError(
                    f"{run_dir} is at step {run.step:,} already, past steps={config.steps:,}: it goes on with more "
                    "steps only"
                )
            processes.check_device(config.device)
            dataset = run.load_data(config.path, dev=config.dev, test=config.test, on_read=on_read)
            trainer = config.create_trainer(run.model, dataset)
            with blamed(run_dir / checkpoint.OPTIMIZER, " is damaged"):
                trainer.load_state_dict(run.training_state)
            processes.on_first(partial(checkpoint.truncate_metrics, run_dir, trainer.step))
            return cls(run_dir, config, dataset, run.model, trainer, folder, run.unrecorded)
        except BaseException:
            folder.release()
            raise

    def close(self) -> None:
        """Lets other processes write into the folder."""
        self._folder.release()

    def __enter__(self) -> TrainingRun:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def step(self) -> int:
        """Steps done."""
        return 0 if self.trainer is None else self.trainer.step

    def run(
        self,
        checkpoint_every: int | None = None,
        on_progress: Callable[[int, float], None] | None = None,
        on_record: Callable[[Mapping[str, Any]], None] | None = None,
    ) -> None:
        """Trains up to the last step of the configuration; whatever ends it, the run on disk can be resumed.

        Args:
            checkpoint_every: steps between two saves, each with the loss of dev in metrics.jsonl; None is a tenth
                of the run.
            on_progress: as in `Trainer.run`.
            on_record: is told each record of metrics.jsonl when it is made, with the "learning_rate" of its last step,
                such as what `charlm.tensorboard.writing` yields.

        Raises:
            KeyboardInterrupt: Ctrl-C; the run was saved at the step it came to.
            NonFiniteLossError: the last checkpoint is from before.
        """
        check("checkpoint_every", checkpoint_every, optional=True)
        if self.trainer is None:
            return
        saved = self.trainer.step
        try:
            # What has been computed, recorded and saved fits together whenever Ctrl-C is let through.
            with deferred_interrupt() as interrupt:
                while self._recorded_step < self.config.steps:
                    if interrupt.pending and self._processes.size == 1:
                        interrupt.deliver(interrupt.pending)
                    saved = self._run_to_next_record(checkpoint_every, on_progress, on_record, interrupt) or saved
        except KeyboardInterrupt:
            self._save()
            raise
        except NonFiniteLossError as error:
            raise NonFiniteLossError(f"{error} ({self.run_dir} holds step {saved})") from error
        except Exception:
            if self.step == 0:
                # An option that only the first step could refuse: a corrected command takes the same folder.
                self._folder.abandon()
            raise

    def _run_to_next_record(
        self,
        checkpoint_every: int | None,
        on_progress: Callable[[int, float], None] | None,
        on_record: Callable[[Mapping[str, Any]], None] | None,
        interrupt: Interrupt,
    ) -> int | None:
        """Trains up to the next record, and makes it; returns its step if that was saved."""
        assert self.trainer is not None
        end = self.config.steps
        record_every = record_interval(end)
        save_every = checkpoint_every or save_interval(end)
        recorded = self._recorded_step
        borders = (recorded + every - recorded % every for every in (record_every, save_every))
        # Where Ctrl-C came after the last step of a record, or other intervals were asked for, no step is missing.
        stop = max(self.trainer.step, min(end, *borders))
        try:
            self.trainer.run(stop - self.trainer.step, on_progress)
        finally:
            self._unrecorded = torch.cat([self._unrecorded.to(self.trainer.losses.dtype), self.trainer.losses])
        record = {"step": stop, "loss": self._unrecorded.mean().item()}
        to_save = stop % save_every == 0 or stop == end
        if to_save:
            with interrupt.let_through() if self._processes.size == 1 else nullcontext():
                record["dev"] = self._finite_dev_loss()
        self._records.append(record)
        if on_record is not None:
            on_record({**record, "learning_rate": self.trainer.schedule(stop - 1)})
        self._unrecorded = self._unrecorded[:0]
        if not to_save:
            return None
        self._save()
        return stop

    @property
    def _recorded_step(self) -> int:
        """The step of the last record, or where the run began."""
        return self.step - len(self._unrecorded)

    def losses(self) -> dict[str, float]:
        """The mean negative log-likelihood of train, dev and test."""
        splits = ("train", "dev", "test")
        if self.trainer is not None:
            return {name: self.trainer.evaluate(name) for name in splits}
        return {name: evaluate(self.model, getattr(self.dataset, name)) for name in splits}

    def _finite_dev_loss(self) -> float:
        """The loss of dev; parameters that make it infinite or NaN must not replace those of the last checkpoint."""
        assert self.trainer is not None
        loss = self.trainer.evaluate("dev")
        if not math.isfinite(loss):
            raise NonFiniteLossError(
                f"the loss of dev after step {self.step} is {loss}: lower learning_rate, or set max_grad_norm"
            )
        return loss

    def _save(self, texts: Mapping[str, bytes] | None = None) -> None:
        self._processes.on_first(partial(self._write, texts))

    def _write(self, texts: Mapping[str, bytes] | None) -> None:
        """Ctrl-C waits until all of it is written."""
        with deferred_interrupt():
            # First the records: those after the step of the checkpoint are dropped by the next resume.
            checkpoint.append_metrics(self.run_dir, self._records)
            self._records.clear()
            checkpoint.save(
                self.run_dir,
                config=self.config,
                vocabulary=self.dataset.vocabulary,
                model=self.model,
                training_state=None if self.trainer is None else self.trainer.state_dict(),
                data=self._data,
                unrecorded=self._unrecorded,
                texts=texts,
            )


def _new_claim() -> ClaimedFolder:
    """Of the folder of a run: the first process takes it, the others none."""
    return ClaimedFolder("run", config_json.FILE, checkpoint.discard)
