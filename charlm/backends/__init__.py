"""What executes training steps. A backend is one entry in `BACKENDS`; the trainer knows nothing else about it.

Every backend gets the same batches and learning rates and updates the same parameters and optimizer state in place.
Of several processes each computes the gradient of its part of a batch, and all make the same update with the sum.
"""

from __future__ import annotations

import torch

from charlm.backends.base import Backend, why_no_kernels
from charlm.backends.eager import CompileBackend, EagerBackend, OpsBackend
from charlm.backends.fused import FusedBackend
from charlm.backends.together import run_together
from charlm.distributed import Processes
from charlm.models import LanguageModel, engine_parameters

__all__ = [
    "BACKENDS",
    "Backend",
    "CompileBackend",
    "EagerBackend",
    "FusedBackend",
    "OpsBackend",
    "default_backend",
    "run_together",
    "why_no_kernels",
]

BACKENDS: dict[str, type[Backend]] = {
    "eager": EagerBackend,
    "compile": CompileBackend,
    "ops": OpsBackend,
    "fused": FusedBackend,
}


def default_backend(model: LanguageModel, processes: Processes) -> str:
    """The name of the fastest backend that takes the model where it is."""
    if why_no_kernels(model.device) is not None:
        return "eager"
    parameters = engine_parameters(model)
    known = parameters is not None and all(
        parameter.dtype in (torch.float32, torch.float64) and parameter.requires_grad for parameter in parameters
    )
    return "fused" if known and processes.size == 1 else "ops"
