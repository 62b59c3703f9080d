"""What all exporters need of a model: its symbols and its numbers, checked once."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from charlm._buffers import to_buffer
from charlm._rules import check_type
from charlm.models import MLP, CountBigram, LanguageModel, NeuralBigram
from charlm.vocabulary import Vocabulary

TEMPLATES = Path(__file__).with_name("templates")


@dataclass(frozen=True)
class Parts:
    """A model and its vocabulary as an exporter writes them.

    Attributes:
        kind: "count-bigram", "bigram" or "mlp".
        symbols: V strings, what each token is shown as.
        tokens_are: "characters" or "bytes", and texts are tokens without anything between them; or "words".
        boundary: the token that begins and ends a text.
        unknown: the token of what has no token of its own, or None.
        context_length: T.
        tensors: the model's own by name, contiguous, on the CPU: int64 the counts, all others float32, or float64 where
            the model is. Neither rounds what was trained.
        softcap: of an MLP, or None.
        smoothing: of a count bigram, otherwise 0.
    """

    kind: str
    symbols: tuple[str, ...]
    tokens_are: str
    boundary: int
    unknown: int | None
    context_length: int
    tensors: dict[str, Tensor]
    softcap: float | None
    smoothing: float

    @property
    def sizes(self) -> dict[str, int]:
        """V, T, and D and H of an MLP."""
        sizes = {"V": len(self.symbols), "T": self.context_length}
        if self.kind == MLP.kind:
            sizes |= {"D": self.tensors["embedding"].shape[1], "H": self.tensors["bias1"].shape[0]}
        return sizes

    @property
    def spellings(self) -> list[bytes]:
        """What each token is in a text in UTF-8; where tokens are bytes, it is shown as something else."""
        if self.tokens_are == "bytes":
            return [bytes([token]) for token in range(len(self.symbols))]
        return [symbol.encode() for symbol in self.symbols]

    @property
    def is_double(self) -> bool:
        """Whether the weights are float64."""
        return any(tensor.dtype == torch.float64 for tensor in self.tensors.values())


def parts(model: LanguageModel, vocabulary: Vocabulary) -> Parts:
    """What is exported of a model.

    Raises:
        TypeError: the model is of another class, which may compute something else.
        ValueError: the vocabulary has another size, or a weight is NaN or infinite.
    """
    if type(model) not in (CountBigram, NeuralBigram, MLP):
        raise TypeError(f"model must be CountBigram, NeuralBigram or MLP, got {type(model).__name__}")
    check_type("vocabulary", vocabulary, Vocabulary)
    if model.vocab_size != len(vocabulary):
        raise ValueError(f"vocabulary must have the model's {model.vocab_size} tokens, got {len(vocabulary)}")
    return Parts(
        kind=model.kind,
        symbols=vocabulary.symbols,
        tokens_are=vocabulary.tokens_are,
        boundary=vocabulary.boundary,
        unknown=vocabulary.unknown,
        context_length=model.context_length,
        tensors={name: _exact(name, tensor) for name, tensor in model.state_dict().items()},
        softcap=model.softcap if isinstance(model, MLP) else None,
        smoothing=model.smoothing if isinstance(model, CountBigram) else 0.0,
    )


def check_no_words(model_parts: Parts, what: str) -> None:
    """ValueError where a text would have to be split into words, which only a vocabulary itself knows how to."""
    if model_parts.tokens_are == "words":
        raise ValueError(f"{what} needs a vocabulary of characters or bytes, got one of words: export it as onnx")


def little_endian(tensor: Tensor) -> bytes:
    """The bytes of a tensor as files have them, on any machine."""
    if sys.byteorder == "big":
        size = tensor.element_size()
        tensor = tensor.flatten().view(torch.uint8).view(-1, size).flip(1).contiguous()
    return bytes(to_buffer(tensor))


def _exact(name: str, tensor: Tensor) -> Tensor:
    tensor = tensor.detach().cpu().contiguous()
    if not tensor.is_floating_point():
        if (tensor < 0).any():
            raise ValueError(f"the model's {name} has a number below 0")
        return tensor
    if not tensor.isfinite().all():
        raise ValueError(f"the model's {name} is not finite: was it trained to a finite loss?")
    return tensor if tensor.dtype == torch.float64 else tensor.float()
