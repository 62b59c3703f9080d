"""Distillation from a teacher's top K: a small model learns the K most probable characters and their probabilities.

All other classes are one more outcome, with the rest of the probability, so that both models have distributions of
K + 1 outcomes; the loss is the Kullback-Leibler divergence between them. The student's logits are never held.

    -of_classes = F.linear(x, weight).log_softmax(-1)
    -log_probs = of_classes.gather(-1, ids.clamp(min=0)).masked_fill(ids == -1, 0)
    +log_probs = ops.linear_log_probs(x, weight, ids, ignore_index=-1).log_probs

    python examples/distill_names.py [--pretraining 200] [--steps 200]
"""

import argparse

import torch
import torch.nn.functional as F
from makemore_transformer import Transformer, padded_names, train
from torch import Tensor

from charlm import ops

TOP = 5
LEAST = 1e-6  # of the rest: a sum of probabilities in float32 may be 1, whose rest has no logarithm


def log_probs(model: Transformer, names: Tensor, ids: Tensor) -> Tensor:
    """Log-probabilities (N, T, K) of the `ids` (N, T, K), 0 where these are -1."""
    return ops.linear_log_probs(model.hidden(names), model.lm_head.weight, ids, ignore_index=-1).log_probs


def eager_log_probs(model: Transformer, names: Tensor, ids: Tensor) -> Tensor:
    of_classes = F.linear(model.hidden(names), model.lm_head.weight).log_softmax(-1)
    return of_classes.gather(-1, ids.clamp(min=0)).masked_fill(ids == -1, 0)


@torch.no_grad()
def top(model: Transformer, names: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The K most probable classes at every place, -1 in padding, and their log-probabilities. These could be stored."""
    logits = model.lm_head(model.hidden(names))
    ids = logits.topk(TOP).indices.masked_fill(targets.unsqueeze(-1) == -1, -1)
    return ids, ops.log_probs(logits, ids, ignore_index=-1).log_probs


def with_rest(of_ids: Tensor) -> Tensor:
    """The log-probabilities of K classes (..., K) and of all others together: (..., K + 1)."""
    mass = of_ids.exp().sum(-1, keepdim=True).clamp(max=1 - LEAST)
    return torch.cat([of_ids, torch.log1p(-mass)], -1)


def distillation_loss(of_ids: Tensor, of_teacher: Tensor, rows: Tensor) -> Tensor:
    """Mean divergence from the teacher's distribution, over `rows`; padding, 0 in both, adds exactly 0."""
    return F.kl_div(with_rest(of_ids), with_rest(of_teacher), reduction="sum", log_target=True) / rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pretraining", type=int, default=200)
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()

    torch.manual_seed(0)
    names, targets, vocab_size = padded_names()
    teacher = Transformer(vocab_size, names.shape[1])
    train(teacher, names, targets, options.pretraining)
    student = Transformer(vocab_size, names.shape[1], width=16, layers=1)
    optimizer = torch.optim.AdamW(student.parameters(), lr=5e-3)
    for step in range(1, options.steps + 1):
        batch = torch.randint(len(names), (32,))
        ids, of_teacher = top(teacher, names[batch], targets[batch])
        rows = (targets[batch] != -1).sum()
        loss = distillation_loss(log_probs(student, names[batch], ids), of_teacher, rows)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step == 1 or step % 50 == 0 or step == options.steps:
            print(f"step {step}  divergence {loss.item():.4f}")

    losses = [
        distillation_loss(of(student, names[batch], ids), of_teacher, rows) for of in (log_probs, eager_log_probs)
    ]
    gradients = [torch.autograd.grad(loss, student.lm_head.weight)[0] for loss in losses]
    print(f"difference from eager  loss {abs(losses[0] - losses[1]).item():.1e}", end="  ")
    print(f"gradient {(gradients[0] - gradients[1]).abs().max().item():.1e}")


if __name__ == "__main__":
    main()
