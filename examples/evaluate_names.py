"""What a model is worth, in one pass over names that it was not trained on: perplexity, accuracies and mean entropy.

The rank of a target is how many classes are more probable, and -1 in padding. The logits are never held.

    -of_classes = F.linear(x, weight).log_softmax(-1)
    -log_probs = of_classes.gather(-1, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    -in_top5 = (of_classes.topk(5).indices == targets.unsqueeze(-1)).any(-1)
    -entropy = -(of_classes.exp() * of_classes).sum(-1)
    +log_probs, entropy, _, _, rank = ops.linear_log_probs(x, weight, targets, ignore_index=-1)

    python examples/evaluate_names.py [--steps 200]
"""

import argparse

import torch
import torch.nn.functional as F
from makemore_transformer import Transformer, padded_names, train
from torch import Tensor

from charlm import ops

BATCH = 100


def sums(model: Transformer, names: Tensor, targets: Tensor) -> Tensor:
    """Sums over the characters: log-probabilities, how many are predicted, how many among the first five, entropies."""
    found = ops.linear_log_probs(model.hidden(names), model.lm_head.weight, targets, ignore_index=-1)
    in_top5 = (found.rank >= 0) & (found.rank < 5)
    return torch.stack([found.log_probs.sum(), (found.rank == 0).sum(), in_top5.sum(), found.entropy.sum()])


def eager_sums(model: Transformer, names: Tensor, targets: Tensor) -> Tensor:
    counts = targets != -1
    of_classes = F.linear(model.hidden(names), model.lm_head.weight).log_softmax(-1)[counts]
    targets = targets[counts].unsqueeze(-1)
    places = of_classes.topk(5).indices == targets
    entropy = -(of_classes.exp() * of_classes).sum(-1)
    return torch.stack([of_classes.gather(-1, targets).sum(), places[:, 0].sum(), places.sum(), entropy.sum()])


@torch.no_grad()
def evaluate(model: Transformer, names: Tensor, targets: Tensor) -> tuple[Tensor, float]:
    """The sums divided by the number of characters, (4,), and how far what plain PyTorch computes is from these."""
    totals = torch.zeros(2, 4, dtype=torch.float64)
    for batch in zip(names.split(BATCH), targets.split(BATCH), strict=True):
        totals += torch.stack([sums(model, *batch), eager_sums(model, *batch)])
    means, eager_means = totals / (targets != -1).sum()
    return means, (means - eager_means).abs().max().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()

    torch.manual_seed(0)
    names, targets, vocab_size = padded_names()
    order = torch.randperm(len(names))
    held_out, rest = order[:500], order[500:]
    model = Transformer(vocab_size, names.shape[1])
    for steps in (0, options.steps):
        train(model, names[rest], targets[rest], steps)
        (log_prob, accuracy, top5, entropy), difference = evaluate(model, names[held_out], targets[held_out])
        print(f"perplexity {torch.exp(-log_prob).item():.3f}  accuracy {accuracy.item():.4f}", end="  ")
        print(f"top five accuracy {top5.item():.4f}  entropy {entropy.item():.4f}  difference {difference:.1e}")


if __name__ == "__main__":
    main()
