"""The ops as their CUDA kernels compute them, in the simulator: functions like those of `charlm.ops`, with gradients.

Each does what the op's binding in csrc/bindings/cuda does, so that tests/cases.py can compare it with the reference.
"""

from __future__ import annotations

from typing import Any

import torch
from simulator import INTEGER_TYPES, STORAGES, Server
from torch import Tensor

from charlm.ops._arguments import reduction_code, softcap_code


class Ops:
    """What tests/cases.py takes for a namespace of ops."""

    def __init__(
        self, server: Server, *, gradient_in_forward: bool = False, chunk_rows: int = 0, large_model: bool = False
    ) -> None:
        """chunk_rows: of linear_cross_entropy; 0: what follows from the shape. large_model: see mlp_cross_entropy."""
        self.server = server
        self.gradient_in_forward = gradient_in_forward
        self.chunk_rows = chunk_rows
        self.large_model = large_model

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
        return _CrossEntropy.apply(input, target, weight, options, self.server, self.gradient_in_forward)

    def embedding_linear(
        self, ids: Tensor, embedding: Tensor, weight: Tensor, bias: Tensor | None = None, *, activation: str = "tanh"
    ) -> Tensor:
        code = ("tanh", "relu", "gelu", "silu", "none").index(activation)
        return _EmbeddingLinear.apply(ids, embedding, weight, bias, code, self)

    def linear_cross_entropy(
        self,
        input: Tensor,
        linear_weight: Tensor,
        target: Tensor,
        *,
        linear_bias: Tensor | None = None,
        weight: Tensor | None = None,
        reduction: str = "mean",
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        softcap: float | None = None,
        z_loss: float = 0.0,
    ) -> Tensor:
        options = {
            "mean": reduction == "mean",
            "ignore_index": ignore_index,
            "label_smoothing": float(label_smoothing),
            "softcap": softcap_code(softcap),
            "z_loss": float(z_loss),
            "class_weight": None if weight is None else weight.to(_compute_dtype(input)).contiguous(),
            "chunk_rows": self.chunk_rows,
        }
        return _LinearCrossEntropy.apply(input, linear_weight, target, linear_bias, reduction, options, self)

    def mlp_cross_entropy(
        self,
        ids: Tensor,
        target: Tensor,
        embedding: Tensor,
        weight1: Tensor,
        bias1: Tensor | None,
        weight2: Tensor,
        bias2: Tensor | None,
        *,
        reduction: str = "mean",
        ignore_index: int = -100,
        softcap: float | None = None,
    ) -> Tensor:
        options = {"ignore_index": ignore_index, "softcap": softcap_code(softcap), "chunk_rows": self.chunk_rows}
        # Small models are computed in float32, large ones as they are stored: csrc/bindings/cuda/mlp_cross_entropy.cpp.
        dtype = embedding.dtype if self.large_model else _compute_dtype(embedding)
        parameters = [p if p is None else p.to(dtype) for p in (embedding, weight1, bias1, weight2, bias2)]
        loss = _MlpCrossEntropy.apply(ids, target, *parameters, reduction, options, self.server)
        return loss.to(embedding.dtype)


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
        row_shape = input.shape[:1] + input.shape[2:] if input.dim() > 1 else torch.Size([])
        outputs = {
            "loss": torch.empty(row_shape if options["reduction"] == 0 else [], dtype=_compute_dtype(input)),
            "lse": torch.empty(2, call["rows"], dtype=_compute_dtype(input)),
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


class _EmbeddingLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        ids: Tensor,
        embedding: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        activation: int,
        ops: Ops,
    ) -> Tensor:
        output = embedding.new_empty(*ids.shape[:-1], weight.shape[0])
        call = {**ids_of(ids), **_contiguous(embedding=embedding, weight=weight, bias=bias), "activation": activation}
        call |= {"vocab_size": embedding.shape[0], "embedding_dim": embedding.shape[1], "hidden_dim": weight.shape[0]}
        ops.projects = torch.empty((), dtype=torch.int64)
        outputs = {"output": output, "projects": ops.projects}
        if embedding.shape[0] > ids.numel():  # less is picked from the table than it has
            outputs["picked_rows"] = embedding.new_empty(ids.numel(), embedding.shape[1])
        ops.server.call("embedding_linear", outputs, **call)
        if "picked_rows" in outputs:
            call["picked_rows"] = outputs["picked_rows"]
            del call["embedding"]
        ctx.save_for_backward(output, *(tensor for tensor in (embedding, weight, bias) if tensor is not None))
        ctx.call, ctx.ops = call, ops
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        output, *parameters = ctx.saved_tensors
        names = ("embedding_gradient", "weight_gradient", "bias_gradient")
        gradients = {
            name: _new(parameter)
            for name, parameter, needed in zip(names, parameters, ctx.needs_input_grad[1:4], strict=False)
            if needed
        }
        outputs = {**gradients, "projects": ctx.ops.projects}
        inputs = {**ctx.call, "output": output, "grad_output": grad_output.contiguous()}
        ctx.ops.server.call("embedding_linear", outputs, **inputs)
        return None, *(gradients.get(name) for name in names), None, None


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        linear_weight: Tensor,
        target: Tensor,
        linear_bias: Tensor | None,
        reduction: str,
        options: dict[str, Any],
        ops: Ops,
    ) -> Tensor:
        call = {**_contiguous(input=input, weight=linear_weight, bias=linear_bias), **options}
        classes, features = linear_weight.shape
        rows = input[..., 0].numel() if features > 0 else input.shape[:-1].numel()
        call |= {"classes": classes, "features": features, "rows": rows}
        if target.is_floating_point():
            call["probabilities"] = target.detach().contiguous()
            call |= _rows_of_classes("probabilities", classes)
        else:
            call["target"] = target.long().contiguous()
        loss = torch.empty(input.shape[:-1] if reduction == "none" else [], dtype=_compute_dtype(input))
        outputs = {
            "row_loss" if reduction == "none" else "total_loss": loss,
            "lse": torch.empty(2, rows, dtype=_compute_dtype(input)),
        }
        # As charlm.ops.linear_cross_entropy decides it.
        needed = dict(zip(_LINEAR_GRADIENTS, ctx.needs_input_grad, strict=False))
        ctx.in_forward = ops.gradient_in_forward and reduction != "none" and not needed["probabilities_gradient"]
        ctx.parameters = {"input_gradient": input, "weight_gradient": linear_weight, "bias_gradient": linear_bias}
        gradients = {}
        if ctx.in_forward:
            gradients = {name: _new(like) for name, like in ctx.parameters.items() if like is not None and needed[name]}
        ops.server.call("linear_cross_entropy", {**outputs, **gradients}, lse_is_known=False, **call)
        ctx.call, ctx.ops, ctx.gradients, ctx.target, ctx.lse = call, ops, gradients, target, outputs["lse"]
        return loss.to(input.dtype)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.in_forward:
            gradients = {name: grad_output * gradient for name, gradient in ctx.gradients.items()}
        else:
            likes = {**ctx.parameters, "probabilities_gradient": ctx.target}
            needed = dict(zip(_LINEAR_GRADIENTS, ctx.needs_input_grad, strict=False))
            gradients = {name: _new(like) for name, like in likes.items() if like is not None and needed[name]}
            call = {**ctx.call, "lse": ctx.lse}
            if "probabilities_gradient" in gradients:
                call |= _rows_of_classes("probabilities_gradient", call["classes"])
            if grad_output.dim() > 0:
                call["row_scale"] = grad_output.to(ctx.lse.dtype).contiguous()
            else:
                call["upstream"] = grad_output.to(ctx.lse.dtype).contiguous()
            ctx.ops.server.call("linear_cross_entropy", gradients, lse_is_known=True, **call)
        return *(gradients.get(name) for name in _LINEAR_GRADIENTS), None, None, None


class _MlpCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        ids: Tensor,
        target: Tensor,
        embedding: Tensor,
        weight1: Tensor,
        bias1: Tensor | None,
        weight2: Tensor,
        bias2: Tensor | None,
        reduction: str,
        options: dict[str, Any],
        server: Server,
    ) -> Tensor:
        parameters = {"embedding": embedding, "weight1": weight1, "bias1": bias1, "weight2": weight2, "bias2": bias2}
        call = {**ids_of(ids), **_contiguous(**parameters), **options, "target": target.long().contiguous()}
        call |= {"vocab_size": embedding.shape[0], "embedding_dim": embedding.shape[1], "hidden_dim": weight1.shape[0]}
        loss = torch.empty(target.shape if reduction == "none" else [], dtype=_compute_dtype(embedding))
        outputs = {"row_loss" if reduction == "none" else "total_loss": loss}
        ctx.gradients = {f"{name}_gradient": None if like is None else _new(like) for name, like in parameters.items()}
        # As charlm.ops.mlp_cross_entropy decides it.
        ctx.in_forward = reduction != "none" and embedding.dtype != torch.float16
        if ctx.in_forward:
            outputs |= {name: gradient for name, gradient in ctx.gradients.items() if gradient is not None}
        server.call("mlp_cross_entropy", outputs, mean=reduction == "mean", has_gradient=ctx.in_forward, **call)
        ctx.call, ctx.server, ctx.reduction, ctx.dtype = call, server, reduction, loss.dtype
        return loss.to(embedding.dtype)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        gradients = [gradient for gradient in ctx.gradients.values() if gradient is not None]
        if ctx.in_forward:
            for gradient in gradients:
                gradient.mul_(grad_output)
        else:
            factors = {"row_scale" if ctx.reduction == "none" else "upstream": grad_output.contiguous().to(ctx.dtype)}
            outputs = {name: gradient for name, gradient in ctx.gradients.items() if gradient is not None}
            mean = ctx.reduction == "mean"
            ctx.server.call("mlp_cross_entropy", outputs, mean=mean, has_gradient=True, **factors, **ctx.call)
        return None, None, *ctx.gradients.values(), None, None, None


_LINEAR_GRADIENTS = ("input_gradient", "weight_gradient", "probabilities_gradient", "bias_gradient")


def _rows_of_classes(name: str, classes: int) -> dict[str, int]:
    strides = {"inner": 1, "outer_stride": classes, "inner_stride": 0, "class_stride": 1}
    return {f"{name}.{key}": value for key, value in strides.items()}


def _new(like: Tensor) -> Tensor:
    return torch.empty(like.shape, dtype=like.dtype)


def _compute_dtype(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def ids_of(ids: Tensor) -> dict[str, Any]:
    """Ids (..., T) as csrc/bindings/embedding_linear_arguments.cpp hands them on: copied if rows have no stride."""
    try:
        rows = ids.view(-1, ids.shape[-1]) if ids.numel() > 0 else ids.reshape(0, ids.shape[-1])
    except RuntimeError:
        rows = ids.contiguous().view(-1, ids.shape[-1])
    return {
        "ids": rows,
        "ids.type": INTEGER_TYPES[ids.dtype],
        "ids.row_stride": rows.stride(0),
        "ids.position_stride": rows.stride(1),
        "rows": rows.shape[0],
        "context_length": rows.shape[1],
    }


def _contiguous(**tensors: Tensor | None) -> dict[str, Any]:
    """Tensors of one floating dtype, and what it is called in a call."""
    found = {name: tensor.detach().contiguous() for name, tensor in tensors.items() if tensor is not None}
    return {"storage": STORAGES[next(iter(found.values())).dtype], **found}


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
    if weight is not None:
        call["class_weight"] = weight.to(_compute_dtype(input)).contiguous()
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
