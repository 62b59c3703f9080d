"""`charlm.sample`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, NamedTuple, overload

import torch

from charlm.models import LanguageModel
from charlm.sampler._drawing import Draw
from charlm.sampler._options import Options, SampleOptions
from charlm.scoring import score_tokens
from charlm.vocabulary import Vocabulary

if TYPE_CHECKING:
    from typing_extensions import Unpack


class ScoredText(NamedTuple):
    """A text, and its log-probability under the model in nats, the end included."""

    text: str
    log_prob: float


@overload
def sample(
    model: LanguageModel,
    vocabulary: Vocabulary,
    n: int,
    *,
    scores: Literal[False] = False,
    **options: Unpack[SampleOptions],
) -> list[str]: ...


@overload
def sample(
    model: LanguageModel, vocabulary: Vocabulary, n: int, *, scores: Literal[True], **options: Unpack[SampleOptions]
) -> list[ScoredText]: ...


def sample(
    model: LanguageModel, vocabulary: Vocabulary, n: int, *, scores: bool = False, **options: Unpack[SampleOptions]
) -> list[str] | list[ScoredText]:
    """Draws n texts, each from the boundary token up to the next one: names, or whatever a line of the data was.

    Text i depends on the seed, on i and on the options, not on n: more texts start with the same ones. Memory for what
    the model says is bounded; where it does not suffice for all contexts, the model is asked again, and the texts stay
    the same.

    `suffix`, `contains`, `regex`, `ban`, `min_length` and `max_length` are rules whose texts come with the model's
    probability of them given that they keep the rules. Where at most 2^23 / V pairs of a context and a state of the
    rules can be reached, as with names and contexts of 3 characters, these probabilities are computed, and no draw is
    in vain. Otherwise, and for `exclude`, `novel` and `unique`, a text that breaks a rule is drawn again.

    Args:
        model: any language model with the vocabulary's size.
        vocabulary: of the model.
        n: how many, at least 0; of each prefix, where there are several.
        scores: also return the log-probability of each text under the model itself, whatever `temperature`, `top_k`,
            `top_p` and the rules are. A text that was cut has none of an end.
        temperature: the logits are divided by it, t >= 0; 0 takes the most probable character, the first one of equals.
            1 by default.
        top_k: only the k most probable characters are drawn from, the first ones of equals; None is all of them.
        top_p: only the most probable characters that have this probability together are drawn from, 0 < p <= 1, those
            of `top_k`; None is all of them.
        prefix: how every text starts; characters or words of the vocabulary. Of a sequence of them, n texts
            start with the first, n with the next, and so on; what follows one of several does not depend on which the
            others are.
        suffix: how every text ends; of a sequence, with any of them.
        contains: what every text has in it; of a sequence, all of them.
        regex: what matches the whole of every text, in the syntax of `re`, but for references to groups, looking
            around, word boundaries, and atomic or possessive parts.
        ban: a text has none of these in it.
        exclude: a text is none of these.
        novel: data, as `charlm.data.load` returns it: no text is a line of it, of whatever split, nor empty.
        unique: no two texts are equal, whatever their prefixes: one that equals an earlier one is drawn again. All are
            kept in memory.
        min_length: of a text in tokens, which are characters or what else the vocabulary has, `prefix` included; 0 by
            default.
        max_length: likewise, at least 1: texts end within it. Without it, a text that has not ended after 1000
            characters is cut there, or drawn again if there are rules.
        stop: end a text at the boundary. Without it, every text goes on across boundaries to `max_length` characters,
            as the lines of a stream do, and there are no rules.
        seed: -2^63 <= seed < 2^64. The same seed gives the same texts, on the CPU with any number of threads; None
            takes a random one.

    Returns:
        n texts for each prefix, or with `scores` n pairs (text, log_prob); with `stop` they have no boundary in them.

    Raises:
        TooFewTextsError: a text was drawn 2^20 times, and never kept the rules; or the model has none that does.
        TypeError: an argument has another type.
        ValueError: an argument is out of range, `prefix`, `suffix` or `contains` has a character that is not in the
            vocabulary, no text can keep the rules, or the model has logits of NaN or infinity.
    """
    if scores:
        return [scored for block in stream(model, vocabulary, n, scores=True, **options) for scored in block]
    return [text for block in stream(model, vocabulary, n, **options) for text in block]


@overload
def stream(
    model: LanguageModel,
    vocabulary: Vocabulary,
    n: int,
    *,
    scores: Literal[False] = False,
    **options: Unpack[SampleOptions],
) -> Iterator[list[str]]: ...


@overload
def stream(
    model: LanguageModel, vocabulary: Vocabulary, n: int, *, scores: Literal[True], **options: Unpack[SampleOptions]
) -> Iterator[list[ScoredText]]: ...


def stream(
    model: LanguageModel, vocabulary: Vocabulary, n: int, *, scores: bool = False, **options: Unpack[SampleOptions]
) -> Iterator[list[str]] | Iterator[list[ScoredText]]:
    """The texts of `sample` in lists, as they are drawn: any number, in memory that is bounded but for `unique`.

    Arguments, texts and errors are those of `sample`; arguments are looked at in the call itself. `TooFewTextsError`
    comes after the texts that there are.
    """
    draw = Draw(model, vocabulary, n, **options)
    if not scores:
        return (draw.texts(sampler) for sampler in draw.blocks())
    given = Options(**options)
    return (_scored(model, vocabulary, draw.texts(sampler), sampler.texts(), given) for sampler in draw.blocks())


def stream_lines(
    model: LanguageModel, vocabulary: Vocabulary, n: int, **options: Unpack[SampleOptions]
) -> Iterator[bytes]:
    """The texts of `stream` in UTF-8, each with a line break after it: what is fastest to write to a file."""
    draw = Draw(model, vocabulary, n, **options)
    return (draw.lines(sampler) for sampler in draw.blocks())


def _scored(
    model: LanguageModel, vocabulary: Vocabulary, texts: list[str], stand_ins: list[str], options: Options
) -> list[ScoredText]:
    """The texts with their log-probabilities; `stand_ins` have a character for each token."""
    first = ord(vocabulary._stand_ins[0])
    if vocabulary.tokens_are == "characters":
        tokens = [vocabulary.encode(text) for text in stand_ins]
    else:
        tokens = [torch.tensor([ord(c) - first for c in text], dtype=vocabulary.dtype) for text in stand_ins]
    scores = score_tokens(model, vocabulary, texts, tokens)
    totals = scores.totals
    if not options.must_end:
        # What was cut there has no end.
        for i, text in enumerate(stand_ins):
            if len(text) == options.longest:
                totals[i] -= scores.of(i)[-1]
    return list(map(ScoredText, texts, totals.tolist()))
