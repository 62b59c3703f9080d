"""What the options of a command that trains make of a preset."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from charlm._rules import shown
from charlm.cli.options import absolute, check_together, flag, is_piped

if TYPE_CHECKING:
    from charlm.configuration import TrainingConfig

# The preset that a model has without --preset.
PRESET_OF_MODEL = {"mlp": "fast", "bigram": "bigram", "count-bigram": "count-bigram"}


def given_options(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Of the parameters of a command those that are options of a configuration, and were given."""
    from charlm.configuration import KEPT_TEXTS, TrainingConfig

    names = [field.name for field in fields(TrainingConfig)]
    options = {name: parameters[name] for name in names if parameters.get(name) is not None}
    return options | {name: absolute(options[name]) for name in KEPT_TEXTS if name in options}


def configuration(preset: str | None, options: Mapping[str, Any], given: Collection[str]) -> TrainingConfig:
    """The preset, or that of the model, with the given options in place of its own; all that is `given` has effect."""
    from charlm.presets import PRESETS

    name = PRESET_OF_MODEL[options.get("model", "mlp")] if preset is None else preset
    if name not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {shown(name)}")
    base = PRESETS[name]
    if options.get("path") is not None:
        options = {**_encoded_with(options["path"], given), **options}
    check_together(given, {**vars(base), **options})
    config = replace(base, **options)
    if config.steps < base.steps and "warmup_steps" not in options:
        # A shorter run has its share of the preset's warm-up.
        config = replace(config, warmup_steps=base.warmup_steps * config.steps // base.steps)
    return config


def _encoded_with(path: str, given: Collection[str]) -> dict[str, Any]:
    """The options that a file of tokens has decided; none of a text."""
    from charlm import data

    if not data.is_encoded(path):
        return {}
    names = ("dev", "test", "split", "split_seed", "limit_vocab", "min_count", "encoding")
    if misplaced := [name for name in names if name in given]:
        raise ValueError(
            f"{', '.join(map(flag, misplaced))} cannot be given for a file of tokens, which was split and encoded"
        )
    dataset = data.load(path)
    decided = {"mode": dataset.mode, "tokens": dataset.vocabulary.tokens_are}
    return decided if dataset.mode == "stream" else {**decided, "context_length": dataset.context_length}


def check_texts(paths: Collection[str], resuming: bool, processes: int) -> None:
    """What can be read only once is for one process, that starts a run and keeps it."""
    for path in filter(is_piped, paths):
        if resuming:
            raise ValueError(f"{path} is not a file: a run that is resumed has its text, or takes it from a file")
        if processes > 1:
            raise ValueError(f"{path} is not a file, and cannot be read by {processes} processes")
