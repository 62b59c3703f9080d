"""Models with their examples, trained by eager PyTorch or by the engine: what tests of the engine compare."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from charlm import engine
from charlm.models import MLP, NeuralBigram
from charlm.optimizers import OptimizerOptions, state_names

# AdamW's eps is not tiny, or it would blow the rounding of gradients that are 0 up to a step.
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"optimizer": "sgd"},
    "weight_decay": {"optimizer": "sgd", "weight_decay": 0.01},
    "momentum": {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 1e-3},
    "adamw": {"optimizer": "adamw", "betas": (0.9, 0.98), "eps": 1e-4, "weight_decay": 0.1},
}


@dataclass
class Run:
    """A model, the examples it is trained on, and what the engine is given beside them."""

    model: nn.Module
    contexts: Tensor
    targets: Tensor
    options: dict[str, Any]

    @property
    def parameters(self) -> list[Tensor]:
        return list(self.model.parameters())

    def new_state(self) -> list[Tensor]:
        return [torch.zeros_like(p) for _ in state_names(self.options["options"]) for p in self.parameters]

    def eager(self, batches: Tensor, learning_rates: Tensor) -> Tensor:
        options: OptimizerOptions = self.options["options"]
        decay = {"lr": 0.1, "weight_decay": options.weight_decay}
        optimizer: torch.optim.Optimizer
        if options.optimizer == "adamw":
            optimizer = torch.optim.AdamW(self.parameters, betas=options.betas, eps=options.eps, **decay)
        else:
            optimizer = torch.optim.SGD(self.parameters, momentum=options.momentum, **decay)
        losses = []
        for batch, rate in zip(batches, learning_rates.tolist(), strict=True):
            optimizer.zero_grad()
            loss = self.model.loss(self.contexts[batch], self.targets[batch])
            loss.backward()
            if options.max_grad_norm is not None:
                nn.utils.clip_grad_norm_(self.parameters, options.max_grad_norm)
            optimizer.param_groups[0]["lr"] = rate
            optimizer.step()
            losses.append(loss.detach())
        return torch.stack(losses)

    def counts(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """All examples, as `engine.train_full_steps` takes them: contexts, row_ptr, targets, counts."""
        contexts, index = self.contexts.unique(dim=0, return_inverse=True)
        dense = torch.zeros(len(contexts), int(self.targets.max()) + 1, dtype=torch.int64)
        dense.index_put_((index, self.targets), torch.ones_like(self.targets), accumulate=True)
        row_ptr = torch.cat([torch.zeros(1, dtype=torch.int64), (dense > 0).sum(1).cumsum(0)])
        return contexts, row_ptr, dense.nonzero()[:, 1], dense[dense > 0]

    def fused(self, batches: Tensor, learning_rates: Tensor, state: list[Tensor] | None = None, **more: Any) -> Tensor:
        state = self.new_state() if state is None else state
        examples = (self.contexts, self.targets, batches, learning_rates)
        return engine.train_steps(self.parameters, state, *examples, **self.options, **more)


def make_run(
    shape: tuple[int, ...], dtype: torch.dtype, *, direct: bool = False, softcap: float | None = None, **options: Any
) -> Run:
    """400 examples for an MLP of shape (V, T, D, H, ...), with contexts that repeat; options of the optimizer."""
    vocab_size, length, dim, hidden, *_ = shape
    generator = torch.Generator().manual_seed(1)
    model = MLP(
        vocab_size,
        length,
        dim,
        hidden,
        direct=direct,
        softcap=softcap,
        backend="eager",
        dtype=dtype,
        generator=generator,
    )
    tokens = min(vocab_size, 6) if length > 1 else vocab_size  # few, so that contexts repeat
    contexts = torch.randint(tokens, (400, length), generator=generator)
    contexts[0] = vocab_size - 1
    targets = torch.randint(vocab_size, (400,), generator=generator)
    return Run(model, contexts, targets, {"options": OptimizerOptions(**options), "softcap": softcap})


def make_batches(steps: int, size: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    batches = torch.randint(400, (steps, size), generator=generator)
    return batches, torch.linspace(0.05, 0.01, steps, dtype=torch.float64)


def assert_agrees(first: Run, second: Run, losses: tuple[Tensor, Tensor], tolerance: float) -> None:
    torch.testing.assert_close(losses[0], losses[1], rtol=tolerance, atol=tolerance)
    for one, other in zip(first.parameters, second.parameters, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def make_bigram(vocab_size: int, dtype: torch.dtype, **options: Any) -> Run:
    """400 examples for a bigram of random logits."""
    generator = torch.Generator().manual_seed(5)
    model = NeuralBigram(vocab_size, backend="eager", dtype=dtype)
    nn.init.normal_(model.weight, generator=generator)
    contexts = torch.randint(vocab_size, (400, 1), generator=generator)
    targets = torch.randint(vocab_size, (400,), generator=generator)
    return Run(model, contexts, targets, {"options": OptimizerOptions(**options)})
