"""The word model of Bengio et al. 2003, "A Neural Probabilistic Language Model": predicts a word from the three before.

Without direct connections the whole network and its loss are one op, `mlp_cross_entropy`; with them (`--direct`, the
term W x of the paper) they are two layers and their loss. The text is this file's own documentation, or FILE.

    python examples/bengio_words.py [FILE] [--steps 200] [--direct]
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from charlm import Vocabulary, ops

CONTEXT, EMBEDDING, HIDDEN = 3, 24, 48


class WordModel(nn.Module):
    def __init__(self, vocab_size: int, *, direct: bool) -> None:
        super().__init__()
        self.embedding = nn.Parameter(0.1 * torch.randn(vocab_size, EMBEDDING))
        self.hidden = nn.Linear(CONTEXT * EMBEDDING, HIDDEN)
        self.output = nn.Linear(HIDDEN, vocab_size)
        self.direct = nn.Parameter(torch.zeros(vocab_size, CONTEXT * EMBEDDING)) if direct else None

    def loss(self, words: Tensor, target: Tensor) -> Tensor:
        """Mean negative log-likelihood of `target` (N,) after `words` (N, 3)."""
        first, last = self.hidden, self.output
        if self.direct is None:
            layers = (self.embedding, first.weight, first.bias, last.weight, last.bias)
            return ops.mlp_cross_entropy(words, target, *layers)
        hidden = ops.embedding_linear(words, self.embedding, first.weight, first.bias)
        shortcut = ops.embedding_linear(words, self.embedding, self.direct, activation="none")
        return ops.cross_entropy(last(hidden) + shortcut, target)

    def eager_loss(self, words: Tensor, target: Tensor) -> Tensor:
        x = F.embedding(words, self.embedding).flatten(-2)
        logits = self.output(torch.tanh(self.hidden(x)))
        return F.cross_entropy(logits if self.direct is None else logits + F.linear(x, self.direct), target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, nargs="?", default=Path(__file__).parents[1] / "README.md")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--direct", action="store_true")
    options = parser.parse_args()

    torch.manual_seed(0)
    text = options.file.read_text(encoding="utf-8").lower()
    vocabulary = Vocabulary.from_text(text, tokens="words")
    words = vocabulary.encode(text).long()
    windows = words.unfold(0, CONTEXT + 1, 1)
    contexts, targets = windows[:, :-1], windows[:, -1]
    model = WordModel(len(vocabulary), direct=options.direct)
    print(f"{len(words)} words, {len(vocabulary)} different ones")
    difference = (model.loss(contexts, targets) - model.eager_loss(contexts, targets)).abs().item()
    print(f"difference from eager  loss {difference:.1e}")

    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for step in range(1, options.steps + 1):
        batch = torch.randint(len(targets), (256,))
        loss = model.loss(contexts[batch], targets[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step == 1 or step % 50 == 0 or step == options.steps:
            print(f"step {step}  loss {loss.item():.4f}")


if __name__ == "__main__":
    main()
