"""The faults in the kernels of all ops, by op, and numbered."""

from __future__ import annotations

import planted_cross_entropy
import planted_embedding_linear
import planted_mlp_cross_entropy
from planted import edits_of

PLANTED = {
    "cross_entropy": planted_cross_entropy.PLANTED,
    "embedding_linear": planted_embedding_linear.PLANTED,
    "mlp_cross_entropy": planted_mlp_cross_entropy.PLANTED,
}
FAULTS = [(op, fault) for op, planted in PLANTED.items() for fault in planted.faults]
EDITS = edits_of([fault for _, fault in FAULTS])
