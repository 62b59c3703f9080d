"""The neural probabilistic language model of Bengio et al. 2003, as the makemore lecture trains it."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from charlm._memory import check_memory
from charlm._rules import check, check_type
from charlm.models.base import LanguageModel

# The gain that keeps the variance of a tanh layer's output near that of its input (`nn.init.calculate_gain("tanh")`).
_TANH_GAIN = 5.0 / 3.0
# Small enough that training starts near the uniform distribution, loss log V.
_OUTPUT_STD = 0.01


class MLP(LanguageModel):
    """Embed T tokens, concatenate, one tanh layer, one output layer.

        x = concat(embedding[context])                                  (T*D,)
        z = weight2 tanh(weight1 x + bias1) + bias2 [+ direct_weight x]   (V,)
        logits = z, or softcap * tanh(z / softcap)

    In the paper's notation y = b + W x + U tanh(d + H x), W = 0 without `direct`. `softcap=1.0` is the lecture slides'
    logits = tanh(W2 h + b2).

    Args:
        vocab_size: V.
        context_length: T.
        embedding_dim: D.
        hidden_dim: H.
        direct: adds the direct connection from the embeddings to the logits.
        softcap: positive bound on the absolute value of the logits, or None.
        backend: "ops" or "eager".
        generator: a CPU generator to draw the initial weights from; None is the global one.
        device, dtype: of the parameters, as in `torch.nn`. The same generator gives the same weights everywhere,
            rounded to `dtype`.

    Parameters: `embedding` (V, D), `weight1` (H, T*D), `bias1` (H,), `weight2` (V, H), `bias2` (V,), and
    `direct_weight` (V, T*D) or None.

    Source: Bengio, Ducharme, Vincent, Jauvin 2003, "A Neural Probabilistic Language Model", JMLR 3, section 2.
    """

    kind = "mlp"

    def __init__(
        self,
        vocab_size: int,
        context_length: int,
        embedding_dim: int,
        hidden_dim: int,
        *,
        direct: bool = False,
        softcap: float | None = None,
        backend: str = "ops",
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(vocab_size, context_length, backend)
        self.embedding_dim = check("embedding_dim", embedding_dim)
        self.hidden_dim = check("hidden_dim", hidden_dim)
        check_type("direct", direct, bool)
        check("softcap", softcap, optional=True)
        self.softcap = None if softcap is None else float(softcap)
        self._check_memory(direct)

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(*shape, device=device, dtype=dtype))

        width = self.context_length * self.embedding_dim
        self.embedding = parameter(self.vocab_size, self.embedding_dim)
        self.weight1 = parameter(self.hidden_dim, width)
        self.bias1 = parameter(self.hidden_dim)
        self.weight2 = parameter(self.vocab_size, self.hidden_dim)
        self.bias2 = parameter(self.vocab_size)
        self.direct_weight = parameter(self.vocab_size, width) if direct else None
        self.reset_parameters(generator)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draws new weights: embedding N(0, 1), weight1 N(0, (5/3)^2 / (T*D)), output weights N(0, 0.01^2), biases 0.

        On the device "meta", where there are no values, nothing is drawn.

        Source: Karpathy, "Neural Networks: Zero to Hero", makemore part 3, after He et al. 2015, arXiv:1502.01852.
        """
        if self.embedding.is_meta:
            return
        scales = [
            (self.embedding, 1.0),
            (self.weight1, _TANH_GAIN / math.sqrt(self.weight1.shape[1])),
            (self.weight2, _OUTPUT_STD),
        ]
        if self.direct_weight is not None:
            scales.append((self.direct_weight, _OUTPUT_STD))
        for weight, std in scales:
            # Drawn in float64 on the CPU, so that a seed means the same weights in every dtype and on every device.
            weight.copy_(torch.randn(weight.shape, generator=generator, dtype=torch.float64, device="cpu") * std)
        self.bias1.zero_()
        self.bias2.zero_()

    def forward(self, contexts: Tensor) -> Tensor:
        logits = self._uncapped_logits(contexts)
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def loss(self, contexts: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
        if self.direct_weight is not None:
            return self._cross_entropy(self._uncapped_logits(contexts), targets, reduction, self.softcap)
        options: dict[str, Any] = {"reduction": reduction, "softcap": self.softcap}
        if targets.is_floating_point():
            hidden = self._first_layer(contexts, self.weight1, self.bias1, "tanh")
            self._check_targets(targets, hidden.shape[:-1])
            expected: Tensor = self._ops.linear_cross_entropy(
                hidden, self.weight2, targets, linear_bias=self.bias2, **options
            )
            return expected
        self._check_contexts(contexts)
        self._check_targets(targets, contexts.shape[:-1])
        parameters = (self.embedding, self.weight1, self.bias1, self.weight2, self.bias2)
        try:
            loss: Tensor = self._ops.mlp_cross_entropy(contexts, targets, *parameters, **options)
        except IndexError:
            self._check_range(contexts=contexts, targets=targets)
            raise
        return loss

    def _check_memory(self, direct: bool) -> None:
        """ValueError where the parameters, and the largest in float64 as it is drawn, are more than memory holds."""
        width = self.context_length * self.embedding_dim
        parameters = self.vocab_size * self.embedding_dim + (width + 1) * self.hidden_dim
        parameters += (self.hidden_dim + 1) * self.vocab_size + (width * self.vocab_size if direct else 0)
        check_memory(
            f"an MLP with context_length={self.context_length}, embedding_dim={self.embedding_dim}, "
            f"hidden_dim={self.hidden_dim}",
            4 * parameters + 8 * self.hidden_dim * max(width, self.vocab_size),
        )

    def config(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "vocab_size": self.vocab_size,
            "context_length": self.context_length,
            "embedding_dim": self.embedding_dim,
            "hidden_dim": self.hidden_dim,
            "direct": self.direct_weight is not None,
            "softcap": self.softcap,
        }

    def _uncapped_logits(self, contexts: Tensor) -> Tensor:
        hidden = self._first_layer(contexts, self.weight1, self.bias1, "tanh")
        logits = F.linear(hidden, self.weight2, self.bias2)
        if self.direct_weight is not None:
            logits = logits + self._first_layer(contexts, self.direct_weight, None, "none")
        return logits

    def _first_layer(self, contexts: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
        self._check_contexts(contexts)
        try:
            layer: Tensor = self._ops.embedding_linear(contexts, self.embedding, weight, bias, activation=activation)
        except IndexError:
            self._check_range(contexts=contexts)
            raise
        return layer
