"""Models to export: of every kind, in several dtypes, and with characters that are trouble in some language."""

from __future__ import annotations

import copy
import functools
import math
from typing import Any

import torch

from charlm import MLP, CountBigram, NeuralBigram, Vocabulary
from charlm.models import LanguageModel

# What ends a string, a comment, a script or a line somewhere; characters of one to four bytes, a control character,
# NUL, and two that are about writing from right to left.
HOSTILE = "\0\t \"'\\?/<>&*%$@{}`-!a1é\u0301א\u202e\u2028\uffff中😀\U0010ffff"
LETTERS = Vocabulary("abcdefgh")


def _random(model: LanguageModel) -> LanguageModel:
    """A model with weights for which one character is quite more probable than another."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


def _counted(vocabulary: Vocabulary, smoothing: float) -> CountBigram:
    size = len(vocabulary)
    model = CountBigram(size, smoothing=smoothing)
    counts = torch.randint(0, 9, (size, size), generator=torch.Generator().manual_seed(4))
    counts[1] = 0  # nothing has followed it
    counts[0, 2] = 1 << 40  # more than float32 or 32 bits hold
    counts[0, 3] = 0
    model.counts.copy_(counts)
    return model


@functools.cache
def models() -> dict[str, tuple[LanguageModel, Vocabulary]]:
    any_characters = Vocabulary(HOSTILE, boundary="\n")
    double: Any = {"dtype": torch.float64}
    return {
        "counts": (_counted(LETTERS, 0.0), LETTERS),
        "smoothed counts": (_counted(LETTERS, 0.3), LETTERS),
        "bigram": (_random(NeuralBigram(9)), LETTERS),
        "mlp": (_random(MLP(9, 3, 4, 7)), LETTERS),
        "mlp of one": (_random(MLP(9, 1, 1, 1)), LETTERS),
        "mlp, direct": (_random(MLP(9, 4, 2, 5, direct=True)), LETTERS),
        "mlp, softcap": (_random(MLP(9, 2, 3, 5, softcap=1.5)), LETTERS),
        "mlp, float64": (_random(MLP(9, 2, 3, 5, direct=True, softcap=math.pi, **double)), LETTERS),
        "mlp, bfloat16": (_random(MLP(9, 2, 3, 5, dtype=torch.bfloat16)), LETTERS),
        "any characters": (_random(MLP(len(any_characters), 3, 2, 5)), any_characters),
        "any characters, counted": (_counted(any_characters, 1.0), any_characters),
    }


def logits_in_double(model: LanguageModel, contexts: torch.Tensor) -> torch.Tensor:
    """The logits (N, V) of contexts (N, T) as plain PyTorch has them in float64."""
    with torch.no_grad():
        return copy.deepcopy(model).double().computing_with("eager")(contexts)


def context_of(text: str, model: LanguageModel, vocabulary: Vocabulary) -> torch.Tensor:
    """The context (T,) after a text that has just begun."""
    tokens = [vocabulary.boundary] * model.context_length + vocabulary.encode(text).tolist()
    return torch.tensor(tokens[len(tokens) - model.context_length :])


def of_bytes() -> tuple[LanguageModel, Vocabulary]:
    """A model of bytes, each of which is a token."""
    vocabulary = Vocabulary("".join(map(chr, range(256))), boundary="\n")
    vocabulary.tokens_are = "bytes"
    vocabulary.symbols = tuple(chr(i) if i < 128 else f"<0x{i:02X}>" for i in range(256))
    return _random(MLP(256, 2, 3, 5)), vocabulary


def model_log_probs(model: LanguageModel, context: list[int]) -> list[float]:
    """The log-probabilities of all tokens after a context, in float64."""
    return logits_in_double(model, torch.tensor([context])).log_softmax(1)[0].tolist()
