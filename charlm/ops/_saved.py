"""What the ops' Functions keep from forward to backward, and which gradients backward is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_PLAIN = (Tensor, torch.nn.Parameter)
_NOTHING = torch.empty(0, device="cpu")


def copies(*tensors: Tensor | None) -> list[Any]:
    """Copies of what torch would not read again, so that it may be written to before backward; None stays None.

    They are functions of what they are copies of, which second derivatives are taken through.
    """
    if torch.compiler.is_compiling():
        return [None if tensor is None else tensor.clone() for tensor in tensors]
    with torch.enable_grad():
        return [None if tensor is None else tensor.clone() for tensor in tensors]


class Alias:
    """A tensor that is kept for second derivatives alone: that it changed in place is an error only where one is asked
    for.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.data = tensor.data  # has a version of its own, and so passes torch's check of what is saved
        self._counter: Tensor | None = None
        if type(tensor) in _PLAIN:
            # Shares the version with the tensor, its base and its views, and none of their memory.
            self._counter = tensor.detach()
            self._counter.data = _NOTHING if tensor.is_cpu else tensor.new_empty(0)
            self._version = self._counter._version

    def check_version(self, name: str) -> None:
        if self._counter is not None and self._counter._version != self._version:
            raise RuntimeError(
                f"{name} has been modified by an inplace operation: it is at version {self._counter._version}, and a "
                f"second derivative needs version {self._version}"
            )


def wanted_gradients(ctx: Any, tensors: Sequence[Tensor | None]) -> list[bool]:
    """Of which arguments the running backward is to give the gradient: of those that require one, where someone asked.

    tensors: the arguments, in order, or anything that is None where they are.
    """
    if torch.compiler.is_compiling():
        return list(ctx.needs_input_grad[: len(tensors)])
    nodes = iter(ctx.next_functions)  # one for each argument that is a tensor
    return [tensor is not None and _is_asked_for(next(nodes)[0]) for tensor in tensors]


def _is_asked_for(node: Any) -> bool:
    if node is None:
        return False
    try:
        return bool(torch._C._will_engine_execute_node(node))
    except RuntimeError:  # torch.autograd.grad with a leaf, which is what was asked for
        return True
