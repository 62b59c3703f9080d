"""The optimizers of the trainer, and their state as named tensors.

A `torch.optim` optimizer holds the state whatever the backend, so that checkpoints and `torch.optim` itself see the
same tensors. Its state is created up front rather than by the first step: then it has one structure from the start.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from charlm._memory import check_memory
from charlm._rules import check


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
    check("optimizer", name)
    check("momentum", momentum)
    if name == "adamw" and momentum != 0.0:
        raise ValueError(f"momentum is an option of sgd; adamw has betas, got momentum={momentum}")
    check("betas", betas)
    check("eps", eps)
    check("weight_decay", weight_decay)

    state_names = ["exp_avg", "exp_avg_sq"] if name == "adamw" else ["momentum_buffer"] if momentum else []
    rate, decay = float(learning_rate), float(weight_decay)
    parameters = [parameter for parameter in model.parameters() if parameter.device.type == "cpu"]
    count, size = (sum(map(of, parameters)) for of in (Tensor.numel, _bytes))
    check_memory(f"training {count:,} parameters with {name}", (2 + len(state_names)) * size)

    if name == "sgd":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(
            model.parameters(), lr=rate, momentum=momentum, weight_decay=decay
        )
    else:
        optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=float(learning_rate),
            betas=betas,
            eps=float(eps),
            weight_decay=float(weight_decay),
        )
    for parameter in model.parameters():
        state = {state_name: torch.zeros_like(parameter) for state_name in state_names}
        if name == "adamw":
            state["step"] = torch.zeros((), dtype=torch.float32, device="cpu")
        optimizer.state[parameter].update(state)
    return optimizer


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def named_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state tensors themselves, not copies, under names such as "weight1.exp_avg"."""
    return {
        f"{parameter_name}.{state_name}": value
        for parameter_name, parameter in model.named_parameters()
        for state_name, value in optimizer.state[parameter].items()
    }
