"""What tests of vocabulary-parallel functions share: who has which classes, and what the ranks found together."""

from __future__ import annotations

from typing import Any

import torch
from cases import Sample, same_bits
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# The classes of each rank: of all three processes, and of the group of the last two.
SLICES = {3: (4, 24, 1), 2: (21, 8)}


def own_part(sample: Sample, rank: int, size: int) -> Sample:
    """The sample with this rank's slices of weight and bias."""
    slices = {
        name: value.split(SLICES[size])[rank]
        for name, value in sample.arguments.items()
        if name.startswith("linear_") and value is not None
    }
    return sample.with_arguments(**slices)


class Watch(TorchDispatchMode):
    """Counts messages between processes, and the elements of the largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0
        self.messages = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        self.messages += function.namespace == "c10d"
        tensors = [tensor for tensor in torch.utils._pytree.tree_leaves(result) if isinstance(tensor, Tensor)]
        self.elements = max([self.elements, *(tensor.numel() for tensor in tensors)])
        return result


def assembled(results: list[dict[str, dict[str, Tensor]]], name: str) -> dict[str, Tensor]:
    """The result and the whole gradients; what every rank has whole must be the same bits on all of them."""
    whole = {}
    for key, value in results[0][name].items():
        of_ranks = [result[name][key] for result in results]
        if "linear_" in key:
            whole[key] = torch.cat(of_ranks)
        else:
            assert all(same_bits(value, other) for other in of_ranks), key
            whole[key] = value
    return whole
