"""`charlm sample --interactive`: a line is a beginning, or an option to change."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from charlm._rules import RULES, shown
from charlm.cli.options import as_options

if TYPE_CHECKING:
    from charlm.checkpoint import Run

_HELP = """A line is how samples start; an empty one lets the model start.
  :OPTION VALUE   change an option, such as :temperature 0.7 or :suffix lyn
  :OPTION         back to what it is without being given; switches are on or off
  :options        what they are now
  :help  :quit"""


def _switch(text: str) -> bool:
    if text not in ("on", "off"):
        raise ValueError(f"{shown(text)} is not on or off")
    return text == "on"


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{shown(text)} is not an integer") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{shown(text)} is not a number") from None


# How a value is read, and what an option is that is not given.
_OPTIONS: dict[str, tuple[Callable[[str], Any], Any]] = {
    "n": (_integer, 10),
    "temperature": (_number, 1.0),
    "top_k": (_integer, None),
    "top_p": (_number, None),
    "suffix": (str, ""),
    "contains": (str, ""),
    "regex": (str, None),
    "novel": (_switch, False),
    "unique": (_switch, False),
    "min_length": (_integer, 0),
    "max_length": (_integer, None),
    "scores": (_switch, False),
    "seed": (_integer, None),
}


class Conversation:
    """Answers lines with samples, until the last one.

    Args:
        run: what to sample from.
        options: those of `charlm.sample`, and "n" and "scores". With a seed, answer number k is drawn with seed + k, so
            that a beginning has other texts when it comes again.
    """

    def __init__(self, run: Run, options: dict[str, Any]) -> None:
        self._run = run
        self._options = options
        self._answers = 0

    def hold(self) -> None:
        """Reads standard input to its end, or to `:quit`."""
        for line in _lines():
            text = line.rstrip("\r\n")
            if text.strip() in (":quit", ":q"):
                return
            try:
                self._command(text[1:]) if text.startswith(":") else self._answer(text)
            except ValueError as error:
                print(f"error: {as_options(' '.join(str(error).split()))}")
            sys.stdout.flush()

    def _command(self, command: str) -> None:
        name, _, value = command.strip().partition(" ")
        name, value = name.removeprefix("--").replace("-", "_"), value.strip()
        if name == "help":
            print(_HELP)
        elif name == "options":
            for option in _OPTIONS:
                print(f"  :{option.replace('_', '-')} {self._shown(option)}")
        elif name not in _OPTIONS:
            raise ValueError(f"there is no :{shown(name)[1:-1]}; :options shows what there is")
        else:
            read, default = _OPTIONS[name]
            new = read(value) if value else (not self._options[name] if default is False else default)
            if new is not None and name in RULES and (fault := RULES[name].fault(new)):
                raise ValueError(f"{shown(new)} is not {fault}")
            if name == "novel":
                new = self._run.load_data() if new else False
            self._options[name] = new

    def _shown(self, name: str) -> str:
        value = self._options[name]
        if _OPTIONS[name][1] is False:
            return "on" if value else "off"
        return " ".join(value) if isinstance(value, list) else "" if value is None else str(value)

    def _answer(self, prefix: str) -> None:
        from charlm.sampler import stream

        options = {name: value for name, value in self._options.items() if name not in ("n", "scores")}
        if options["seed"] is not None:
            options["seed"] = (options["seed"] + self._answers) % (1 << 64)
        self._answers += 1
        options["prefix"] = prefix
        for texts in stream(self._run.model, self._run.vocabulary, self._options["n"], scores=True, **options):
            for text, log_prob in texts:
                print(f"{text}\t{log_prob:.4f}" if self._options["scores"] else text)


def _lines() -> Iterator[str]:
    """The lines of standard input, asked for where somebody types them."""
    if not sys.stdin.isatty():
        yield from sys.stdin
        return
    # Lets a line be edited, and come again.
    import readline  # noqa: F401

    print("How should samples start? :help says what else there is.")
    while True:
        try:
            yield input("> ")
        except EOFError:
            print()
            return
