"""One training run on disk, from where it is to its last step: trains, records, saves.

Of several processes that train one model all do the same, and the first one writes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from charlm import checkpoint, distributed
from charlm.cli.console import OnProgress
from charlm.data import Dataset
from charlm.evaluation import evaluate
from charlm.fingerprint import Fingerprint
from charlm.interrupts import deferred_interrupt
from charlm.models import CountBigram, LanguageModel
from charlm.presets import KEPT_TEXTS, STANDARD_INPUT, TrainingConfig
from charlm.trainer import NonFiniteLossError, Trainer

# Loss curves have about this many points, each the mean over the steps since the one before.
_RECORDS = 200
# A run saves itself, and measures dev, this many times unless told otherwise.
_CHECKPOINTS = 10


@dataclass
class Session:
    """A run in the making.

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
    _records: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._data = Fingerprint.of(self.dataset)
        self._processes = distributed.current()

    @classmethod
    def start(cls, config: TrainingConfig, run_dir: Path | None) -> Session:
        """A new run, saved at its step 0, so that a folder that cannot be written is found before the work is done.

        Args:
            config: all options.
            run_dir: a folder that does not exist or is empty; None is "runs/" and the name of the data.

        Raises:
            ValueError: the folder is in use; or whatever is wrong with `config` or the data.
        """
        processes = distributed.current()
        processes.check_device(config.device)
        if run_dir is not None:
            processes.on_first(partial(_check_unused, run_dir))
        dataset = config.load_data()
        if run_dir is None:
            run_dir = Path("runs", dataset.name)
            processes.on_first(partial(_check_unused, run_dir))
        model = config.create_model(len(dataset.vocabulary))
        trainer = None if isinstance(model, CountBigram) else config.create_trainer(model, dataset)
        if isinstance(model, CountBigram):
            model.fit(dataset.train)
        # What came out of a pipe is kept in the folder, where "-" then leads to.
        texts = {KEPT_TEXTS[name]: text for name, text in dataset.piped.items()}
        kept: dict[str, Any] = dict.fromkeys(dataset.piped, STANDARD_INPUT)
        config = replace(config, **kept)
        session = cls(run_dir, config, replace(dataset, piped={}), model, trainer)
        session._save(texts)
        return session

    @classmethod
    def resume(cls, run_dir: Path, changes: Mapping[str, Any]) -> Session:
        """The run in `run_dir`, as it was saved, with some options changed.

        Raises:
            ValueError: the run is not trained in steps, or its data has changed; CheckpointError: it is damaged, or
                not a run.
        """
        run = checkpoint.load(run_dir)
        if run.training_state is None:
            raise ValueError(f"{run_dir} holds a {run.config.model}, which is not trained in steps: it is complete")
        config = replace(run.config, **changes)
        processes = distributed.current()
        processes.check_device(config.device)
        dataset = run.load_data(config.path, dev=config.dev, test=config.test)
        trainer = config.create_trainer(run.model, dataset)
        trainer.load_state_dict(run.training_state)
        processes.on_first(partial(checkpoint.truncate_metrics, run_dir, trainer.step))
        return cls(run_dir, config, dataset, run.model, trainer)

    @property
    def step(self) -> int:
        """Steps done."""
        return 0 if self.trainer is None else self.trainer.step

    def run(self, checkpoint_every: int | None, on_progress: OnProgress) -> None:
        """Trains up to the last step of the configuration; whatever ends it, the run on disk can be resumed.

        Args:
            checkpoint_every: steps between two saves, each with the loss of dev in metrics.jsonl; None is a tenth
                of the run.
            on_progress: as in `Trainer.run`.

        Raises:
            KeyboardInterrupt: Ctrl-C; the run was saved at the step it came to.
            NonFiniteLossError: the last checkpoint is from before.
        """
        if self.trainer is None:
            return
        end = self.config.steps
        record_every = max(1, end // _RECORDS)
        save_every = checkpoint_every or max(1, end // _CHECKPOINTS)
        saved = self.trainer.step
        try:
            while self.trainer.step < end:
                step = self.trainer.step
                stop = min(end, *(step + every - step % every for every in (record_every, save_every)))
                # Losses of an interval cut short by Ctrl-C are lost; the next record is then a mean over fewer steps.
                losses = self.trainer.run(stop - step, on_progress)
                self._records.append({"step": stop, "loss": losses.mean().item()})
                if stop % save_every == 0 or stop == end:
                    self._records[-1]["dev"] = self._finite_dev_loss()
                    self._save()
                    saved = stop
        except KeyboardInterrupt:
            self._save()
            raise
        except NonFiniteLossError as error:
            raise NonFiniteLossError(f"{error} ({self.run_dir} holds step {saved})") from error

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
            self.run_dir.mkdir(parents=True, exist_ok=True)
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
                texts=texts,
            )


def _check_unused(run_dir: Path) -> None:
    """ValueError where a new run would overwrite something."""
    if not run_dir.exists():
        return
    if not run_dir.is_dir():
        raise ValueError(f"{run_dir} is a file: choose another folder with --out")
    if (run_dir / "config.json").exists():
        raise ValueError(
            f"{run_dir} holds a run already: continue it with --resume {run_dir}, or choose another folder with --out"
        )
    if any(run_dir.iterdir()):
        raise ValueError(f"{run_dir} is not empty: choose another folder with --out")
