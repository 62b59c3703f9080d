"""What the autograd Functions of several ops share."""

from typing import Any

import torch
from torch import Tensor

_AUTOCAST_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Every attribute on the way to a function is paid for in each call.
_is_any_autocast_enabled = torch._C._is_any_autocast_enabled
_is_grad_enabled = torch.is_grad_enabled
_is_tracing = torch._C._is_tracing
_is_compiling = torch.compiler.is_compiling
_Function = torch.autograd.Function


def check_devices(**tensors: Tensor | None) -> None:
    """Raises ValueError unless all tensors are on the device of the first. For fakes: kernels check for themselves."""
    (first_name, first), *others = [(name, tensor) for name, tensor in tensors.items() if tensor is not None]
    for name, tensor in others:
        if tensor.device != first.device:
            raise ValueError(f"{name} must be on the device of {first_name}, {first.device}, got {tensor.device}")


def needs_gradient(*tensors: Tensor | None) -> bool:
    """Whether autograd would record an op on these tensors; where not, ops skip the Function and its overhead."""
    if _is_grad_enabled():
        for tensor in tensors:  # a generator with any() would cost as much as the rest of the wrapper
            if tensor is not None and tensor.requires_grad:
                return True
    return False


def apply(function: type[torch.autograd.Function], *arguments: Any) -> Any:
    """``function.apply(*arguments)`` of a plain call: outside of the compiler, without the search for torch.func's
    wrappers that costs as much as the rest of it.
    """
    if _is_compiling():
        return function.apply(*arguments)
    if _is_tracing():
        raise RuntimeError(
            "torch.jit.trace cannot write out the gradients of charlm.ops: use torch.export, or trace under "
            "torch.no_grad()"
        )
    return super(_Function, function).apply(*arguments)  # type: ignore[misc]


def autocast_dtype(tensor: Tensor) -> torch.dtype | None:
    """The dtype in which autocast would multiply this tensor; None where it is off or, as for float64, leaves it."""
    if not _is_any_autocast_enabled():  # costs less than a tensor's device
        return None
    device = tensor.device.type
    if not has_autocast(device) or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device) if tensor.dtype in _AUTOCAST_DTYPES else None


def has_autocast(device: str) -> bool:
    """Whether autocast knows this type of device; meta is one that it does not."""
    # torch 2.11 cannot compile the question.
    return device != "meta" if torch.compiler.is_compiling() else torch.amp.is_autocast_available(device)


def cast(dtype: torch.dtype, *tensors: Tensor | None) -> list[Any]:
    """`tensors` as autocast has them in that dtype: integers, float64 and None stay as they are."""
    return [t.to(dtype) if t is not None and t.dtype in _AUTOCAST_DTYPES else t for t in tensors]
