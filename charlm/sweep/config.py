"""What a sweep is: the options that its models have in common, what else is tried, and how long hopeless ones train."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, TypedDict

from charlm import search_space
from charlm._rules import check, check_type, shown
from charlm.configuration import TrainingConfig
from charlm.schedules import Schedule
from charlm.schema import checked
from charlm.search_space import LogUniform, Range, Setting, Uniform, setting_shown
from charlm.sweep.halving import Rung, rungs

# Nobody waits for more, nor reads the table.
_MOST_MODELS = 100_000
_RANGES: dict[str, type[Range]] = {"uniform": Uniform, "log": LogUniform}


class _Description(TypedDict):
    base: dict
    options: dict
    trials: int | None
    draw_seed: int
    seeds: int
    halving: int | None


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """All that decides which models a sweep trains, and which of them it stops early.

    Args:
        base: what all models have in common; of the seeds its `seed` is the first.
        options: by the name of an option the values to try: a list, or `charlm.search_space.Uniform` or `LogUniform`.
            Of all options it can be `learning_rate`, `weight_decay`, `momentum`, `betas`, `eps`, `max_grad_norm`,
            `optimizer`, `schedule`, `warmup_steps`, `decay_factor`, `batch_size`, `context_length`, `embedding_dim`,
            `hidden_dim` and `softcap`.
        trials: how many different settings are drawn at random; None is every value with every other one, which needs
            lists.
        draw_seed: of the draws.
        seeds: each setting is trained with this many seeds, `base.seed` and those that follow it.
        halving: eta >= 2, and at the steps `rungs` only the best 1/eta of the models go on; None trains all to the end.

    Raises:
        ValueError: an argument is out of range, a setting is not what a training can have, or there is nothing to try.
    """

    base: TrainingConfig
    options: Mapping[str, Sequence[Any] | Range]
    trials: int | None = None
    draw_seed: int = 0
    seeds: int = 1
    halving: int | None = None

    def __post_init__(self) -> None:
        check_type("base", self.base, TrainingConfig)
        check_type("options", self.options, Mapping)
        for name in ("trials", "halving"):
            check(name, getattr(self, name), optional=True)
        for name in ("draw_seed", "seeds"):
            check(name, getattr(self, name))
        if self.base.model == "count-bigram":
            raise ValueError("model must be one that is trained in steps, got 'count-bigram'")
        # Of a frozen instance: lists become what cannot be changed.
        object.__setattr__(self, "options", search_space.checked(self.options))
        if not self.options and self.seeds == 1:
            raise ValueError("there is nothing to try: give several values of an option, or seeds")
        if self.trials is not None and not self.options:
            raise ValueError("trials must be None where no option has several values: seeds alone are all trained")
        settings = search_space.size(self._space) if self.trials is None else self.trials
        if _MOST_MODELS < settings * self.seeds < float("inf"):
            raise ValueError(f"a sweep has at most {_MOST_MODELS:,} models, got {settings * self.seeds:,}: draw trials")
        _ = self.configs

    @property
    def _space(self) -> dict[str, search_space.Values]:
        return self.options  # type: ignore[return-value]  # that is what `__post_init__` made of it

    @cached_property
    def settings(self) -> tuple[Setting, ...]:
        """The settings, each the options that are swept with a value of each."""
        if self.trials is None:
            return tuple(search_space.grid(self._space))
        return tuple(search_space.draw(self._space, self.trials, self.draw_seed))

    @cached_property
    def configs(self) -> tuple[TrainingConfig, ...]:
        """What each model is trained with: setting by setting, and of each seed by seed."""
        found = []
        for setting in self.settings:
            try:
                config = replace(self.base, **setting)
                # What else a trainer would refuse.
                Schedule(
                    **{name: getattr(config, name) for name in ("learning_rate", "warmup_steps", "milestones")},
                    name=config.schedule,
                    total_steps=config.steps,
                    decay_factor=config.decay_factor,
                )
                found += [replace(config, seed=config.seed + k) for k in range(self.seeds)]
            except ValueError as error:
                raise ValueError(f"{error} ({setting_shown(setting)})" if setting else str(error)) from error
        return tuple(found)

    @cached_property
    def rungs(self) -> tuple[Rung, ...]:
        """Where models stop early, and how many go on; empty without `halving`."""
        if self.halving is None:
            return ()
        warmup = max(config.warmup_steps for config in self.configs)
        return rungs(len(self.configs), self.base.steps, self.halving, after=warmup)

    def to_dict(self) -> dict[str, Any]:
        """For `from_dict`; JSON types, but for tuples, which JSON writes as lists."""
        options = {name: _written(values) for name, values in self._space.items()}
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**own, "base": self.base.to_dict(), "options": options}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SweepConfig:
        """The inverse of `to_dict`, also after a round trip through JSON.

        Raises:
            ValueError: it is not the description of a sweep.
        """
        found = checked(values, _Description, "sweep")
        options = {name: _read(name, value) for name, value in found["options"].items()}
        return cls(**{**found, "base": TrainingConfig.from_dict(found["base"]), "options": options})


def _written(values: search_space.Values) -> Any:
    if isinstance(values, tuple):
        return list(values)
    (kind,) = (kind for kind, range_type in _RANGES.items() if isinstance(values, range_type))
    return {kind: [values.low, values.high]}


def _read(name: str, written: Any) -> Sequence[Any] | Range:
    if isinstance(written, list):
        return [tuple(value) if isinstance(value, list) else value for value in written]
    if isinstance(written, dict) and len(written) == 1:
        ((kind, ends),) = written.items()
        if kind in _RANGES and isinstance(ends, list) and len(ends) == 2:
            return _RANGES[kind](*ends)
    raise ValueError(f"options.{name} must be a list, or a range of two numbers, got {shown(written)}")
