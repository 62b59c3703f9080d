"""The upstream gradient times a gradient that forward has computed.

A row that does not count has gradient 0, and keeps it whatever comes from upstream: where no row counts, a loss divided
by their number sends back NaN. Nothing here reads a number from a tensor: what traces a backward sees the same
operations whatever the numbers are.
"""

import torch
from torch import Tensor

from charlm.ops import _extension  # noqa: F401  declares the op

SUM = -1  # in the place of a class_dim: a gradient that is a sum over rows
NO_INDEX = -(2**63)  # in the place of an ignore_index: every row counts

_scale_gradient = torch.ops.charlm.scale_gradient_.default


def graph_is_kept() -> bool:
    """Whether the running backward may run again (retain_graph=True), so that saved tensors must stay as they are."""
    return torch.compiler.is_compiling() or torch._C._autograd._get_current_graph_task_keep_graph()


def scale_saved(grad_output: Tensor, saved: Tensor, target: Tensor | None, ignore_index: int, class_dim: int) -> Tensor:
    """grad_output * saved, in the memory of `saved` where nobody reads that again.

    grad_output: (), or one number a row, in the shape of target.
    target: class indices, those that are `ignore_index` in rows that do not count; None where all rows count.
    class_dim: the dimension of `saved` that has the classes, its other dimensions are rows; or SUM.
    """
    if grad_output.ndim == 0 and not graph_is_kept():
        _scale_gradient(saved, grad_output, target, ignore_index, class_dim)
        return saved
    factor = _factor(grad_output, target, ignore_index, class_dim)
    return saved * factor if graph_is_kept() else saved.mul_(factor)


def _factor(scale: Tensor, target: Tensor | None, ignore_index: int, class_dim: int) -> Tensor:
    """The scale, 0 where no row counts, in a shape to multiply a gradient with."""
    if target is None:
        return scale.unsqueeze(class_dim) if scale.ndim > 0 else scale
    counts = target != ignore_index
    if class_dim == SUM:
        return torch.where(counts.any(), scale, 0)
    return torch.where(counts, scale, 0).unsqueeze(class_dim)


def scale_gradient(gradient: Tensor, scale: Tensor, target: Tensor | None, ignore_index: int, class_dim: int) -> None:
    """The op where asking whether the scale is 1 would mean to wait for the device."""
    gradient.mul_(_factor(scale, target, ignore_index, class_dim))


torch.library.impl("charlm::scale_gradient_", "CUDA", scale_gradient)


@torch.library.register_fake("charlm::scale_gradient_")
def _(gradient: Tensor, scale: Tensor, target: Tensor | None, ignore_index: int, class_dim: int) -> None:
    return None
