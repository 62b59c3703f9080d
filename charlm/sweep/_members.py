"""The models of a sweep while they are trained: their trainers, their loss curves, and how far they came."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from charlm import checkpoint, metrics, run_folder
from charlm._memory import check_memory
from charlm.configuration import KEPT_TEXTS, TrainingConfig
from charlm.data import Dataset
from charlm.fingerprint import Fingerprint
from charlm.run_folder import blamed
from charlm.search_space import setting_shown
from charlm.sweep import datasets, folder
from charlm.sweep.config import SweepConfig
from charlm.sweep.results import SweepResult
from charlm.token_arrays import OnRead
from charlm.trainer import Trainer
from charlm.vocabulary import Vocabulary

_PARTS = ("model", "optimizer", "batches")


@dataclass
class Member:
    """One model.

    Attributes:
        config: what it is trained with.
        result: what came of it so far.
        trainer: None of one that is not needed any more.
        curve: its records, as those of a run: a "step", the "loss" of train up to it, and perhaps that of "dev".
        unrecorded: the losses of the steps after the last record, which are to be part of the next.
    """

    config: TrainingConfig
    result: SweepResult
    trainer: Trainer | None
    curve: list[dict[str, Any]] = field(default_factory=list)
    unrecorded: Tensor = field(default_factory=lambda: torch.empty(0, device="cpu"))

    def add(self, losses: Tensor) -> None:
        """Takes the losses of the steps that were done since it was last told."""
        self.unrecorded = torch.cat([self.unrecorded.to(losses.dtype), losses])
        self.result = replace(self.result, step=self.result.step + len(losses))

    def record(self, border: int) -> None:
        """Makes a record of the steps up to `border`, which are done."""
        count = border - (self.result.step - len(self.unrecorded))
        loss = self.unrecorded[:count].clone().mean().item()
        self.unrecorded = self.unrecorded[count:]
        self.curve.append({"step": border, "loss": loss})
        self.result = replace(self.result, loss=loss)

    def diverge(self) -> None:
        """Ends it: a loss was infinite or NaN."""
        self.result = replace(self.result, loss=None, dev=None, status="diverged")
        self.trainer = None

    def measured(self, dev: float) -> bool:
        """Takes the loss of dev at its step; False, and it has diverged, where that is not finite."""
        if math.isfinite(dev):
            self.result = replace(self.result, dev=dev)
            return True
        self.diverge()
        return False

    def tensors(self) -> dict[str, Tensor]:
        """All that it goes on with, by name."""
        assert self.trainer is not None
        state = self.trainer.state_dict()
        return {
            **{f"{part}.{name}": tensor for part in _PARTS for name, tensor in state[part].items()},
            "curve": self._curve(),
            "unrecorded": self.unrecorded,
        }

    def growing(self) -> dict[str, Tensor]:
        """Of `tensors` those whose first size is not fixed, without rows."""
        assert self.trainer is not None
        return {"curve": self._curve()[:0], "unrecorded": self.trainer.losses[:0]}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `tensors`; ValueError where they do not fit together."""
        assert self.trainer is not None
        state: dict[str, Any] = {"step": self.result.step, **{part: {} for part in _PARTS}}
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            if part in _PARTS:
                state[part][rest] = tensor
        self.trainer.load_state_dict(state)
        if not tensors["curve"][:, :2].isfinite().all():
            raise ValueError("its records have numbers that are not finite")
        self.unrecorded = tensors["unrecorded"].clone()
        self.curve = [
            {"step": int(step), "loss": loss} if math.isnan(dev) else {"step": int(step), "loss": loss, "dev": dev}
            for step, loss, dev in tensors["curve"].tolist()
        ]
        steps = [0, *(record["step"] for record in self.curve)]
        if steps != sorted(set(steps)) or steps[-1] + len(self.unrecorded) != self.result.step:
            raise ValueError(f"its losses are not those of {self.result.step} steps")

    def save_as_run(
        self, run_dir: Path, vocabulary: Vocabulary, data: Fingerprint, texts: dict[str, bytes] | None
    ) -> None:
        """Makes an ordinary run of it: the bytes of one that was trained by itself."""
        assert self.trainer is not None
        run_dir.mkdir(exist_ok=True)
        # What may be there of a save that was cut off.
        run_folder.remove(run_dir / metrics.FILE)
        checkpoint.append_metrics(run_dir, self.curve)
        checkpoint.save(
            run_dir,
            config=self.config,
            vocabulary=vocabulary,
            model=self.trainer.model,
            training_state=self.trainer.state_dict(),
            data=data,
            unrecorded=self.unrecorded,
            texts=texts,
        )

    def _curve(self) -> Tensor:
        rows = [(record["step"], record["loss"], record.get("dev", math.nan)) for record in self.curve]
        return torch.tensor(rows, dtype=torch.float64, device="cpu").view(-1, 3)


def add_trainers(members: Iterable[Member], loaded: Mapping[int, Dataset]) -> None:
    """Models and trainers as those of runs; ValueError where they do not fit into memory, or an option is refused."""
    members, size = list(members), 0
    for member in members:
        config = member.config
        dataset = loaded[config.context_length]
        try:
            member.trainer = config.create_trainer(config.create_model(len(dataset.vocabulary)), dataset)
        except ValueError as error:
            setting = setting_shown(member.result.options)
            raise ValueError(f"{error} ({setting})" if setting else str(error)) from error
        member.unrecorded = member.trainer.losses[:0]
        size += sum(tensor.nbytes for tensor in member.tensors().values())
        check_memory(f"a sweep of {len(members):,} models", size)


def load_members(
    sweep_dir: Path, config: SweepConfig, members: list[Member], data: Mapping[int, Fingerprint], on_read: OnRead | None
) -> Dataset:
    """Gives those members that go on their trainers, as they were saved; returns the data of the first of them."""
    going_on = [members[model] for model in folder.kept_models([member.result for member in members])]
    kept = {name: str(run_folder.place(sweep_dir, file)) for name, file in KEPT_TEXTS.items()}
    loaded = datasets.load([member.config for member in going_on], None, kept, on_read)
    for length, dataset in loaded.items():
        data[length].check(dataset, config.base.texts(kept).values(), "sweep")
    add_trainers(going_on, loaded)
    step = going_on[0].result.step
    growing = {f"{m.result.model}.{name}": tensor for m in going_on for name, tensor in m.growing().items()}
    expected = {name: tensor for name, tensor in named_tensors(going_on).items() if name not in growing}
    tensors = folder.load_tensors(sweep_dir, step, expected, growing)
    for member in going_on:
        prefix = f"{member.result.model}."
        with blamed(sweep_dir / folder.MODELS, f" is damaged: model {member.result.model}"):
            member.load({name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)})
    return loaded[going_on[0].config.context_length]


def named_tensors(members: Iterable[Member]) -> dict[str, Tensor]:
    return {f"{m.result.model}.{name}": tensor for m in members for name, tensor in m.tensors().items()}
