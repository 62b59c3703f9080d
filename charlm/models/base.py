"""What every language model of charlm has in common."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from charlm import ops
from charlm._rules import check
from charlm.ops import reference

if TYPE_CHECKING:
    from typing_extensions import Self

_BACKENDS = ("eager", "ops")
IGNORED = -100  # the target of an example that counts for nothing


class LanguageModel(nn.Module):
    """A model of p(next token | last T tokens).

    Calling it gives logits: integer contexts (..., T) of any dtype and strides to (..., V).

    Attributes:
        kind: the model's name in a configuration.
        vocab_size: V, the number of tokens and classes.
        context_length: T, the number of tokens the model reads.
        reads_longer_contexts: contexts may have more than T tokens, of which the model reads the last T.
        backend: whose ops it computes with: "eager" with `charlm.ops.reference`, which is plain PyTorch, "ops" with
            `charlm.ops`. Who executes training steps is the trainer's matter, which leaves this as it is.
    """

    kind: ClassVar[str]
    reads_longer_contexts: ClassVar[bool] = False

    def __init__(self, vocab_size: int, context_length: int, backend: str) -> None:
        super().__init__()
        self.vocab_size = check("vocab_size", vocab_size)
        self.context_length = check("context_length", context_length)
        self.backend = backend

    @property
    def backend(self) -> str:
        return self._backend

    @backend.setter
    def backend(self, backend: str) -> None:
        if not isinstance(backend, str) or backend not in _BACKENDS:
            raise ValueError(f"backend must be one of {', '.join(_BACKENDS)}, got {backend!r}")
        self._backend = backend

    def computing_with(self, backend: str) -> Self:
        """This model, its parameters included, as it computes with another backend."""
        other = copy.copy(self)
        other.backend = backend
        return other

    @property
    def device(self) -> torch.device:
        """Where the parameters and buffers are."""
        return next(iter(self.state_dict().values())).device

    @property
    def _ops(self) -> Any:
        """The module that holds the ops; both have the same names and signatures."""
        return ops if self._backend == "ops" else reference

    def forward(self, contexts: Tensor) -> Tensor:
        """Logits (..., V) of the token that follows each context of `contexts` (..., T)."""
        raise NotImplementedError

    def loss(self, contexts: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
        """Cross-entropy -log p(target | context) in nats.

        Args:
            contexts: (..., T), any integer dtype, values in [0, V).
            targets: (...) any integer dtype, values in [0, V), or -100 where an example counts for nothing; or class
                probabilities (..., V) in the model's dtype.
            reduction: "mean", "sum" or "none".

        Returns:
            A scalar, or (...) with `reduction="none"`.
        """
        raise NotImplementedError

    def config(self) -> dict[str, Any]:
        """The arguments that build this model again, for `charlm.models.from_config`; JSON types only."""
        raise NotImplementedError

    def _check_contexts(self, contexts: Tensor) -> None:
        if contexts.is_floating_point() or contexts.is_complex() or contexts.dtype == torch.bool:
            raise TypeError(f"contexts must have an integer dtype, got {contexts.dtype}")
        length = contexts.shape[-1] if contexts.dim() > 0 else 0
        if length < self.context_length or (length > self.context_length and not self.reads_longer_contexts):
            at_least = " or more" if self.reads_longer_contexts else ""
            raise ValueError(
                f"contexts must have shape (..., T={self.context_length}{at_least}) for this {type(self).__name__}, "
                f"got {tuple(contexts.shape)}"
            )

    def _cross_entropy(self, logits: Tensor, targets: Tensor, reduction: str, softcap: float | None = None) -> Tensor:
        """Cross-entropy of `logits` (..., V), the classes last, as `loss` returns it."""
        self._check_targets(targets, logits.shape[:-1])
        rows = logits.reshape(-1, self.vocab_size)
        flat = targets.reshape(rows.shape if targets.is_floating_point() else rows.shape[:1])
        try:
            loss = self._ops.cross_entropy(rows, flat, reduction=reduction, softcap=softcap)
        except IndexError:
            self._check_range(targets=targets)
            raise
        return loss.reshape(logits.shape[:-1]) if reduction == "none" else loss

    def _check_targets(self, targets: Tensor, shape: torch.Size) -> None:
        if targets.is_floating_point():
            shape = torch.Size((*shape, self.vocab_size))
        if targets.shape != shape:
            raise ValueError(f"targets must have shape {tuple(shape)} to fit contexts, got {tuple(targets.shape)}")

    def _check_range(self, **tokens: Tensor) -> None:
        """Names the first token that is out of range. For error paths: it reads every value."""
        for name, values in tokens.items():
            if values.is_floating_point():
                continue
            # Comparisons are not defined for all unsigned dtypes.
            wide = values.long()
            is_ignored = (wide == IGNORED) & (name == "targets")
            outside = (((wide < 0) | (wide >= self.vocab_size)) & ~is_ignored).nonzero()
            if len(outside):
                index = outside[0].tolist()
                value = wide[tuple(index)].item()
                raise IndexError(
                    f"{name}{index} = {value} is out of range for a vocabulary of {self.vocab_size} tokens"
                )
