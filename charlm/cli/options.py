"""What options may be, how they are called, and which go with which: without torch, so that errors are quick."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any

import typer

from charlm import search_space
from charlm._rules import RULES, Choice, shown
from charlm.cli import completion

# Options that are called otherwise than the argument in Python that they become.
_FLAGS = {
    **{"path": "FILE", "warmup_steps": "--warmup", "total_steps": "--steps", "n": "-n"},
    **{"workload": "--preset", "backends": "--backends", "run_dir": "--out", "sweep_dir": "--out", "as_json": "--json"},
}
# Options without a rule for their values.
_OTHERS = ("preset", "backend", "prefix", "suffix", "contains", "regex", "ban", "exclude", "novel", "unique")

_MLP = ("context_length", "embedding_dim", "hidden_dim", "direct", "softcap")
_TRAINING = (
    *("steps", "batch_size", "optimizer", "learning_rate", "momentum", "betas", "eps", "weight_decay", "schedule"),
    *("warmup_steps", "milestones", "decay_factor", "max_grad_norm", "seed", "backend", "device"),
    *("checkpoint_every", "tensorboard"),
)
# Options that mean something only where another one has one of these values.
_GO_WITH: tuple[tuple[Collection[str], str, Collection[str]], ...] = (
    (_MLP, "model", ("mlp",)),
    (("smoothing",), "model", ("count-bigram",)),
    (_TRAINING, "model", ("mlp", "bigram")),
    (("momentum",), "optimizer", ("sgd",)),
    (("betas", "eps"), "optimizer", ("adamw",)),
    (("milestones", "decay_factor"), "schedule", ("step",)),
    (("split", "split_seed"), "mode", ("lines",)),
    (("split_seed",), "split", ("random",)),
    (("limit_vocab", "min_count", "encoding"), "tokens", ("characters", "words")),
)


def flag(name: str) -> str:
    """How the command line calls an argument."""
    return _FLAGS.get(name, "--" + name.replace("_", "-"))


def check_rules(context: Any, parameters: Sequence[Any]) -> None:
    """typer.BadParameter where the value of an option is not what the rule for its name allows.

    Args:
        context: a `typer.Context`.
        parameters: those of its command.
    """
    for parameter in parameters:
        for value in search_space.examples(context.params.get(parameter.name)):
            if value is not None and parameter.name in RULES and (fault := RULES[parameter.name].fault(value)):
                raise typer.BadParameter(f"{shown(value)} is not {fault}", ctx=context, param=parameter)


def check_together(given: Collection[str], values: Mapping[str, Any]) -> None:
    """ValueError where an option was given that does not go with the others.

    Args:
        given: the names of the options that were.
        values: of all options, those of the preset included.
    """
    for names, selector, words in _GO_WITH:
        misplaced = [name for name in names if name in given]
        if misplaced and values[selector] not in words:
            expected = " or ".join(f"{flag(selector)} {word}" for word in words)
            raise ValueError(f"{_listed(misplaced)} with {expected}, not with {flag(selector)} {values[selector]}")
    files = [name for name in ("dev", "test") if name in given]
    misplaced = [name for name in ("split", "split_seed") if name in given]
    if len(files) == 1:
        raise ValueError(f"--dev and --test go together, but only {flag(files[0])} was given")
    if files and misplaced:
        raise ValueError(f"{_listed(misplaced)} with one FILE that is split, not with --dev and --test")


def as_options(message: str) -> str:
    """A message of the Python API in terms of the command line: `top_k must be` as `--top-k must be`."""
    names = "|".join(sorted({*RULES, *_FLAGS, *_OTHERS} - {"n", "seed", "top", "vocab_size"}, key=len, reverse=True))
    # Where None stands for an option that is not given.
    message = message.replace(" or None, got ", ", got ")
    # A name at the beginning of a message or before "=" is an argument; elsewhere, where it is no English word.
    message = re.sub(rf"^({names}|seed|n)(?= must )", lambda match: flag(match[1]), message)
    message = re.sub(rf"\b({names})=(?:'([^']*)'|([\w.]+))", lambda m: f"{flag(m[1])} {m[2] or m[3]}", message)
    return re.sub(rf"(?<![\w/.'-])({names})(?![\w/.'-])", lambda m: flag(m[1]) if "_" in m[1] else m[1], message)


def file_name(text: str) -> str:
    """The parser of a path."""
    if not text:
        raise typer.BadParameter("the name is empty")
    if "\0" in text:
        raise typer.BadParameter(f"{shown(text)} has NUL in it")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise typer.BadParameter(f"{shown(text)} is not a name in UTF-8: rename it") from None
    return text


def absolute(path: str) -> str:
    """The path by which a run finds its data from wherever it is used; of a pipe and standard input what was given."""
    if os.path.isfile(path):
        return os.path.realpath(path)
    return path if is_piped(path) else os.path.abspath(path)


def is_piped(path: str) -> bool:
    """Whether it is standard input or a pipe, which can be read only once."""
    return path in ("-", "/dev/stdin") or (os.path.exists(path) and stat.S_ISFIFO(os.stat(path).st_mode))


# The argument of every command that uses a run.
Run = Annotated[
    str, typer.Argument(metavar="RUN", parser=file_name, help="Folder of a run.", autocompletion=completion.runs)
]


def one_of(words: str | Sequence[str], meaning: str, panel: str | None = None) -> Any:
    """An option that takes one of some words: its help has them, and a shell completes them.

    Args:
        words: or the name of the rule that has them.
        meaning: what the help says before them.
        panel: the group of options.
    """
    if isinstance(words, str):
        rule = RULES[words]
        assert isinstance(rule, Choice)
        words = rule.words
    return typer.Option(
        metavar="NAME",
        help=f"{meaning}: {', '.join(words[:-1])} or {words[-1]}.",
        autocompletion=completion.words(words),
        rich_help_panel=panel,
    )


def integers(text: str) -> tuple[int, ...]:
    """The parser of a list of integers."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"{shown(text)} is not a list of integers such as 1000,2000") from None


def two_numbers(text: str) -> tuple[float, float]:
    """The parser of two numbers."""
    try:
        first, second = (float(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"{shown(text)} is not two numbers such as 0.9,0.999") from None
    return first, second


def integer_or_full(text: str) -> int | str:
    """The parser of a batch size."""
    try:
        return text if text == "full" else int(text)
    except ValueError:
        raise typer.BadParameter(f"{shown(text)} is neither an integer nor 'full'") from None


def _listed(names: Collection[str]) -> str:
    return f"{', '.join(map(flag, names))} {'goes' if len(names) == 1 else 'go'}"
