"""Texts in blocks, as they are drawn."""

from __future__ import annotations

import hashlib
import secrets
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from charlm._buffers import to_buffer, to_tensor
from charlm._text_extension import _text
from charlm.data import Dataset
from charlm.models import LanguageModel
from charlm.sampler._automata import Automaton, Contains, ContainsNone, EndsWith, Machine, combine
from charlm.sampler._options import Options, SampleOptions, check_options
from charlm.sampler._regex import Matches
from charlm.sampler._tables import tables
from charlm.vocabulary import Vocabulary

if TYPE_CHECKING:
    from typing_extensions import Buffer, Unpack

# How often a text is drawn, at most, until it keeps the rules.
ATTEMPTS = 1 << 20
# Bounds the tables, at 12 bytes for a character that can follow a context: 96 MiB. As many are bounds for the
# probabilities of texts that keep the rules.
_MAX_ENTRIES = 1 << 23
# Bound the texts that are drawn side by side, and their characters if none ends early. The first ones are few, so that
# they are there at once; then there are twice as many each time.
_FIRST_TEXTS, _MAX_TEXTS = 1 << 6, 1 << 16
_MAX_TOKENS = 1 << 26


class TooFewTextsError(ValueError):
    """There are fewer texts that keep the rules than were asked for, or they are too rare.

    Attributes:
        found: how many there were.
        draws: how many were drawn for that.
    """

    def __init__(self, message: str, found: int, draws: int) -> None:
        super().__init__(message)
        self.found = found
        self.draws = draws


@dataclass(frozen=True)
class _Beginning:
    """A prefix.

    Attributes:
        text, tokens: of it.
        context: (T,) int32, the last tokens of what stands before the first one that is drawn.
        state: of the automaton.
    """

    text: str
    tokens: list[int]
    context: Tensor
    state: int


class Draw:
    """What `charlm.sampler.stream` draws, and how often; arguments are those of `charlm.sample`.

    Attributes:
        draws: how often a text was drawn so far, those included that broke a rule.
        is_exact: whether the rules that an automaton or the length can tell are in the probabilities; None where there
            are none, or before the first block.

    Raises:
        TypeError, ValueError: as `charlm.sample`; also where no text can keep the rules, whatever the model.
    """

    def __init__(self, model: LanguageModel, vocabulary: Vocabulary, n: int, **given: Unpack[SampleOptions]) -> None:
        options = Options(**given)
        check_options(model, vocabulary, n, options)
        self.draws = 0
        self.is_exact: bool | None = None
        self._model = model
        self._vocabulary = vocabulary
        self._n = int(n)
        self._options = options
        self._seed = secrets.randbits(64) if options.seed is None else int(options.seed) % (1 << 64)
        self._automaton = _automaton_of(options, vocabulary) if options.has_automaton else None
        self._beginnings = [self._beginning(prefix) for prefix in options.prefixes]

    def blocks(self) -> Iterator[_text.Sampler]:
        """The sampler each time that it has more texts, all of one prefix.

        Raises:
            TooFewTextsError: after the last of those that there are.
            ValueError: the model gives no text that keeps the rules, or has logits of NaN or infinity.
        """
        sampler = self._prepare()
        found = 0
        for beginning in self._beginnings:
            drawn, count = 0, _FIRST_TEXTS
            at_once = max(1, min(_MAX_TEXTS, _MAX_TOKENS // max(1, self._options.longest - len(beginning.tokens))))
            while drawn < self._n:
                count = min(count, at_once, self._n - drawn)
                self._start(sampler, beginning, drawn, count)
                while sampler.unfinished:
                    self._answer(sampler.advance(), sampler.add)
                self.draws += sampler.draws
                found += sampler.size
                yield sampler
                if sampler.size < count:
                    raise self._too_few(found, beginning)
                drawn += count
                count *= 2

    def texts(self, sampler: _text.Sampler) -> list[str]:
        """What it has drawn. The sampler knows a character for each token."""
        texts, vocabulary = sampler.texts(), self._vocabulary
        return texts if vocabulary.tokens_are == "characters" else [vocabulary._text_of(text) for text in texts]

    def lines(self, sampler: _text.Sampler) -> bytes:
        """The same in UTF-8, with a line break after each."""
        if self._vocabulary.tokens_are == "characters":
            return sampler.lines()
        return "".join(f"{text}\n" for text in self.texts(sampler)).encode()

    def _prepare(self) -> _text.Sampler:
        options, vocabulary = self._options, self._vocabulary
        sampler = _text.Sampler(
            vocabulary._stand_ins, self._model.context_length, max(1, _MAX_ENTRIES // len(vocabulary))
        )
        if isinstance(options.novel, Dataset):
            tokens = options.novel.all.tokens
            sampler.exclude_lines(to_buffer(tokens), tokens.itemsize, vocabulary.boundary)
            sampler.exclude(b"")
        for excluded in _encoded(options.exclude, vocabulary):
            sampler.exclude("".join(vocabulary._stand_ins[token] for token in excluded).encode())
        if options.is_watched and options.must_end:
            self._constrain(sampler)
        return sampler

    def _constrain(self, sampler: _text.Sampler) -> None:
        """Has the rules go into the probabilities, if the model is small enough for that."""
        options = self._options
        automaton = self._automaton or combine([], len(self._vocabulary))
        sampler.constrain(
            automaton.classes,
            array("I", [state for row in automaton.next for state in row]),
            array("B", automaton.accepting),
            self._vocabulary.boundary,
        )
        for beginning in self._beginnings:
            sampler.open(to_buffer(beginning.context), beginning.state)
        while contexts := sampler.explore():
            self._answer(contexts, sampler.add_explored)
        self.is_exact = sampler.solve(options.min_length, -1 if options.max_length is None else options.max_length)
        if not self.is_exact:
            return
        for beginning in self._beginnings:
            length = len(beginning.tokens)
            if sampler.acceptance(to_buffer(beginning.context), beginning.state, length) == 0.0:
                raise TooFewTextsError(
                    f"this model has no text{_after(beginning)} that keeps {options.shown_rules}", 0, 0
                )

    def _answer(self, contexts: bytearray, add: Callable[[Buffer], None]) -> None:
        """Gives the sampler the tables of the contexts that it asks for."""
        options = self._options
        asked = to_tensor(contexts, torch.int32).view(-1, self._model.context_length)
        for weights in tables(self._model, asked, options.temperature, options.top_k, options.top_p):
            add(to_buffer(weights))

    def _start(self, sampler: _text.Sampler, beginning: _Beginning, first: int, count: int) -> None:
        options = self._options
        length = len(beginning.tokens)
        sampler.start(
            to_buffer(beginning.context),
            self._seed if len(self._beginnings) == 1 else self._seed ^ _mixed(beginning.text),
            first,
            count,
            options.longest - length,
            self._vocabulary.boundary if options.stop else -1,
            prefix="".join(self._vocabulary._stand_ins[token] for token in beginning.tokens),
            min_tokens=max(0, options.min_length - length),
            must_end=options.must_end,
            unique=options.unique,
            chained=self.is_exact is True,
            state=beginning.state,
            length=length,
            attempts=ATTEMPTS,
        )

    def _beginning(self, prefix: str) -> _Beginning:
        tokens = self._vocabulary.encode(prefix).tolist()
        padded = [self._vocabulary.boundary] * self._model.context_length + tokens
        context = torch.tensor(padded[len(tokens) :], dtype=torch.int32, device="cpu")
        beginning = _Beginning(prefix, tokens, context, 1)
        if self._automaton is None:
            return beginning
        state = self._automaton.after(tokens)
        if state == 0 or len(tokens) + self._automaton.shortest[state] > self._options.longest:
            raise ValueError(f"no text{_after(beginning)} can keep {self._options.shown_rules}")
        return _Beginning(prefix, tokens, context, state)

    def _too_few(self, found: int, beginning: _Beginning) -> TooFewTextsError:
        wanted = self._n * len(self._beginnings)
        return TooFewTextsError(
            f"found {found:,} of {wanted:,} texts in {self.draws:,} draws: the next one{_after(beginning)} was drawn "
            f"{ATTEMPTS:,} times, and never kept the rules",
            found,
            self.draws,
        )


def _automaton_of(options: Options, vocabulary: Vocabulary) -> Automaton:
    machines: list[Machine] = [Contains([vocabulary.encode(part).tolist()]) for part in options.parts]
    if options.suffixes:
        machines.append(EndsWith([vocabulary.encode(suffix).tolist() for suffix in options.suffixes]))
    if any(options.ban):
        machines.append(ContainsNone([tokens for tokens in _encoded(options.ban, vocabulary) if tokens]))
    if options.regex is not None:
        machines.append(Matches(options.regex, vocabulary.symbols))
    return combine(machines, len(vocabulary))


def _encoded(texts: Sequence[str], vocabulary: Vocabulary) -> list[list[int]]:
    """The tokens of those that can be drawn."""
    found = []
    for text in texts:
        try:
            tokens = vocabulary.encode(text).tolist()
        except ValueError:
            continue
        if vocabulary.unknown not in tokens:
            found.append(tokens)
    return found


def _after(beginning: _Beginning) -> str:
    return f" after prefix {beginning.text!r}" if beginning.text else ""


def _mixed(prefix: str) -> int:
    """64 bits of the prefix, so that the texts after one do not go as those after another."""
    return int.from_bytes(hashlib.blake2b(prefix.encode(), digest_size=8).digest(), "little")
