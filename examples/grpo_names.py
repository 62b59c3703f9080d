"""Group-relative policy optimization (Shao et al. 2024, arXiv:2402.03300): names that end in a vowel are rewarded.

One call gives the log-probabilities of what was sampled, and the entropy, for a bonus on it; both have gradients. The
first letter, which is given, and padding are ignored. The logits are never held.

    -of_classes = F.linear(x, weight).log_softmax(-1)
    -log_probs = of_classes.gather(-1, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1).masked_fill(targets == -1, 0)
    -entropy = -(of_classes.exp() * of_classes).sum(-1)
    +log_probs, entropy, *_ = ops.linear_log_probs(x, weight, targets, ignore_index=-1)

    python examples/grpo_names.py [--pretraining 200] [--steps 40]
"""

import argparse
import copy

import torch
import torch.nn.functional as F
from makemore_transformer import Transformer, padded_names, train
from torch import Tensor

from charlm import ops

GROUPS, GROUP_SIZE = 4, 8
CLIP, KL, ENTROPY = 0.2, 0.01, 0.003  # the range of ratios; factors of two terms of the objective
VOWELS = torch.tensor([1, 5, 9, 15, 21])  # a is 1, as the end of a name is 0


def log_probs(model: Transformer, names: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the `targets` (N, T), and the entropies there."""
    found = ops.linear_log_probs(model.hidden(names), model.lm_head.weight, targets, ignore_index=-1)
    return found.log_probs, found.entropy


def eager_log_probs(model: Transformer, names: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    of_classes = F.linear(model.hidden(names), model.lm_head.weight).log_softmax(-1)
    of_targets = of_classes.gather(-1, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return of_targets.masked_fill(targets == -1, 0), -(of_classes.exp() * of_classes).sum(-1)


def grpo_loss(
    found: tuple[Tensor, Tensor], old: Tensor, reference: Tensor, advantages: Tensor, counts: Tensor
) -> Tensor:
    """The negative objective: `found` for the policy, with `advantages` (N, 1), where a place `counts` (N, T)."""
    now, entropy = found
    ratio = (now - old).exp()
    clipped = torch.minimum(ratio * advantages, ratio.clamp(1 - CLIP, 1 + CLIP) * advantages)
    divergence = (reference - now).exp() - (reference - now) - 1
    terms = clipped - KL * divergence + ENTROPY * entropy
    return -((terms * counts).sum(-1) / counts.sum(-1)).mean()


@torch.no_grad()
def sample(model: Transformer, first: Tensor, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Names (N, T) that go on from their first letters, their targets, -1 but for what is sampled, and rewards (N,)."""
    names = F.pad(first.unsqueeze(-1), (1, length - 2))
    targets = torch.full_like(names, -1)
    goes_on = torch.ones_like(first, dtype=torch.bool)
    last = first
    for place in range(1, length):
        logits = model.lm_head(model.hidden(names[:, : place + 1])[:, -1])
        token = logits.softmax(-1).multinomial(1).squeeze(-1)
        targets[:, place] = token.masked_fill(~goes_on, -1)
        goes_on = goes_on & (token != 0)
        last = torch.where(goes_on, token, last)
        if place + 1 < length:
            names[:, place + 1] = token.masked_fill(~goes_on, 0)
    return names, targets, (torch.isin(last, VOWELS) & ~goes_on).float()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pretraining", type=int, default=200)
    parser.add_argument("--steps", type=int, default=40)
    options = parser.parse_args()

    torch.manual_seed(0)
    names, targets, vocab_size = padded_names()
    reference = Transformer(vocab_size, names.shape[1])
    train(reference, names, targets, options.pretraining)
    policy = copy.deepcopy(reference)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=2e-3)
    for step in range(1, options.steps + 1):
        first = names[torch.randint(len(names), (GROUPS,)), 1].repeat_interleave(GROUP_SIZE)
        *sampled, rewards = sample(policy, first, names.shape[1])
        with torch.no_grad():
            (old, entropy), (of_reference, _) = (log_probs(model, *sampled) for model in (policy, reference))
        groups = rewards.view(GROUPS, GROUP_SIZE)
        advantages = ((groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-4)).view(-1, 1)
        counts = sampled[1] != -1
        for _ in range(2):
            loss = grpo_loss(log_probs(policy, *sampled), old, of_reference, advantages, counts)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if step == 1 or step % 10 == 0 or step == options.steps:
            mean_entropy = (entropy * counts).sum() / counts.sum()
            print(f"step {step}  reward {rewards.mean().item():.3f}  entropy {mean_entropy.item():.3f}")

    losses = [
        grpo_loss(of(policy, *sampled), old, of_reference, advantages, counts) for of in (log_probs, eager_log_probs)
    ]
    gradients = [torch.autograd.grad(loss, policy.lm_head.weight)[0] for loss in losses]
    print(f"difference from eager  loss {abs(losses[0] - losses[1]).item():.1e}", end="  ")
    print(f"gradient {(gradients[0] - gradients[1]).abs().max().item():.1e}")


if __name__ == "__main__":
    main()
