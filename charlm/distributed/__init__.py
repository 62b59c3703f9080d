"""Several processes: one model trained by all of them, and ops whose vocabulary they share."""

from charlm.distributed.processes import ALONE, OtherProcessError, Processes, current, joined
from charlm.distributed.vocab_parallel import vocab_parallel_linear_cross_entropy, vocab_parallel_linear_log_probs

__all__ = [
    "ALONE",
    "OtherProcessError",
    "Processes",
    "current",
    "joined",
    "vocab_parallel_linear_cross_entropy",
    "vocab_parallel_linear_log_probs",
]
