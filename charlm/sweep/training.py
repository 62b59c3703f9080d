"""A sweep on disk: many models are trained together, the hopeless ones are stopped, the best one is kept as a run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from charlm import distributed, run_folder
from charlm._rules import check, check_type
from charlm.claimed_folder import ClaimedFolder
from charlm.config_json import BEST, SWEEP_FILE
from charlm.configuration import KEPT_TEXTS, STANDARD_INPUT
from charlm.data import Dataset
from charlm.fingerprint import Fingerprint
from charlm.interrupts import Interrupt, deferred_interrupt
from charlm.population import Population
from charlm.sweep import datasets, folder
from charlm.sweep._members import Member, add_trainers, load_members, named_tensors
from charlm.sweep.config import SweepConfig
from charlm.sweep.halving import best as best_models
from charlm.sweep.results import SettingResult, SweepResult, by_setting, order
from charlm.token_arrays import OnRead
from charlm.training_run import record_interval, save_interval

# Options that a sweep that is resumed may change: none of them is part of the saved state.
CHANGEABLE = ("path", "dev", "test", "backend", "device")


class SweepProgress(NamedTuple):
    """How far a sweep is.

    Attributes:
        step: of the models that are being trained.
        steps: of a model that is trained to its end.
        trained: steps of all models together.
        to_train: what `trained` will be at the end, unless models diverge.
        best: the lowest loss of dev that was measured; None before the first.
        diverged: how many models have.
    """

    step: int
    steps: int
    trained: int
    to_train: int
    best: float | None
    diverged: int


OnSweepProgress = Callable[[SweepProgress], None]


@dataclass
class Sweep:
    """A sweep in the making: `start` or `resume` one, and `run` it.

        config = charlm.SweepConfig(base=charlm.PRESETS["fast"], options={"learning_rate": [0.02, 0.05, 0.1]}, seeds=2)
        with charlm.Sweep.start(config, "runs/rates") as sweep:
            sweep.run()
            sweep.settings()[0].dev

    Each model has the very bits of one that is trained by itself. No other program writes into the folder from `start`
    or `resume` to `close`, which is also the end of a `with` block.

    Attributes:
        sweep_dir: its folder.
        config: what it is.
        dataset: what the models are trained on; of several lengths of contexts, that of the first model. None of a
            sweep that is at its end, which needs none.
    """

    sweep_dir: Path
    config: SweepConfig
    dataset: Dataset | None
    _data: dict[int, Fingerprint]
    _members: list[Member]
    _folder: ClaimedFolder

    def __post_init__(self) -> None:
        self._rungs = [rung for rung in self.config.rungs if rung.step >= self.step]
        self._population = self._new_population()

    @classmethod
    def start(
        cls, config: SweepConfig, sweep_dir: str | os.PathLike[str] | None = None, on_read: OnRead | None = None
    ) -> Sweep:
        """A new sweep, saved at step 0.

        Args:
            config: what it is.
            sweep_dir: a folder that does not exist or is empty; None is "runs/", the name of the data and "-sweep".
            on_read: as in `charlm.data.load`.

        Raises:
            ValueError: the folder is in use; the models do not fit into memory; or whatever is wrong with `config` or
                the data.
        """
        check_type("config", config, SweepConfig)
        _check_alone()
        claimed = _new_claim()
        try:
            if sweep_dir is not None:
                claimed.take_new(Path(sweep_dir))
            loaded = datasets.load(config.configs, on_read=on_read)
            first = loaded[config.configs[0].context_length]
            if sweep_dir is None:
                sweep_dir = Path("runs", f"{first.name}-sweep")
                claimed.take_new(sweep_dir)
            # What came out of a pipe is kept in the folder, where "-" then leads to.
            texts = {KEPT_TEXTS[name]: text for name, text in first.piped.items()}
            kept: dict[str, Any] = dict.fromkeys(first.piped, STANDARD_INPUT)
            config = replace(config, base=replace(config.base, **kept))
            members = [Member(*planned, None) for planned in zip(config.configs, _planned(config), strict=True)]
            add_trainers(members, loaded)
            data = {length: Fingerprint.of(dataset) for length, dataset in loaded.items()}
            sweep = cls(Path(sweep_dir), config, replace(first, piped={}), data, members, claimed)
            sweep._save(texts)
            return sweep
        except BaseException:
            claimed.abandon()
            raise

    @classmethod
    def resume(cls, sweep_dir: str | os.PathLike[str], *, on_read: OnRead | None = None, **changes: Any) -> Sweep:
        """The sweep in `sweep_dir`, as it was saved, with some options changed: those in `CHANGEABLE`.

        Raises:
            ValueError: another option was given, or the data has changed. CheckpointError: it is damaged, or not a
                sweep.
        """
        if fixed := sorted(set(changes) - set(CHANGEABLE)):
            raise ValueError(
                f"{', '.join(fixed)} cannot change when a sweep is resumed; only {', '.join(CHANGEABLE)} can"
            )
        _check_alone()
        sweep_dir = Path(sweep_dir)
        claimed = _new_claim()
        try:
            claimed.take(sweep_dir)
            saved = folder.load(sweep_dir)
            config = replace(saved.config, base=replace(saved.config.base, **changes))
            members = [Member(*planned, None) for planned in zip(config.configs, saved.results, strict=True)]
            dataset = None
            if any(result.status == "training" for result in saved.results):
                dataset = load_members(sweep_dir, config, members, saved.data, on_read)
            else:
                # What is left where the last save was cut off.
                run_folder.remove(sweep_dir / folder.MODELS)
            return cls(sweep_dir, config, dataset, dict(saved.data), members, claimed)
        except BaseException:
            claimed.release()
            raise

    def close(self) -> None:
        """Lets other processes write into the folder."""
        self._folder.release()

    def __enter__(self) -> Sweep:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def step(self) -> int:
        """That of the models that are being trained; of a sweep that is at its end, the last of any model."""
        training = [member.result.step for member in self._members if member.result.status == "training"]
        return max(training or [member.result.step for member in self._members])

    @property
    def finished(self) -> bool:
        """Whether no model is left to train."""
        return all(member.result.status != "training" for member in self._members)

    @property
    def backend(self) -> str:
        """What computes the steps of the first model that is being trained; "" where none is."""
        return next((member.trainer.backend for member in self._members if member.trainer is not None), "")

    @property
    def best_run(self) -> Path | None:
        """The folder of the best model, a run; None before the end, and where all models have diverged."""
        return self.sweep_dir / BEST if self.finished and _best(self.results()) is not None else None

    def results(self) -> list[SweepResult]:
        """What came of each model so far, the best one first."""
        return sorted((member.result for member in self._members), key=order)

    def settings(self) -> list[SettingResult]:
        """What came of each setting so far, the seeds together, the best one first."""
        return by_setting([member.result for member in self._members], self.config.seeds)

    def run(self, checkpoint_every: int | None = None, on_progress: OnSweepProgress | None = None) -> None:
        """Trains all models up to their last step, or to where they are stopped; whatever ends it, it can be resumed.

        Args:
            checkpoint_every: steps between two measurements of dev, each with a save; None is a tenth of `steps`.
            on_progress: told how far it is, a few times per second at most, and after each save.

        Raises:
            KeyboardInterrupt: Ctrl-C; the sweep was saved at the step it came to.
        """
        check("checkpoint_every", checkpoint_every, optional=True)
        every = checkpoint_every or save_interval(self.config.base.steps)
        try:
            # What has been computed, recorded and saved fits together whenever Ctrl-C is let through.
            with deferred_interrupt() as interrupt:
                while not self.finished:
                    if interrupt.pending:
                        interrupt.deliver(interrupt.pending)
                    self._run_to_next_save(every, on_progress, interrupt)
        except KeyboardInterrupt:
            if not self.finished:
                self._save()
            raise
        except Exception:
            if self.step == 0:
                # An option that only the first step could refuse: a corrected sweep takes the same folder.
                self._folder.abandon()
            raise

    def _run_to_next_save(self, every: int, on_progress: OnSweepProgress | None, interrupt: Interrupt) -> None:
        """Trains up to where dev is measured next, or the next rung."""
        end = self.config.base.steps
        recorded = self.step - len(self._training[0].unrecorded)
        # Where Ctrl-C came after the last step before a measurement, none is missing.
        stop = max(self.step, min(end, recorded + every - recorded % every))
        at_rung = bool(self._rungs) and stop >= self._rungs[0].step
        stop = self._rungs[0].step if at_rung else stop
        # A sweep that was saved at a rung comes there again, with all records up to it.
        measuring = stop > recorded and (stop % every == 0 or stop == end)
        self._train(stop, on_progress)
        assert self._population is not None
        with interrupt.let_through():
            dev = self._population.evaluate("dev").tolist()
        self._take(dev, self._borders(recorded, stop, every) if measuring else [])
        if at_rung:
            self._stop_all_but(self._rungs.pop(0).keep)
        if stop == end or not self._training:
            self._finish()
        else:
            if len(self._training) < len(self._population_members):
                self._population = self._new_population()
            self._save()
        self._report(on_progress, self.step)

    def _train(self, stop: int, on_progress: OnSweepProgress | None) -> None:
        training, start = self._training, self.step
        assert self._population is not None
        try:
            self._population.run(stop - start, lambda steps, _: self._report(on_progress, start + steps))
        finally:
            for member, error in zip(training, self._population.errors, strict=True):
                assert member.trainer is not None
                member.add(member.trainer.losses)
                if error is not None:
                    member.diverge()

    def _borders(self, recorded: int, stop: int, every: int) -> list[int]:
        """The steps up to `stop` that have a record, as in a run."""
        each = record_interval(self.config.base.steps)
        return sorted({*range(recorded + each - recorded % each, stop + 1, each), stop})

    def _take(self, dev: list[float], borders: list[int]) -> None:
        """Takes the losses of dev of those that were trained, and makes their records up to here."""
        for member, loss in zip(self._population_members, dev, strict=True):
            if member.result.status != "training" or not member.measured(loss):
                continue
            for border in borders:
                member.record(border)
            if borders:
                member.curve[-1]["dev"] = loss

    def _stop_all_but(self, keep: int) -> None:
        going_on = best_models({member.result.model: member.result.dev or 0.0 for member in self._training}, keep)
        for member in self._training:
            if member.result.model not in going_on:
                member.result = replace(member.result, status="stopped")
        kept = set(folder.kept_models([member.result for member in self._members]))
        for member in self._members:
            if member.result.model not in kept:
                member.trainer = None

    def _finish(self) -> None:
        """The best model becomes a run; nothing goes on after that."""
        assert self.dataset is not None
        for member in self._training:
            member.result = replace(member.result, status="done")
        result = _best(self.results())
        if result is not None:
            texts = folder.kept_texts(self.sweep_dir, self.config)
            run_dir = self.sweep_dir / BEST
            if run_dir.is_symlink() or not run_dir.is_dir():
                run_folder.remove(run_dir)
            best = self._members[result.model]
            best.save_as_run(run_dir, self.dataset.vocabulary, self._data[best.config.context_length], texts)
        self._save()

    def _save(self, texts: Mapping[str, bytes] | None = None) -> None:
        """Ctrl-C waits until all of it is written."""
        results = tuple(member.result for member in self._members)
        kept = [] if self.finished else [self._members[model] for model in folder.kept_models(results)]
        saved = folder.Saved(self.config, self._data, results)
        with deferred_interrupt():
            folder.save(self.sweep_dir, saved, named_tensors(kept) if kept else None, self.step, texts)

    @property
    def _training(self) -> list[Member]:
        return [member for member in self._members if member.result.status == "training"]

    def _new_population(self) -> Population | None:
        """Of those that go on."""
        self._population_members = self._training
        trainers = [member.trainer for member in self._population_members if member.trainer is not None]
        return Population(trainers) if trainers else None

    def _report(self, on_progress: OnSweepProgress | None, step: int) -> None:
        if on_progress is None:
            return
        results = [member.result for member in self._members]
        training = len(self._training)
        trained = sum(result.step for result in results) + training * (step - self.step)
        left, at = 0, step
        for rung in self._rungs:
            left += training * (rung.step - at)
            training, at = min(training, rung.keep), rung.step
        left += training * (self.config.base.steps - at)
        on_progress(
            SweepProgress(
                step,
                self.config.base.steps,
                trained,
                trained + left,
                min((result.dev for result in results if result.dev is not None), default=None),
                sum(result.status == "diverged" for result in results),
            )
        )


def _new_claim() -> ClaimedFolder:
    return ClaimedFolder("sweep", SWEEP_FILE, folder.discard)


def _check_alone() -> None:
    processes = distributed.current().size
    if processes > 1:
        raise ValueError(f"a sweep trains its models in one process, but there are {processes}")


def _planned(config: SweepConfig) -> Iterable[SweepResult]:
    """The results before the first step."""
    for model, own in enumerate(config.configs):
        yield SweepResult(model, config.settings[model // config.seeds], own.seed, 0, None, None, "training")


def _best(results: Iterable[SweepResult]) -> SweepResult | None:
    """The best of the models that have not diverged."""
    return min((result for result in results if result.status != "diverged"), key=order, default=None)
