"""What a model thinks of given texts: the log-probability of every character."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from charlm._rules import check_type, shown
from charlm.models import LanguageModel
from charlm.splits import Split
from charlm.vocabulary import Vocabulary

# Contexts, and logits, in memory at a time.
_ROWS_AT_ONCE = 1 << 12
_LOGITS_AT_ONCE = 1 << 22


@dataclass(frozen=True, eq=False)
class Scores:
    """The log-probabilities of texts, in nats. A text of L characters has L + 1: the last one is that of its end.

    Attributes:
        texts: what was scored.
        log_probs: (N,) float64, log p(character | those before it), those of one text after the other; -inf where the
            model gives a character probability 0.
        ends: (len(texts),) int64, the number of log-probabilities up to and including those of each text.
    """

    texts: tuple[str, ...]
    log_probs: Tensor
    ends: Tensor

    def __len__(self) -> int:
        return len(self.texts)

    def of(self, i: int) -> Tensor:
        """The log-probabilities of text i: (L + 1,) float64, a view. IndexError if there is no such text."""
        i = range(len(self.texts))[i]
        return self.log_probs[int(self.ends[i - 1]) if i > 0 else 0 : int(self.ends[i])]

    @property
    def totals(self) -> Tensor:
        """The log-probability of each text: (len(texts),) float64."""
        lengths = self.ends.diff(prepend=self.ends.new_zeros(1))
        text = torch.repeat_interleave(torch.arange(len(self.texts), device="cpu"), lengths)
        return torch.zeros(len(self.texts), dtype=torch.float64, device="cpu").index_add_(0, text, self.log_probs)

    @property
    def nll(self) -> float:
        """-sum of all log-probabilities."""
        return -math.fsum(self.log_probs.tolist())

    @property
    def nll_per_character(self) -> float:
        """The mean of -log p over all characters and ends, as `charlm.evaluate` measures it; NaN without texts."""
        return self.nll / len(self.log_probs) if len(self.log_probs) else math.nan

    @property
    def perplexity(self) -> float:
        """exp of `nll_per_character`: how many equally likely characters would be as hard to guess."""
        return math.exp(min(self.nll_per_character, 700.0)) if math.isfinite(self.nll) else self.nll


def score(model: LanguageModel, vocabulary: Vocabulary, texts: Sequence[str]) -> Scores:
    """log p of every character of `texts`, each read from the boundary token up to the next one, as a line of the data.

    The model sees every distinct context once, in its own dtype; the softmax is float64.

    Args:
        model: any language model with the vocabulary's size.
        vocabulary: of the model.
        texts: without boundaries. An empty one has one log-probability, that of its end.

    Raises:
        TypeError: an argument has another type.
        ValueError: a text has a character that is not in the vocabulary, or its boundary.
    """
    check_type("model", model, LanguageModel)
    check_type("vocabulary", vocabulary, Vocabulary)
    if model.vocab_size != len(vocabulary):
        raise ValueError(
            f"vocabulary must have the model's {model.vocab_size} {vocabulary.tokens_are}, got {len(vocabulary)}"
        )
    if isinstance(texts, (str, bytes)) or not isinstance(texts, Sequence):
        raise TypeError(f"texts must be a sequence of str, got {type(texts).__name__}")
    for i, text in enumerate(texts):
        check_type(f"texts[{i}]", text, str)
    return score_tokens(model, vocabulary, texts, _tokens_of(texts, vocabulary))


@torch.no_grad()
def score_tokens(
    model: LanguageModel, vocabulary: Vocabulary, texts: Sequence[str], tokens: Sequence[Tensor]
) -> Scores:
    """As `score`, of texts whose tokens are known; boundaries may be among them, across which the model reads on."""
    if not texts:
        return Scores((), torch.empty(0, dtype=torch.float64, device="cpu"), torch.empty(0, dtype=torch.int64))
    edge = torch.full((model.context_length,), vocabulary.boundary, dtype=vocabulary.dtype, device="cpu")
    framed = torch.cat([*(part for some in tokens for part in (edge, some)), edge[:1]])
    ends = torch.tensor([len(some) + 1 for some in tokens], dtype=torch.int64, device="cpu").cumsum(0)
    split = Split(framed, ends, model.context_length, len(vocabulary))
    return Scores(tuple(texts), _log_probs(model, split), split.ends)


def _tokens_of(texts: Sequence[str], vocabulary: Vocabulary) -> Sequence[Tensor]:
    """The tokens of each text."""
    whole = "".join(texts)
    if vocabulary.tokens_are == "characters" and set(whole) <= set(vocabulary.symbols):
        tokens = vocabulary.encode(whole)
        if not bool((tokens == vocabulary.boundary).any()):
            # All at once, as a character is a token.
            return tokens.split([len(text) for text in texts])
    return [_encoded(text, vocabulary) for text in texts]


def _encoded(text: str, vocabulary: Vocabulary) -> Tensor:
    """The tokens of a text; ValueError if it has one that is not in the vocabulary, or its boundary."""
    try:
        tokens = vocabulary.encode(text)
    except ValueError as error:
        _, _, what = str(error).partition(" = ")
        what = what.replace(" is not ", ", which is not ", 1).partition(" of ")[0]
        raise ValueError(f"{shown(text)} has {what}") from None
    if bool((tokens == vocabulary.boundary).any()):
        boundary = vocabulary.symbols[vocabulary.boundary]
        raise ValueError(f"{shown(text)} has {boundary!r}, the boundary, where a text ends")
    return tokens


def _log_probs(model: LanguageModel, split: Split) -> Tensor:
    """log p(target | context) of every example: (N,) float64 on the CPU."""
    distinct = split.distinct()
    targets = split.targets.long()
    log_probs = torch.empty(len(split), dtype=torch.float64, device="cpu")
    by_context = distinct.index.argsort()
    starts = distinct.index[by_context]
    rows_at_once = max(1, min(_ROWS_AT_ONCE, _LOGITS_AT_ONCE // model.vocab_size))
    for start in range(0, len(distinct), rows_at_once):
        contexts = distinct.contexts[start : start + rows_at_once]
        table = model(contexts.to(model.device)).cpu().double().log_softmax(dim=-1)
        low, high = torch.searchsorted(
            starts, torch.tensor([start, start + len(contexts)], dtype=starts.dtype)
        ).tolist()
        examples = by_context[low:high]
        log_probs[examples] = table[distinct.index[examples].long() - start, targets[examples]]
    return log_probs
