"""The optimizers of the trainer: their options, and their state as named tensors.

A `torch.optim` optimizer holds the state whatever the backend, so that checkpoints and `torch.optim` itself see the
same tensors. Its state is created up front rather than by the first step: then it has one structure from the start.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from charlm._memory import check_memory
from charlm._rules import RULES, check


@dataclass(frozen=True, kw_only=True)
class OptimizerOptions:
    """What an update is made with, from the command line to the engine; the learning rates come from a `Schedule`.

    Whoever has one has options that are in range: they are checked here, as it is made, and nowhere else.

    Args:
        optimizer: "sgd", with `momentum` and `weight_decay` added to the gradient as in `torch.optim.SGD`; or "adamw",
            with `betas`, `eps` and decoupled `weight_decay` as in `torch.optim.AdamW`.
        max_grad_norm: the norm of the whole gradient is clipped to this, as by `nn.utils.clip_grad_norm_`; or None.

    Raises:
        ValueError: an option is out of range, or adamw was given momentum.

    Source: AdamW: Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization", arXiv:1711.05101.
    """

    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    max_grad_norm: float | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            if field.name in RULES:
                check(field.name, getattr(self, field.name), optional=field.default is None)
        if self.optimizer == "adamw" and self.momentum != 0.0:
            raise ValueError(f"momentum is an option of sgd; adamw has betas, got momentum={self.momentum}")
        # Of a frozen instance: integers and numbers of other packages become Python's floats.
        for name in ("momentum", "eps", "weight_decay", "max_grad_norm"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, float(getattr(self, name)))
        object.__setattr__(self, "betas", tuple(map(float, self.betas)))


def state_names(options: OptimizerOptions) -> tuple[str, ...]:
    """The tensors of the shape of a parameter that are kept for each of them, as `torch.optim` calls them."""
    if options.optimizer == "adamw":
        return ("exp_avg", "exp_avg_sq")
    return ("momentum_buffer",) if options.momentum else ()


def create(model: nn.Module, options: OptimizerOptions, learning_rate: float) -> torch.optim.Optimizer:
    """An optimizer over all parameters of `model`, its state initialised to zero."""
    names = state_names(options)
    parameters = [parameter for parameter in model.parameters() if parameter.device.type == "cpu"]
    count, size = (sum(map(of, parameters)) for of in (Tensor.numel, _bytes))
    check_memory(f"training {count:,} parameters with {options.optimizer}", (2 + len(names)) * size)

    rate, decay = float(learning_rate), options.weight_decay
    optimizer: torch.optim.Optimizer
    if options.optimizer == "sgd":
        optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=options.momentum, weight_decay=decay)
    else:
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=rate, betas=options.betas, eps=options.eps, weight_decay=decay
        )
    for parameter in model.parameters():
        state = {name: torch.zeros_like(parameter) for name in names}
        if options.optimizer == "adamw":
            state["step"] = torch.zeros((), dtype=torch.float32, device="cpu")
        optimizer.state[parameter].update(state)
    return optimizer


@torch.no_grad()
def step(optimizer: torch.optim.Optimizer, options: OptimizerOptions) -> None:
    """`optimizer.step()`, on the CPU by the kernel that updates all parameters at once.

    For a small model `torch.optim` itself takes three times as long with SGD, and ten times with AdamW.

    Args:
        optimizer: from `create`.
        options: those that it was created with.
    """
    (group,) = optimizer.param_groups
    updated, gradients, states = [], [], []
    for parameter in group["params"]:
        gradient = parameter.grad
        if gradient is None:
            continue
        if not _has_kernel(parameter, gradient):
            optimizer.step()
            return
        updated.append(parameter)
        gradients.append(gradient)
        states.append(optimizer.state[parameter])
    if options.optimizer == "adamw":
        beta1, beta2 = options.betas
        first, second, steps = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq", "step"))
        adamw(
            updated,
            gradients,
            first,
            second,
            [],
            steps,
            fused=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=options.weight_decay,
            eps=options.eps,
            maximize=False,
        )
    else:
        sgd(
            updated,
            gradients,
            [state.get("momentum_buffer") for state in states],
            fused=True,
            weight_decay=options.weight_decay,
            momentum=options.momentum,
            lr=group["lr"],
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )


def _has_kernel(parameter: Tensor, gradient: Tensor) -> bool:
    """Whether torch's update of all parameters at once is right for this one.

    It walks through memory, and would pair elements that lie in different orders; and SGD's leaves most of a parameter
    in half precision as it is (PyTorch issue 191763, in torch 2.13 and before).
    """
    return (
        parameter.is_cpu
        and parameter.dtype in (torch.float32, torch.float64)
        and gradient.layout is torch.strided
        and parameter.is_contiguous()
        and gradient.is_contiguous()
    )


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def named_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state tensors themselves, not copies, under names such as "weight1.exp_avg"."""
    return {
        f"{parameter_name}.{state_name}": value
        for parameter_name, parameter in model.named_parameters()
        for state_name, value in optimizer.state[parameter].items()
    }
