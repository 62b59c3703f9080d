"""The transformer of karpathy/makemore, whose loss head is replaced: names one at a time, padded with ignored targets.

    -loss = F.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1), ignore_index=-1)
    +loss = ops.linear_cross_entropy(x, self.lm_head.weight, targets, ignore_index=-1)

The logits of the second line never exist as a whole. With `--eager` the model trains with the first line.

    python examples/makemore_transformer.py [--steps 200] [--eager]
"""

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from charlm import data, ops


class Block(nn.Module):
    """Attention to what came before, then a layer for every position by itself; each added to its input."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.projection = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.projection(attended.transpose(1, 2).flatten(-2))
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    def __init__(self, vocab_size: int, length: int, width: int = 32, layers: int = 2, *, eager: bool = False) -> None:
        super().__init__()
        self.eager = eager
        self.tokens, self.positions = nn.Embedding(vocab_size, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width, heads=4) for _ in range(layers)), nn.LayerNorm(width))
        self.lm_head = nn.Linear(width, vocab_size, bias=False)

    def hidden(self, names: Tensor) -> Tensor:
        """What the output layer takes: (N, T, width) of `names` (N, T), each place of what is up to it."""
        return self.blocks(self.tokens(names) + self.positions.weight[: names.shape[1]])

    def loss(self, names: Tensor, targets: Tensor) -> Tensor:
        """Mean negative log-likelihood of `targets` (N, T) that are not -1, given `names` (N, T) up to each."""
        x = self.hidden(names)
        if self.eager:
            logits = self.lm_head(x)
            return F.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1), ignore_index=-1)
        return ops.linear_cross_entropy(x, self.lm_head.weight, targets, ignore_index=-1)


def padded_names() -> tuple[Tensor, Tensor, int]:
    """Names (N, T) that start with token 0 and are padded with it, their targets, -1 past the end, and V."""
    lines = data.EMBEDDED_NAMES.read_text().split()
    letters = sorted(set("".join(lines)))
    number = {letter: index + 1 for index, letter in enumerate(letters)}
    length = max(map(len, lines)) + 1
    names = torch.zeros(len(lines), length, dtype=torch.int64)
    targets = torch.full_like(names, -1)
    for row, line in enumerate(lines):
        tokens = torch.tensor([number[letter] for letter in line])
        names[row, 1 : len(line) + 1] = targets[row, : len(line)] = tokens
        targets[row, len(line)] = 0  # the end
    return names, targets, len(letters) + 1


def train(model: Transformer, names: Tensor, targets: Tensor, steps: int) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(1, steps + 1):
        batch = torch.randint(len(names), (32,))
        loss = model.loss(names[batch], targets[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step == 1 or step % 50 == 0 or step == steps:
            print(f"step {step}  loss {loss.item():.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--eager", action="store_true")
    options = parser.parse_args()

    torch.manual_seed(0)
    names, targets, vocab_size = padded_names()
    model = Transformer(vocab_size, names.shape[1], eager=options.eager)
    train(model, names, targets, options.steps)


if __name__ == "__main__":
    main()
