"""The two bigram models: one counts, the other learns the same table by gradient descent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from charlm._memory import check_memory
from charlm._rules import check
from charlm.models.base import LanguageModel

if TYPE_CHECKING:
    from charlm.data import Split

# Examples counted at a time: bounds the memory that `fit` needs, whatever the corpus.
_COUNTED_AT_ONCE = 1 << 20


class _Bigram(LanguageModel):
    """A model that reads the last token of a context."""

    reads_longer_contexts = True

    def __init__(self, vocab_size: int, backend: str) -> None:
        super().__init__(vocab_size, 1, backend)
        check_memory(f"the table of a bigram with vocab_size={vocab_size}", 4 * vocab_size**2)

    def _rows(self, contexts: Tensor, table: Tensor) -> Tensor:
        """The row of `table` (V, V) that belongs to the last token of each context: (..., V)."""
        self._check_contexts(contexts)
        last = contexts[..., -1]
        try:
            return F.embedding(last.long(), table)
        except IndexError:
            self._check_range(contexts=last)
            raise


class CountBigram(_Bigram):
    """p(y | x) = (counts[x, y] + k) / (sum_v counts[x, v] + k V): the maximum-likelihood bigram, add-k smoothed.

    Without smoothing an unseen pair has probability 0, and a loss of infinity. A token that was never followed by
    anything has a uniform row, the limit of k to 0.

    Args:
        vocab_size: V.
        smoothing: k >= 0, added to every count.

    Attributes:
        counts: (V, V) int64, how often token y followed token x; filled by `fit`.

    Source: Jurafsky and Martin, "Speech and Language Processing", chapter 3, sections 3.1 and 3.6.
    """

    kind = "count-bigram"
    counts: Tensor

    def __init__(self, vocab_size: int, smoothing: float = 0.0) -> None:
        super().__init__(vocab_size, backend="eager")
        self.smoothing = float(check("smoothing", smoothing))
        self.register_buffer("counts", torch.zeros(self.vocab_size, self.vocab_size, dtype=torch.int64))

    @torch.no_grad()
    def fit(self, split: Split) -> CountBigram:
        """Replaces the counts by those of the examples in `split`; returns the model."""
        size = self.vocab_size
        counts = torch.zeros(size * size, dtype=torch.int64, device="cpu")
        for start in range(0, len(split), _COUNTED_AT_ONCE):
            indices = torch.arange(start, min(start + _COUNTED_AT_ONCE, len(split)), device="cpu")
            contexts, targets = split.batch(indices)
            last = contexts[:, -1]
            self._check_range(contexts=last, targets=targets)
            pairs = last.long() * size + targets.long()
            counts.scatter_add_(0, pairs, torch.ones_like(pairs))
        self.counts.copy_(counts.view(size, size))
        return self

    def forward(self, contexts: Tensor) -> Tensor:
        """Log-probabilities (..., V) in float64, -inf where the probability is 0."""
        rows = self._rows(contexts, self.counts).double() + self.smoothing
        totals = rows.sum(dim=-1, keepdim=True)
        return torch.where(totals > 0, rows / totals, 1.0 / self.vocab_size).log()

    def loss(self, contexts: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
        """As `LanguageModel.loss`, in float64; infinite where the target has probability 0."""
        return self._cross_entropy(self(contexts), targets, reduction)

    def config(self) -> dict[str, Any]:
        return {"kind": self.kind, "vocab_size": self.vocab_size, "smoothing": self.smoothing}


class NeuralBigram(_Bigram):
    """logits = weight[x]: one learnable (V, V) matrix, whose minimum is the unsmoothed count bigram.

    The loss is convex in the logits, so the matrix starts at zero, the uniform distribution with loss log V.

    Args:
        vocab_size: V.
        backend: whose ops compute, "ops" or "eager".
        device, dtype: of the parameter, as in `torch.nn`.
    """

    kind = "bigram"

    def __init__(
        self,
        vocab_size: int,
        *,
        backend: str = "ops",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(vocab_size, backend)
        self.weight = nn.Parameter(torch.zeros(self.vocab_size, self.vocab_size, device=device, dtype=dtype))

    def forward(self, contexts: Tensor) -> Tensor:
        return self._rows(contexts, self.weight)

    def loss(self, contexts: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
        return self._cross_entropy(self(contexts), targets, reduction)

    def config(self) -> dict[str, Any]:
        return {"kind": self.kind, "vocab_size": self.vocab_size}
