"""Fused ops, each an autograd Function over C++ kernels; ``charlm.ops.reference`` has their plain-PyTorch twins."""

from charlm.ops import _flops  # noqa: F401  registers what the ops count as
from charlm.ops._log_probs import LogProbs
from charlm.ops.cross_entropy import cross_entropy
from charlm.ops.embedding_linear import embedding_linear
from charlm.ops.linear_cross_entropy import linear_cross_entropy
from charlm.ops.linear_log_probs import linear_log_probs
from charlm.ops.log_probs import log_probs
from charlm.ops.mlp_cross_entropy import mlp_cross_entropy

__all__ = [
    "LogProbs",
    "cross_entropy",
    "embedding_linear",
    "linear_cross_entropy",
    "linear_log_probs",
    "log_probs",
    "mlp_cross_entropy",
]
