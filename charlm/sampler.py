"""Sampling text from a model: it is asked once for each context, and many texts are drawn from its answers at once."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from charlm._buffers import to_buffer, to_tensor
from charlm._memory import check_memory
from charlm._rules import check, check_type
from charlm._text_extension import _text
from charlm.models import LanguageModel
from charlm.vocabulary import Vocabulary

# Contexts that the model sees at a time: 256, or fewer of a large vocabulary, as a single text asks for one after the
# other.
_MAX_BATCH_SIZE, _MAX_LOGITS = 256, 1 << 13
# Bounds the tables, at 16 bytes for a character that can follow a context: 128 MiB.
_MAX_ENTRIES = 1 << 23
# Bound the texts that are drawn side by side, and their characters if none ends early. The first ones are few, so that
# they are there at once; then there are twice as many each time.
_FIRST_TEXTS, _MAX_TEXTS = 1 << 6, 1 << 16
_MAX_TOKENS = 1 << 26

# Models are evaluated by one thread at a time: `torch.set_num_threads` is for the whole process.
_evaluating = threading.RLock()


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

    Text i depends on the seed and on i, not on n: more texts start with the same ones. Memory for what the model says
    is bounded; where it does not suffice for all contexts, the model is asked again, and the texts stay the same.

    Args:
        model: any language model with the vocabulary's size.
        vocabulary: of the model.
        n: how many, at least 0.
        temperature: the logits are divided by it, t >= 0; 0 takes the most probable character, the first one of equals.
        top_k: only the k most probable characters are drawn from, the first ones of equals; None is all of them.
        prefix: how every text starts; characters or words of the vocabulary.
        seed: -2^63 <= seed < 2^64. The same seed gives the same texts, on the CPU with any number of threads; None
            takes a random one.
        max_length: a text that has not ended after this many tokens, `prefix` included, is cut there.
        stop: end a text at the boundary. Without it, every text goes on across boundaries to `max_length` characters,
            as the lines of a stream do.

    Returns:
        n texts that start with `prefix`; with `stop` they have no boundary in them.

    Raises:
        TypeError: an argument has another type.
        ValueError: an argument is out of range, `prefix` has a character that is not in the vocabulary, or the model
            has logits of NaN or infinity.
    """
    blocks = stream(
        model,
        vocabulary,
        n,
        temperature=temperature,
        top_k=top_k,
        prefix=prefix,
        seed=seed,
        max_length=max_length,
        stop=stop,
    )
    return [text for texts in blocks for text in texts]


def stream(
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
) -> Iterator[list[str]]:
    """The texts of `sample` in lists, as they are drawn: any number of them, in bounded memory.

    Arguments, texts and errors are those of `sample`; arguments are looked at in the call itself.
    """
    _check(model, vocabulary, n, temperature, top_k, prefix, seed, max_length, stop)
    key = secrets.randbits(64) if seed is None else int(seed) % (1 << 64)
    return _draw(model, vocabulary, int(n), float(temperature), top_k, prefix, key, max_length, stop)


def _draw(
    model: LanguageModel,
    vocabulary: Vocabulary,
    n: int,
    temperature: float,
    top_k: int | None,
    prefix: str,
    key: int,
    max_length: int,
    stop: bool,
) -> Iterator[list[str]]:
    beginning = vocabulary.encode(prefix).tolist()
    start = torch.tensor([vocabulary.boundary] * model.context_length + beginning, device="cpu")
    context = start[len(start) - model.context_length :].int()
    length = max_length - len(beginning)
    at_once = max(1, min(_MAX_TEXTS, _MAX_TOKENS // max(1, length)))
    sampler = _text.Sampler(vocabulary._stand_ins, model.context_length, max(1, _MAX_ENTRIES // len(vocabulary)))
    batch_size = max(16, min(_MAX_BATCH_SIZE, _MAX_LOGITS // len(vocabulary)))
    drawn, count = 0, _FIRST_TEXTS
    while drawn < n:
        count = min(count, at_once, n - drawn)
        sampler.start(to_buffer(context), key, drawn, count, length, vocabulary.boundary if stop else -1)
        while sampler.unfinished:
            contexts = to_tensor(sampler.advance(), torch.int32).view(-1, model.context_length)
            for batch in contexts.split(batch_size):
                weights = probabilities(_logits(model, batch, batch_size), temperature, top_k)
                sampler.add(to_buffer(weights))
        texts = sampler.texts("".join(vocabulary._stand_ins[token] for token in beginning))
        yield texts if vocabulary.tokens_are == "characters" else [vocabulary._text_of(text) for text in texts]
        drawn += count
        count *= 2


def probabilities(logits: Tensor, temperature: float, top_k: int | None) -> Tensor:
    """softmax(logits / temperature) over the `top_k` largest of each row of `logits` (N, V), 0 elsewhere: float64, CPU.

    Temperature 0 is its limit, all for the first one of the largest.

    Raises:
        ValueError: a row has NaN, +inf, or nothing but -inf.
    """
    logits = logits.to("cpu", torch.float64)
    highest = logits.max(dim=1, keepdim=True).values
    if not highest.isfinite().all():
        raise ValueError("the model's logits are not finite: was it trained to a finite loss?")
    if temperature == 0.0:
        return torch.zeros_like(logits).scatter_(1, logits.argmax(dim=1, keepdim=True), 1.0)
    weights = ((logits - highest) / temperature).exp()
    if top_k is not None and top_k < logits.shape[1]:
        ranked = logits.argsort(dim=1, descending=True, stable=True)
        weights.scatter_(1, ranked[:, top_k:], 0.0)
    return weights / weights.sum(dim=1, keepdim=True)


def _logits(model: LanguageModel, contexts: Tensor, batch_size: int) -> Tensor:
    """The logits (N, V) of N <= batch_size contexts (N, T).

    The model always sees `batch_size` of them: a matrix product may round differently with another number of rows, and
    what follows a context must not depend on which others are asked for.
    """
    batch = contexts.new_zeros(batch_size, contexts.shape[1])
    batch[: len(contexts)] = contexts
    with torch.no_grad(), _one_thread():
        logits: Tensor = model(batch.to(model.device))
    return logits[: len(contexts)]


def _check(
    model: LanguageModel,
    vocabulary: Vocabulary,
    n: int,
    temperature: float,
    top_k: int | None,
    prefix: str,
    seed: int | None,
    max_length: int,
    stop: bool,
) -> None:
    check_type("model", model, LanguageModel)
    check_type("vocabulary", vocabulary, Vocabulary)
    check_type("prefix", prefix, str)
    check_type("stop", stop, bool)
    if model.vocab_size != len(vocabulary):
        raise ValueError(
            f"vocabulary must have the model's {model.vocab_size} {vocabulary.tokens_are}, got {len(vocabulary)}"
        )
    check("n", n)
    check("temperature", temperature)
    check("top_k", top_k, optional=True)
    check("seed", seed, optional=True)
    check("max_length", max_length)
    try:
        beginning = vocabulary.encode(prefix)
    except ValueError as error:
        raise ValueError(f"prefix{str(error).removeprefix('text').partition(' of ')[0]}") from None
    if stop and vocabulary.boundary in beginning.tolist():
        boundary = vocabulary.symbols[vocabulary.boundary]
        where = f"prefix[{prefix.index(boundary)}] = {boundary!r}" if boundary in prefix else "prefix has what"
        raise ValueError(f"{where} is the boundary, where a text ends")
    if max_length < len(beginning):
        raise ValueError(f"max_length must be at least the length of prefix, {len(beginning)}, got {max_length}")
    if not stop:
        # As tokens, and as what is made of them.
        check_memory(f"a text of max_length={max_length} characters", 8 * max_length)


@contextmanager
def _one_thread() -> Iterator[None]:
    """A matrix product may round differently with another number of threads, and a draw then fall the other way."""
    with _evaluating:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
