"""A classifier of rows whose columns are categories, each embedded, after Guo and Berkhahn 2016, arXiv:1604.06737.

Embed, concatenate, dense layer is what the first layer of a language model does, so `embedding_linear` computes it: the
columns share one table, and column t counts its categories from `offsets[t]`.

    -x = torch.cat([embedding(column) for embedding, column in zip(self.embeddings, ids.T)], dim=1)
    -hidden = torch.relu(layer(x))
    +hidden = ops.embedding_linear(ids + self.offsets, self.table, layer.weight, layer.bias, activation="relu")

    python examples/tabular_embeddings.py [--steps 300]
"""

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from charlm import ops

# Categories of the columns, as of a shop's sales: shop, day of the week, month, state, promotion.
CATEGORIES = (40, 7, 12, 16, 2)
CLASSES = 4


class Classifier(nn.Module):
    offsets: Tensor

    def __init__(self, embedding_dim: int = 6, hidden_dim: int = 64) -> None:
        super().__init__()
        sizes = torch.tensor(CATEGORIES)
        self.register_buffer("offsets", sizes.cumsum(0) - sizes)
        self.table = nn.Parameter(torch.randn(int(sizes.sum()), embedding_dim))
        self.linear = nn.Linear(len(CATEGORIES) * embedding_dim, hidden_dim)
        self.output = nn.Linear(hidden_dim, CLASSES)

    def loss(self, ids: Tensor, target: Tensor) -> Tensor:
        layer = self.linear
        hidden = ops.embedding_linear(ids + self.offsets, self.table, layer.weight, layer.bias, activation="relu")
        return ops.cross_entropy(self.output(hidden), target)

    def eager_loss(self, ids: Tensor, target: Tensor) -> Tensor:
        hidden = torch.relu(self.linear(F.embedding(ids + self.offsets, self.table).flatten(-2)))
        return F.cross_entropy(self.output(hidden), target)


def sales(rows: int) -> tuple[Tensor, Tensor]:
    """Synthetic rows (N, 5) and their classes: quarters of a sum of an effect per category, and one of a pair."""
    ids = torch.stack([torch.randint(size, (rows,)) for size in CATEGORIES], dim=1)
    score = sum(torch.randn(size)[column] for size, column in zip(CATEGORIES, ids.T, strict=True))
    score = score + torch.randn(CATEGORIES[1], CATEGORIES[4])[ids[:, 1], ids[:, 4]]
    quarters = score.quantile(torch.tensor([0.25, 0.5, 0.75]))
    return ids, torch.bucketize(score, quarters)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    steps = parser.parse_args().steps

    torch.manual_seed(0)
    ids, target = sales(6000)
    train, test = slice(0, 5000), slice(5000, None)
    model = Classifier()
    parameters = list(model.parameters())
    losses = [loss(ids[:64], target[:64]) for loss in (model.loss, model.eager_loss)]
    gradients = [torch.autograd.grad(loss, parameters) for loss in losses]
    difference = max((a - b).abs().max().item() for a, b in zip(*gradients, strict=True))
    print(f"difference from eager  loss {abs(losses[0] - losses[1]).item():.1e}  gradients {difference:.1e}")

    optimizer = torch.optim.AdamW(parameters, lr=0.01)
    for step in range(1, steps + 1):
        rows = torch.randint(train.stop, (128,))
        loss = model.loss(ids[rows], target[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step == 1 or step % 50 == 0 or step == steps:
            with torch.no_grad():
                print(f"step {step}  test loss {model.loss(ids[test], target[test]).item():.4f}")


if __name__ == "__main__":
    main()
