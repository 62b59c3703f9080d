"""A small GPT on the characters of any text, whose output layer is its embedding: one weight, used at both ends.

Tied or not is no matter to `linear_cross_entropy`: its weight is a tensor, whose gradient adds to the embedding's.

    -logits = F.linear(x, self.tokens.weight)
    -loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    +loss = ops.linear_cross_entropy(x, self.tokens.weight, targets)

    python examples/gpt_tied_head.py [FILE] [--steps 300]
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from charlm import data, ops

LENGTH, WIDTH = 32, 48


class GPT(nn.Module):
    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocab_size, WIDTH), nn.Embedding(LENGTH, WIDTH)
        layer = nn.TransformerEncoderLayer(
            WIDTH, nhead=4, dim_feedforward=4 * WIDTH, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, num_layers=2, norm=nn.LayerNorm(WIDTH), enable_nested_tensor=False)
        nn.init.normal_(self.tokens.weight, std=0.02)  # as the head, it makes the first logits

    def hidden(self, ids: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(LENGTH)
        return self.layers(self.tokens(ids) + self.positions.weight, mask=mask, is_causal=True)

    def loss(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Mean negative log-likelihood of `targets` (N, T), the tokens that follow `ids` (N, T)."""
        return ops.linear_cross_entropy(self.hidden(ids), self.tokens.weight, targets)

    def eager_loss(self, ids: Tensor, targets: Tensor) -> Tensor:
        logits = F.linear(self.hidden(ids), self.tokens.weight)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, nargs="?", default=data.EMBEDDED_NAMES)
    parser.add_argument("--steps", type=int, default=300)
    options = parser.parse_args()

    torch.manual_seed(0)
    text = options.file.read_text(encoding="utf-8")
    characters = sorted(set(text))
    number = {character: index for index, character in enumerate(characters)}
    windows = torch.tensor([number[character] for character in text]).unfold(0, LENGTH + 1, 1)
    model = GPT(len(characters))

    batch = windows[torch.randint(len(windows), (16,))]
    losses = [loss(batch[:, :-1], batch[:, 1:]) for loss in (model.loss, model.eager_loss)]
    gradients = [torch.autograd.grad(loss, model.tokens.weight)[0] for loss in losses]
    print(f"difference from eager  loss {abs(losses[0] - losses[1]).item():.1e}", end="  ")
    print(f"gradient of the tied weight {(gradients[0] - gradients[1]).abs().max().item():.1e}")

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(1, options.steps + 1):
        batch = windows[torch.randint(len(windows), (16,))]
        loss = model.loss(batch[:, :-1], batch[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step == 1 or step % 50 == 0 or step == options.steps:
            print(f"step {step}  loss {loss.item():.4f}")


if __name__ == "__main__":
    main()
