"""The door through which a call on DTensors leaves for `charlm.distributed.dtensor`.

DTensor turns `__torch_function__` off, so that the ops have to look for it themselves. They ask only where their first
tensor is of another type than `torch.Tensor`: a call on plain tensors pays for that one comparison, and torch without
`torch.distributed` never comes here.
"""

import sys
from typing import Any

from torch import Tensor


def is_dtensor(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor; there is none before torch.distributed.tensor is imported."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def call(op: str, *arguments: Any) -> Tensor:
    """The op of that name, in the dtype that is computed in, for the arguments of its `_call`."""
    from charlm.distributed import dtensor

    result: Tensor = getattr(dtensor, op)(*arguments)
    return result
