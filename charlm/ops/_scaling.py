"""The upstream gradient times gradients that forward has computed.

A row that does not count has gradient 0, and keeps it whatever comes from upstream: where no row counts, a loss divided
by their number sends back NaN. Nothing here reads a number from a tensor: what traces a backward sees the same
operations whatever the numbers are.
"""

import torch
from torch import Tensor

from charlm.ops import _extension  # noqa: F401  declares the op

SUMS = -1  # in the place of a class_dim: gradients that are all sums over rows

_scale_gradients = torch.ops.charlm.scale_gradients_.default


def graph_is_kept() -> bool:
    """Whether the running backward may run again (retain_graph=True), so that saved tensors must stay as they are."""
    return torch.compiler.is_compiling() or torch._C._autograd._get_current_graph_task_keep_graph()


def scale_saved(
    grad_output: Tensor, saved: list[Tensor], target: Tensor | None, ignore_index: int, class_dim: int
) -> list[Tensor]:
    """grad_output times each of `saved`, in its memory where nobody reads that again.

    Args:
        grad_output: (), or one number a row, in the shape of target.
        saved: gradients; the first has rows, unless class_dim is SUMS, the others are sums over them.
        target: class indices, those that are `ignore_index` in rows that do not count; None where all rows count.
        class_dim: the dimension of the first that has the classes, its other dimensions are rows; or SUMS.
    """
    kept = graph_is_kept()
    if grad_output.ndim == 0 and not kept:
        _scale_gradients(saved, grad_output, target, ignore_index, class_dim)
        return saved
    factors = _factors(saved, grad_output, target, ignore_index, class_dim)
    if kept:
        return [gradient * factor for gradient, factor in zip(saved, factors, strict=True)]
    return [gradient.mul_(factor) for gradient, factor in zip(saved, factors, strict=True)]


def _factors(
    gradients: list[Tensor], scale: Tensor, target: Tensor | None, ignore_index: int, class_dim: int
) -> list[Tensor]:
    """What to multiply each gradient by: the scale, 0 where no row counts."""
    count = len(gradients)
    if target is None:
        return [scale.unsqueeze(class_dim) if scale.ndim > 0 else scale] * count
    _check_memory(target)
    counts = target != ignore_index
    if class_dim != SUMS and gradients[0].ndim == 1:
        counts = counts.view(())  # one row, whose target may be (1,)
    factors = [] if class_dim == SUMS else [torch.where(counts, scale, 0).unsqueeze(class_dim)]
    if len(factors) < count:
        factors += [torch.where(counts.any(), scale, 0)] * (count - len(factors))
    return factors


def _check_memory(target: Tensor) -> None:
    """Raises where the storage was freed since forward: PyTorch's comparison would read it all the same."""
    if torch.compiler.is_compiling() or type(target) is not Tensor or target.numel() == 0:
        return
    last = sum((size - 1) * stride for size, stride in zip(target.shape, target.stride(), strict=True))
    bytes_needed = (target.storage_offset() + last + 1) * target.element_size()
    available = target.untyped_storage().nbytes()
    if available < bytes_needed:
        raise RuntimeError(
            f"target has shape {tuple(target.shape)}, but its storage has {available} bytes, less than that takes: its "
            "data is not allocated"
        )


def scale_gradients(
    gradients: list[Tensor], scale: Tensor, target: Tensor | None, ignore_index: int, class_dim: int
) -> None:
    """The op where asking whether the scale is 1 would mean to wait for the device."""
    factors = _factors(gradients, scale, target, ignore_index, class_dim)
    for gradient, factor in zip(gradients, factors, strict=True):
        gradient.mul_(factor)


torch.library.impl("charlm::scale_gradients_", "CUDA", scale_gradients)


@torch.library.register_fake("charlm::scale_gradients_")
def _(gradients: list[Tensor], scale: Tensor, target: Tensor | None, ignore_index: int, class_dim: int) -> None:
    return None
