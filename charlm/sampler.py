"""Sampling text from a model: all samples advance together, one character a step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import Tensor

from charlm.models import LanguageModel
from charlm.vocabulary import Vocabulary

# Samples that advance together: bounds the memory, whatever n.
_SAMPLES_AT_ONCE = 1 << 12
# Keeps u * total below total after rounding, so that no class of probability 0 is ever drawn.
_BELOW_ONE = 1.0 - 2.0**-40


@torch.no_grad()
def sample(
    model: LanguageModel,
    vocabulary: Vocabulary,
    n: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    prefix: str = "",
    seed: int | None = None,
    max_length: int = 1000,
    stop: bool = True,
) -> list[str]:
    """Draws n texts, each from the boundary token up to the next one: names, or whatever a line of the data was.

    Args:
        model: any language model with the vocabulary's size.
        vocabulary: of the model.
        n: how many, at least 0.
        temperature: the logits are divided by it, t >= 0; 0 takes the most probable character, the first one of equals.
        top_k: only the k most probable characters are drawn from, the first ones of equals; None is all of them.
        prefix: how every text starts; characters of the vocabulary.
        seed: the same seed gives the same texts, on the CPU with any number of threads; None takes a random one.
        max_length: a text that has not ended after this many characters, `prefix` included, is cut there.
        stop: end a text at the boundary. Without it, every text goes on across boundaries to `max_length` characters,
            as the lines of a stream do.

    Returns:
        n texts that start with `prefix`; with `stop` they have no boundary in them.

    Raises:
        ValueError: an argument is out of range, or `prefix` has a character that is not in the vocabulary.
    """
    _check(model, vocabulary, n, temperature, top_k, prefix, max_length, stop)
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    start = torch.tensor([vocabulary.boundary] * model.context_length + vocabulary.encode(prefix).tolist())
    context = start[len(start) - model.context_length :]
    # A token outside the vocabulary never ends a text.
    end = vocabulary.boundary if stop else len(vocabulary)
    texts: list[str] = []
    with _one_thread():
        while len(texts) < n:
            contexts = context.repeat(min(_SAMPLES_AT_ONCE, n - len(texts)), 1)
            tokens = _continue(model, contexts, max_length - len(prefix), end, temperature, top_k, generator)
            lengths = (tokens == end).int().argmax(dim=1)
            decoded = vocabulary.decode(tokens[torch.arange(tokens.shape[1]) < lengths[:, None]])
            stops = lengths.cumsum(dim=0).tolist()
            texts += [prefix + decoded[i:j] for i, j in pairwise([0, *stops])]
    return texts


def draw(logits: Tensor, temperature: float, top_k: int | None, generator: torch.Generator) -> Tensor:
    """One class per row of `logits` (N, V) from softmax(logits / temperature) over the `top_k` largest: (N,) int64.

    By inverting the distribution function in float64, with one uniform number per row from the CPU `generator`.

    Raises:
        ValueError: a row has NaN, +inf, or nothing but -inf.
    """
    logits = logits.to("cpu", torch.float64)
    highest = logits.max(dim=1, keepdim=True).values
    if not highest.isfinite().all():
        raise ValueError("the model's logits are not finite: was it trained to a finite loss?")
    if temperature == 0.0:
        return logits.argmax(dim=1)
    weights = ((logits - highest) / temperature).exp()
    if top_k is not None and top_k < logits.shape[1]:
        ranked = logits.argsort(dim=1, descending=True, stable=True)
        weights.scatter_(1, ranked[:, top_k:], 0.0)
    cumulative = weights.cumsum(dim=1)
    uniform = torch.rand(len(logits), 1, generator=generator, dtype=torch.float64) * _BELOW_ONE
    return torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True).squeeze(1)


def _continue(
    model: LanguageModel,
    contexts: Tensor,
    max_new: int,
    end: int,
    temperature: float,
    top_k: int | None,
    generator: torch.Generator,
) -> Tensor:
    """The tokens (N, L), L <= max_new + 1, that follow the contexts (N, T): in every row up to its first `end`."""
    rows = torch.arange(len(contexts))
    tokens = torch.full((len(contexts), max_new + 1), end)
    for position in range(max_new):
        drawn = draw(model(contexts.to(model.device)), temperature, top_k, generator)
        tokens[rows, position] = drawn
        going = drawn != end
        if not going.any():
            return tokens[:, : position + 1]
        rows = rows[going]
        contexts = torch.cat([contexts[going, 1:], drawn[going, None]], dim=1)
    return tokens


def _check(
    model: LanguageModel,
    vocabulary: Vocabulary,
    n: int,
    temperature: float,
    top_k: int | None,
    prefix: str,
    max_length: int,
    stop: bool,
) -> None:
    if model.vocab_size != len(vocabulary):
        raise ValueError(f"vocabulary must have the model's {model.vocab_size} characters, got {len(vocabulary)}")
    if n < 0:
        raise ValueError(f"n must be at least 0, got {n}")
    if not (math.isfinite(temperature) and temperature >= 0.0):
        raise ValueError(f"temperature must be a finite number >= 0, got {temperature}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1 or None, got {top_k}")
    for position, character in enumerate(prefix):
        if character not in vocabulary.characters:
            raise ValueError(f"prefix[{position}] = {character!r} is not in the vocabulary")
        if stop and character == vocabulary.characters[vocabulary.boundary]:
            raise ValueError(f"prefix[{position}] = {character!r} is the boundary, where a text ends")
    if max_length < max(1, len(prefix)):
        raise ValueError(f"max_length must be at least 1 and the length of prefix={len(prefix)}, got {max_length}")


@contextmanager
def _one_thread() -> Iterator[None]:
    """A matrix product may round differently with another number of threads, and a draw then fall the other way."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
