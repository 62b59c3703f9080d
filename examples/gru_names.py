"""Another model with charlm's data and its output layer and loss: a GRU that invents names.

The two lines that change are in `loss`: one op that never holds the logits, instead of these and `F.cross_entropy`.

    python examples/gru_names.py [--steps 300]
"""

import argparse

import torch
from torch import Tensor, nn

from charlm import data
from charlm.ops import linear_cross_entropy


class GRUNames(nn.Module):
    """Reads a context one character after the other; predicts the character after each of them."""

    def __init__(self, vocab_size: int, hidden_dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, hidden_dim)
        self.gru = nn.GRU(hidden_dim, hidden_dim, batch_first=True)
        self.output = nn.Linear(hidden_dim, vocab_size)

    def loss(self, tokens: Tensor) -> Tensor:
        """Mean negative log-likelihood of tokens[:, 1:] given what precedes them; tokens (N, T + 1)."""
        hidden, _ = self.gru(self.embedding(tokens[:, :-1]))
        # logits = self.output(hidden)
        # return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        return linear_cross_entropy(hidden, self.output.weight, tokens[:, 1:], linear_bias=self.output.bias)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    steps = parser.parse_args().steps

    torch.manual_seed(0)
    dataset = data.load(context_length=16, mode="stream")
    model = GRUNames(len(dataset.vocabulary), hidden_dim=64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for step in range(1, steps + 1):
        contexts, targets = dataset.train.batch(torch.randint(len(dataset.train), (64,)))
        loss = model.loss(torch.cat([contexts, targets.unsqueeze(1)], dim=1).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step == 1 or step % 50 == 0 or step == steps:
            print(f"step {step}  loss {loss.item():.4f}")


if __name__ == "__main__":
    main()
