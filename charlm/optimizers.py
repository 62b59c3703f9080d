"""The optimizers of the trainer, and their state as named tensors.

A `torch.optim` optimizer holds the state whatever the backend, so that checkpoints and `torch.optim` itself see the
same tensors. Its state is created up front rather than by the first step: then it has one structure from the start.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

OPTIMIZERS = ("sgd", "adamw")


def create(
    model: nn.Module,
    name: str,
    *,
    learning_rate: float,
    momentum: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> torch.optim.Optimizer:
    """An optimizer over all parameters of `model`, its state initialised to zero.

    Args:
        name: "sgd", with `momentum` and `weight_decay` added to the gradient as in `torch.optim.SGD`; or "adamw", with
            `betas`, `eps` and decoupled `weight_decay` as in `torch.optim.AdamW`.

    Source: AdamW: Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization", arXiv:1711.05101.
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"optimizer must be one of {', '.join(OPTIMIZERS)}, got {name!r}")
    if not 0.0 <= momentum < 1.0:
        raise ValueError(f"momentum must be in [0, 1), got {momentum}")
    if name == "adamw" and momentum != 0.0:
        raise ValueError(f"momentum is an option of sgd; adamw has betas, got momentum={momentum}")
    if len(betas) != 2 or not all(0.0 <= beta < 1.0 for beta in betas):
        raise ValueError(f"betas must be two numbers in [0, 1), got {betas}")
    for option, value in (("eps", eps), ("weight_decay", weight_decay)):
        if not (math.isfinite(value) and value >= 0.0):
            raise ValueError(f"{option} must be a finite number >= 0, got {value}")

    if name == "sgd":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(
            model.parameters(), lr=learning_rate, momentum=momentum, weight_decay=weight_decay
        )
        state_names = ["momentum_buffer"] if momentum else []
    else:
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=learning_rate, betas=betas, eps=eps, weight_decay=weight_decay
        )
        state_names = ["exp_avg", "exp_avg_sq"]
    for parameter in model.parameters():
        state = {state_name: torch.zeros_like(parameter) for state_name in state_names}
        if name == "adamw":
            state["step"] = torch.zeros((), dtype=torch.float32, device="cpu")
        optimizer.state[parameter].update(state)
    return optimizer


def named_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state tensors themselves, not copies, under names such as "weight1.exp_avg"."""
    return {
        f"{parameter_name}.{state_name}": value
        for parameter_name, parameter in model.named_parameters()
        for state_name, value in optimizer.state[parameter].items()
    }
