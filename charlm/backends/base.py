"""What a backend is, and on which devices there are kernels for one."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from charlm.data import Split
from charlm.distributed import ALONE, Processes
from charlm.models import LanguageModel
from charlm.ops._extension import _C
from charlm.optimizers import OptimizerOptions


class Backend(Protocol):
    """Runs training steps.

    Args:
        model: its parameters are updated in place.
        optimizer: `torch.optim.SGD` or `AdamW` with initialised state, which is updated in place.
        split: the training examples.
        options: those that the optimizer was created with.
        processes: those that train the model together.

    Attributes:
        model: as this backend computes it; its parameters are those of the model that was given, which stays as it is.
    """

    model: LanguageModel

    def __init__(
        self,
        model: LanguageModel,
        optimizer: torch.optim.Optimizer,
        split: Split,
        options: OptimizerOptions,
        processes: Processes = ALONE,
    ) -> None: ...

    def run(self, batch_indices: Tensor | None, learning_rates: Tensor) -> Tensor:
        """S steps, one after the other.

        Args:
            batch_indices: (S, B) int64 on the CPU, the examples of every step, the same in all processes; None takes
                the whole split each time.
            learning_rates: (S,) float64 on the CPU.

        Returns:
            The mean loss of every step's batch before its update: (S,) in the model's dtype, on its device.
        """
        ...


def why_no_kernels(device: torch.device) -> str | None:
    """Why `charlm.ops` cannot compute on a device, and what to do, in one sentence; None where they can.

    The first time it is asked of a GPU, code is loaded there.
    """
    if device.type == "cpu":
        return None
    if device.type == "cuda":
        return _C.why_no_kernels(torch.cuda.current_device() if device.index is None else device.index)
    return f"charlm has no kernels for {device}; backend 'eager', which is plain PyTorch, works there"
