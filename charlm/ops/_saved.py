"""What the ops' Functions keep from forward to backward, and which gradients backward is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_PLAIN = (Tensor, torch.nn.Parameter)
NOTHING = torch.empty(0, device="cpu")


class Unread:
    """Arguments that backward does not read, or reads a copy of, kept for second derivatives alone.

    As torch does not read them either, they may change in place before backward; that is an error only where a second
    derivative needs them as they were. What is saved as usual is compared with its version at every backward.
    """

    def __init__(self, **tensors: Tensor | None) -> None:
        self._tensors = tensors
        self._versions = [None if t is None or t.is_inference() else t._version for t in tensors.values()]

    def as_they_were(self) -> list[Tensor | None]:
        """The tensors, in order; RuntimeError if one has changed."""
        for (name, tensor), version in zip(self._tensors.items(), self._versions, strict=True):
            if version is not None and tensor is not None:
                check_version(name, tensor, version)
        return list(self._tensors.values())


def check_version(name: str, tensor: Tensor, version: int) -> None:
    """Raises where a tensor has changed since."""
    if tensor._version != version:
        raise RuntimeError(
            f"{name} has been modified by an inplace operation: it is at version {tensor._version}, and a second "
            f"derivative needs version {version}"
        )


class Version:
    """The version of a tensor that is saved as `tensor.data`, which torch does not compare with its own: for second
    derivatives alone, as with `Unread`, but so that its memory is freed with what is saved.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._counter: Tensor | None = None
        if type(tensor) in _PLAIN:
            # Shares the version with the tensor, its base and its views, and none of their memory.
            self._counter = tensor.detach()
            self._counter.data = NOTHING if tensor.is_cpu else tensor.new_empty(0)
            self._version = self._counter._version

    def check(self, name: str) -> None:
        """Raises where the tensor has changed since."""
        if self._counter is not None:
            check_version(name, self._counter, self._version)


def copy_of(tensor: Tensor) -> Tensor:
    """A copy for second derivatives alone, as a function of the tensor, which may change."""
    with torch.enable_grad():
        return tensor.clone()


def wanted_gradients(ctx: Any, arguments: Sequence[Any]) -> list[bool]:
    """Of which arguments the running backward is to give the gradient: of those that require one, where someone asked.

    arguments: in order, or anything that is None where they are.
    """
    if torch.compiler.is_compiling():
        return list(ctx.needs_input_grad[: len(arguments)])
    nodes = iter(ctx.next_functions)  # one for each argument that is a tensor
    return [argument is not None and _is_asked_for(next(nodes)[0]) for argument in arguments]


def _is_asked_for(node: Any) -> bool:
    if node is None:
        return False
    try:
        return bool(torch._C._will_engine_execute_node(node))
    except RuntimeError:  # torch.autograd.grad with a leaf, which is what was asked for
        return True
