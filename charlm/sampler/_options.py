"""The options of sampling, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

from charlm._memory import check_memory
from charlm._rules import check, check_type, shown
from charlm.data import Dataset
from charlm.models import LanguageModel
from charlm.vocabulary import Vocabulary

# Characters of a text where `max_length` is not given.
USUAL_MAX_LENGTH = 1000


class SampleOptions(TypedDict, total=False):
    """The keywords of `charlm.sample`, where their meaning is said."""

    temperature: float
    top_k: int | None
    top_p: float | None
    prefix: str | Sequence[str]
    suffix: str | Sequence[str]
    contains: str | Sequence[str]
    regex: str | None
    ban: Sequence[str]
    exclude: Sequence[str]
    novel: Dataset | bool
    unique: bool
    min_length: int
    max_length: int | None
    stop: bool
    seed: int | None


@dataclass(frozen=True)
class Options:
    """`SampleOptions` with their defaults."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    prefix: str | Sequence[str] = ""
    suffix: str | Sequence[str] = ""
    contains: str | Sequence[str] = ""
    regex: str | None = None
    ban: Sequence[str] = ()
    exclude: Sequence[str] = ()
    novel: Dataset | bool = False
    unique: bool = False
    min_length: int = 0
    max_length: int | None = None
    stop: bool = True
    seed: int | None = None

    @property
    def prefixes(self) -> Sequence[str]:
        return [self.prefix] if isinstance(self.prefix, str) else self.prefix

    @property
    def suffixes(self) -> Sequence[str]:
        return _words(self.suffix)

    @property
    def parts(self) -> Sequence[str]:
        """What a text contains."""
        return _words(self.contains)

    @property
    def is_watched(self) -> bool:
        """Whether an automaton, or the length, says which texts are wanted."""
        return self.min_length > 0 or self.max_length is not None or self.has_automaton

    @property
    def has_automaton(self) -> bool:
        return bool(self.suffixes or self.parts or self.regex is not None or any(self.ban))

    @property
    def rules(self) -> list[str]:
        """The names of the rules that a text must keep."""
        given = {
            "suffix": self.suffixes,
            "contains": self.parts,
            "regex": self.regex is not None,
            "ban": any(self.ban),
            "exclude": len(self.exclude) > 0,
            "novel": self.novel is not False,
            "unique": self.unique,
            "min_length": self.min_length > 0,
        }
        return [name for name, is_given in given.items() if is_given]

    @property
    def shown_rules(self) -> str:
        """The rules as a message has them, with values that are short."""
        names = self.rules + ([] if self.max_length is None else ["max_length"])
        values = {name: getattr(self, name) for name in names}
        single = [name for name, value in values.items() if isinstance(value, (list, tuple)) and len(value) == 1]
        values |= {name: values[name][0] for name in single}
        return ", ".join(
            f"{name}={shown(value)}" if isinstance(value, (str, int)) and not isinstance(value, bool) else name
            for name, value in values.items()
        )

    @property
    def must_end(self) -> bool:
        """Whether a text that has not ended at its greatest length is drawn again; else it is cut there."""
        return self.stop and (self.max_length is not None or bool(self.rules))

    @property
    def longest(self) -> int:
        return USUAL_MAX_LENGTH if self.max_length is None else self.max_length


def check_options(model: LanguageModel, vocabulary: Vocabulary, n: int, options: Options) -> None:
    """TypeError or ValueError where something is not what it may be."""
    check_type("model", model, LanguageModel)
    check_type("vocabulary", vocabulary, Vocabulary)
    if model.vocab_size != len(vocabulary):
        raise ValueError(
            f"vocabulary must have the model's {model.vocab_size} {vocabulary.tokens_are}, got {len(vocabulary)}"
        )
    check("n", n)
    check("temperature", options.temperature)
    for name in ("top_k", "top_p", "max_length", "seed"):
        check(name, getattr(options, name), optional=True)
    check("min_length", options.min_length)
    check_type("regex", options.regex, str, type(None))
    if options.novel is not False and not isinstance(options.novel, Dataset):
        raise TypeError(f"novel must be the data that texts must not be in, a Dataset, got {shown(options.novel)}")
    check_type("unique", options.unique, bool)
    check_type("stop", options.stop, bool)
    for name in ("prefix", "suffix", "contains", "ban", "exclude"):
        _check_words(name, getattr(options, name), single=name not in ("ban", "exclude"))
    if not options.stop and options.rules:
        raise ValueError(f"{options.rules[0]} must not be given without stop: it is for texts that end")
    for name in ("prefix", "suffix", "contains"):
        _check_tokens(name, getattr(options, name), vocabulary, stop=options.stop)
    if options.regex is not None and vocabulary.tokens_are != "characters":
        raise ValueError(f"regex must not be given of a model of {vocabulary.tokens_are}: it matches characters")
    if isinstance(options.novel, Dataset) and options.novel.vocabulary != vocabulary:
        raise ValueError("novel must be data of the same vocabulary")
    if options.max_length is not None and options.min_length > options.max_length:
        raise ValueError(f"min_length must be at most max_length={options.max_length}, got {options.min_length}")
    for prefix in options.prefixes:
        length = len(vocabulary.encode(prefix))
        if options.longest < length:
            raise ValueError(f"max_length must be at least the length of prefix, {length}, got {options.longest}")
    if not options.stop:
        # As tokens, and as what is made of them.
        check_memory(f"a text of max_length={options.longest} characters", 8 * options.longest)


def _words(value: str | Sequence[str]) -> list[str]:
    return [word for word in ([value] if isinstance(value, str) else value) if word]


def _check_words(name: str, value: object, *, single: bool) -> None:
    if single and isinstance(value, str):
        return
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        expected = "str or a sequence of str" if single else "a sequence of str"
        raise TypeError(f"{name} must be {expected}, got {type(value).__name__}")
    for i, word in enumerate(value):
        check_type(f"{name}[{i}]", word, str)


def _check_tokens(name: str, value: str | Sequence[str], vocabulary: Vocabulary, *, stop: bool) -> None:
    words = [(name, value)] if isinstance(value, str) else [(f"{name}[{i}]", word) for i, word in enumerate(value)]
    boundary = vocabulary.symbols[vocabulary.boundary]
    for place, word in words:
        try:
            tokens = vocabulary.encode(word)
        except ValueError as error:
            raise ValueError(f"{place}{str(error).removeprefix('text').partition(' of ')[0]}") from None
        if stop and vocabulary.boundary in tokens.tolist():
            where = f"{place}[{word.index(boundary)}] = {boundary!r}" if boundary in word else f"{place} has what"
            raise ValueError(f"{where} is the boundary, where a text ends")
