"""A GPT in plain PyTorch, and its training step by each of the losses that it may end in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from charlm import ops
from examples.makemore_transformer import Block


@dataclass(frozen=True)
class Sizes:
    """Of a model and of its batches: each has `batch_size` texts of `length` tokens."""

    vocab_size: int
    layers: int
    width: int
    heads: int
    length: int
    batch_size: int


class Transformer(nn.Module):
    """All but the loss: (N, T) token ids to (N, T, width), which `head` makes the logits of."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.tokens = nn.Embedding(sizes.vocab_size, sizes.width)
        self.positions = nn.Parameter(torch.randn(sizes.length, sizes.width))
        self.blocks = nn.Sequential(*(Block(sizes.width, sizes.heads) for _ in range(sizes.layers)))
        self.norm = nn.LayerNorm(sizes.width)
        self.head = nn.Linear(sizes.width, sizes.vocab_size, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        hidden: Tensor = self.norm(self.blocks(self.tokens(ids) + self.positions))
        return hidden


def _eager(model: Transformer, ids: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(model.head(model(ids)).flatten(0, 1), target.flatten())


def _drop_in(model: Transformer, ids: Tensor, target: Tensor) -> Tensor:
    return ops.cross_entropy(model.head(model(ids)).flatten(0, 1), target.flatten())


def _with_head(model: Transformer, ids: Tensor, target: Tensor) -> Tensor:
    return ops.linear_cross_entropy(model(ids), model.head.weight, target)


# The mean loss of `target` (N, T) after `ids` (N, T). The first is what the others are held to.
LOSSES: dict[str, Callable[[Transformer, Tensor, Tensor], Tensor]] = {
    "F.cross_entropy": _eager,
    "ops.cross_entropy": _drop_in,
    "ops.linear_cross_entropy": _with_head,
}


def training_step(sizes: Sizes, loss: str, dtype: torch.dtype) -> Callable[[], Tensor]:
    """A step of AdamW on one random batch, which returns the loss before it; parameters are in `dtype`.

    The same with every loss: initial weights and batch are those of seed 0.
    """
    torch.manual_seed(0)
    model = Transformer(sizes).to(dtype)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)  # makemore's
    ids, target = torch.randint(sizes.vocab_size, (2, sizes.batch_size, sizes.length))

    def step() -> Tensor:
        optimizer.zero_grad()
        value = LOSSES[loss](model, ids, target)
        value.backward()
        optimizer.step()
        return value.detach()

    return step
