"""The ops as their CUDA kernels compute them, in the simulator: functions like those of `charlm.ops`, with gradients.

Each does what the op's binding in csrc/bindings/cuda does, so that tests/cases.py can compare it with the reference.
"""

from __future__ import annotations

from typing import Any

import torch
from simulator import STORAGES, Server
from torch import Tensor

from charlm.ops._autograd import reduction_code, softcap_code


class Ops:
    """What tests/cases.py takes for a namespace of ops."""

    def __init__(self, server: Server, *, gradient_in_forward: bool = False) -> None:
        self.server = server
        self._gradient_in_forward = gradient_in_forward

    def cross_entropy(
        self,
        input: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        softcap: float | None = None,
        z_loss: float = 0.0,
    ) -> Tensor:
        options = {
            "reduction": reduction_code(reduction),
            "ignore_index": ignore_index,
            "label_smoothing": float(label_smoothing),
            "softcap": softcap_code(softcap),
            "z_loss": float(z_loss),
        }
        return _CrossEntropy.apply(input, target, weight, options, self.server, self._gradient_in_forward)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        target: Tensor,
        weight: Tensor | None,
        options: dict[str, Any],
        server: Server,
        gradient_in_forward: bool,
    ) -> Tensor:
        call = _cross_entropy_arguments(input, target, weight, options)
        dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
        row_shape = input.shape[:1] + input.shape[2:] if input.dim() > 1 else torch.Size([])
        outputs = {
            "loss": torch.empty(row_shape if options["reduction"] == 0 else [], dtype=dtype),
            "lse": torch.empty(2, call["rows"], dtype=dtype),
        }
        ctx.in_forward = gradient_in_forward and not target.requires_grad
        if ctx.in_forward:
            outputs["input_gradient"] = _dense_like(input)
            call |= _class_matrix("input_gradient", outputs["input_gradient"])
        server.call("cross_entropy", outputs, lse_is_known=False, scale=_scale(call, options), **call)
        ctx.save_for_backward(input, target, weight, *outputs.values())
        ctx.options, ctx.server = options, server
        return outputs["loss"].to(input.dtype)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        input, target, weight, _, lse, *gradients = ctx.saved_tensors
        if ctx.in_forward:
            per_row = grad_output.unsqueeze(min(1, input.dim() - 1)) if grad_output.dim() > 0 else grad_output
            return gradients[0] * per_row, *(None,) * 5
        call = _cross_entropy_arguments(input, target, weight, ctx.options)
        outputs = {}
        if ctx.needs_input_grad[0]:
            outputs["input_gradient"] = _dense_like(input)
            call |= _class_matrix("input_gradient", outputs["input_gradient"])
        if ctx.needs_input_grad[1]:
            outputs["probabilities_gradient"] = _dense_like(target)
            call |= _class_matrix("probabilities_gradient", outputs["probabilities_gradient"])
        name = "row_scale" if ctx.options["reduction"] == 0 else "upstream"
        upstream = {name: grad_output.to(lse.dtype).contiguous()}
        call |= {"scale": _scale(call, ctx.options), "lse_is_known": True, "lse": lse, **upstream}
        ctx.server.call("cross_entropy", outputs, **call)
        return outputs.get("input_gradient"), outputs.get("probabilities_gradient"), *(None,) * 4


def _cross_entropy_arguments(
    input: Tensor, target: Tensor, weight: Tensor | None, options: dict[str, Any]
) -> dict[str, Any]:
    classes = input.shape[min(1, input.dim() - 1)]
    call = {
        "storage": STORAGES[input.dtype],
        "classes": classes,
        "rows": input.numel() // classes,
        "mean": options["reduction"] == 1,
        "reduces": options["reduction"] != 0,
        **{name: value for name, value in options.items() if name != "reduction"},
    }
    dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
    if weight is not None:
        call["weight"] = weight.to(dtype).contiguous()
    for name, tensor in {"input": input, "probabilities": target}.items():
        if tensor.is_floating_point():
            call[name] = _with_flat_inner(tensor)
            call |= _class_matrix(name, call[name])
    if not target.is_floating_point():
        call["target"] = target.long().contiguous()
    return call


def _scale(call: dict[str, Any], options: dict[str, Any]) -> float:
    """The part of the gradient's scale that the host knows."""
    by_rows = options["reduction"] == 1 and "probabilities" in call and call["rows"] > 0
    return 1.0 / call["rows"] if by_rows else 1.0


def _class_matrix(name: str, tensor: Tensor) -> dict[str, int]:
    """The strides of an (N, C, d1, ...) tensor as a matrix, as csrc/bindings/cross_entropy_arguments.cpp has them."""
    if tensor.dim() == 1:
        strides = {"inner": 1, "outer_stride": 0, "inner_stride": 0, "class_stride": tensor.stride(0)}
    else:
        inner = [d for d in range(2, tensor.dim()) if tensor.shape[d] != 1]
        strides = {
            "inner": tensor[0, 0].numel() if tensor.numel() > 0 else 1,
            "outer_stride": tensor.stride(0),
            "inner_stride": tensor.stride(inner[-1]) if inner else 0,
            "class_stride": tensor.stride(1),
        }
    return {f"{name}.{key}": value for key, value in strides.items()}


def _with_flat_inner(tensor: Tensor) -> Tensor:
    try:
        tensor.view(*tensor.shape[:2], -1)
    except RuntimeError:
        return tensor.contiguous()
    return tensor


def _dense_like(tensor: Tensor) -> Tensor:
    return _with_flat_inner(torch.empty_like(tensor))
