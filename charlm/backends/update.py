"""The updates of `charlm.optimizers`, with the numbers that change from step to step in memory of the device.

A step that is captured in a graph reads them there: what it got as numbers of Python would be the same in every replay.
Torch's own captured optimizers read the learning rate in float32 whatever the model's dtype is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from charlm.optimizers import OptimizerOptions


def step_numbers(
    options: OptimizerOptions, learning_rates: Tensor, first_step: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """What `update` multiplies with in each of S steps.

    Args:
        options: of the optimizer.
        learning_rates: (S,) float64 on the CPU.
        first_step: how many steps were done before.
        dtype, device: of the parameters, and of the result.

    Returns:
        (S, 1), the learning rates; for "adamw" (S, 3): by how much decay leaves of a parameter, the learning rate over
        the first bias correction, and 1 / sqrt of the second.

    Raises:
        ValueError: a learning rate, or that over a bias correction, is no number in that dtype.
    """
    rates = learning_rates.double()
    columns = [rates]
    if options.optimizer == "adamw":
        steps = torch.arange(first_step + 1, first_step + 1 + len(rates), dtype=torch.float64, device="cpu")
        first, second = (1.0 - beta**steps for beta in options.betas)
        columns = [1.0 - rates * options.weight_decay, rates / first, second.rsqrt()]
    limits = torch.finfo(dtype)
    for numbers in (rates, columns[1] if options.optimizer == "adamw" else rates):
        magnitudes = numbers.abs()
        bad = (numbers != 0) & ~((magnitudes >= limits.tiny) & (magnitudes <= limits.max))
        if bad.any():
            step = int(bad.nonzero()[0])
            raise ValueError(
                f"learning_rates[{step}] must be between {limits.tiny:g} and {limits.max:g} to be a number in "
                f"{str(dtype).removeprefix('torch.')}, got {float(numbers[step]):g}"
            )
    return torch.stack(columns, dim=1).to(device, dtype)


@torch.no_grad()
def update(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    states: Sequence[Mapping[str, Tensor]],
    numbers: Tensor,
    options: OptimizerOptions,
) -> None:
    """Updates parameters and the state of their optimizer in place, as `torch.optim.SGD` and `AdamW` do.

    Args:
        parameters, gradients: of the same shapes.
        states: of each parameter, by the names of `optimizers.state_names`.
        numbers: (1,) or (3,), a row of `step_numbers`.
        options: of the optimizer.
    """
    if not parameters:
        return
    steps = list(gradients)
    if options.optimizer == "adamw":
        left, step_size, inverse_root = numbers.unbind()
        beta1, beta2 = options.betas
        first, second = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq"))
        torch._foreach_lerp_(first, steps, 1.0 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, steps, steps, 1.0 - beta2)
        roots = torch._foreach_sqrt(second)
        torch._foreach_mul_(roots, inverse_root)
        torch._foreach_add_(roots, options.eps)
        if options.eps == 0.0:  # a parameter that never had a gradient stays, as the engine has it
            torch._foreach_clamp_min_(roots, torch.finfo(numbers.dtype).tiny)
        steps = list(torch._foreach_div(first, roots))
        if options.weight_decay:
            torch._foreach_mul_(list(parameters), left)
    else:
        (step_size,) = numbers.unbind()
        if options.weight_decay:
            steps = list(torch._foreach_add(steps, list(parameters), alpha=options.weight_decay))
        if options.momentum:
            buffers = [state["momentum_buffer"] for state in states]
            torch._foreach_mul_(buffers, options.momentum)
            torch._foreach_add_(buffers, steps)
            steps = buffers
    torch._foreach_sub_(list(parameters), torch._foreach_mul(steps, step_size))
