"""Direct preference optimization (Rafailov et al. 2023, arXiv:2305.18290): a model that prefers names ending in "a".

The log-probability of a name is the sum over its characters; that of padding is 0. The logits are never held.

    -of_classes = F.linear(x, weight).log_softmax(-1)
    -of_targets = of_classes.gather(-1, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    -log_probs = of_targets.masked_fill(targets == -1, 0).sum(-1)
    +log_probs = ops.linear_log_probs(x, weight, targets, ignore_index=-1).log_probs.sum(-1)

    python examples/dpo_names.py [--pretraining 200] [--steps 100]
"""

import argparse
import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from makemore_transformer import Transformer, padded_names, train
from torch import Tensor

from charlm import ops

BETA = 0.1


def log_probs(model: Transformer, names: Tensor, targets: Tensor) -> Tensor:
    """Log-probabilities (N,) of names whose characters and ends are `targets` (N, T)."""
    found = ops.linear_log_probs(model.hidden(names), model.lm_head.weight, targets, ignore_index=-1)
    return found.log_probs.sum(-1)


def eager_log_probs(model: Transformer, names: Tensor, targets: Tensor) -> Tensor:
    of_classes = F.linear(model.hidden(names), model.lm_head.weight).log_softmax(-1)
    of_targets = of_classes.gather(-1, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return of_targets.masked_fill(targets == -1, 0).sum(-1)


def reward_margins(
    log_probs: Callable[..., Tensor], policy: Transformer, reference: Transformer, names: Tensor, targets: Tensor
) -> Tensor:
    """By how much the implicit reward of the chosen names, the first half, is above that of the rejected ones."""
    with torch.no_grad():
        reference_log_probs = log_probs(reference, names, targets)
    chosen, rejected = (BETA * (log_probs(policy, names, targets) - reference_log_probs)).chunk(2)
    return chosen - rejected


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pretraining", type=int, default=200)
    parser.add_argument("--steps", type=int, default=100)
    options = parser.parse_args()

    torch.manual_seed(0)
    names, targets, vocab_size = padded_names()
    reference = Transformer(vocab_size, names.shape[1])
    train(reference, names, targets, options.pretraining)
    policy = copy.deepcopy(reference)
    last_character = names.gather(-1, (targets != -1).sum(-1, keepdim=True) - 1).squeeze(-1)
    kinds = [rows.nonzero().squeeze(-1) for rows in (last_character == 1, last_character != 1)]  # 1 is "a"

    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-3)
    for step in range(1, options.steps + 1):
        pairs = torch.cat([rows[torch.randint(len(rows), (32,))] for rows in kinds])
        margins = reward_margins(log_probs, policy, reference, names[pairs], targets[pairs])
        loss = -F.logsigmoid(margins).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step == 1 or step % 20 == 0 or step == options.steps:
            print(f"step {step}  loss {loss.item():.4f}  margin {margins.mean().item():.4f}", end="  ")
            print(f"pairs in order {(margins > 0).float().mean().item():.2f}")

    losses = [
        -F.logsigmoid(reward_margins(function, policy, reference, names[pairs], targets[pairs])).mean()
        for function in (log_probs, eager_log_probs)
    ]
    gradients = [torch.autograd.grad(loss, policy.lm_head.weight)[0] for loss in losses]
    print(f"difference from eager  loss {abs(losses[0] - losses[1]).item():.1e}", end="  ")
    print(f"gradient {(gradients[0] - gradients[1]).abs().max().item():.1e}")


if __name__ == "__main__":
    main()
