"""How long does a training step take: the engine against eager PyTorch, one thread?

    python benchmarks/bench_engine.py [A B C D]

Eager and fused steps alternate, and the least CPU time of each counts, so that other work on the machine disturbs both
alike. D is the whole data set as one batch, from its distinct contexts.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from charlm import data
from charlm.backends import EagerBackend, FusedBackend
from charlm.models import MLP
from charlm.optimizers import create


@dataclass(frozen=True)
class Workload:
    embedding_dim: int
    hidden_dim: int
    batch_size: int | str
    optimizer: str
    eager_steps: int
    fused_steps: int


WORKLOADS = {
    "A": Workload(10, 200, 32, "sgd", 40, 4000),
    "B": Workload(48, 512, 128, "adamw", 10, 200),
    "C": Workload(10, 200, 4096, "sgd", 4, 100),
    "D": Workload(10, 200, "full", "sgd", 1, 20),
}
ROUNDS = 5


def cpu_seconds(function: Callable[[], object]) -> float:
    start = time.thread_time()
    function()
    return time.thread_time() - start


def eager_full_step(model: MLP, optimizer: torch.optim.Optimizer, contexts: Tensor, targets: Tensor) -> None:
    """What plain PyTorch does with the whole data set: every example by itself."""
    optimizer.zero_grad()
    model.loss(contexts, targets).backward()
    optimizer.step()


def race(name: str, dataset: data.Dataset) -> None:
    workload = WORKLOADS[name]
    split = dataset.all
    rate = 0.1 if workload.optimizer == "sgd" else 7e-4
    best = {"eager": float("inf"), "fused": float("inf")}
    runs = {}
    for backend in (EagerBackend, FusedBackend):
        model = MLP(len(dataset.vocabulary), 3, workload.embedding_dim, workload.hidden_dim)
        options = {"momentum": 0.0, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}
        optimizer = create(model, workload.optimizer, learning_rate=rate, **options)
        runs[backend] = (model, optimizer, backend(model, optimizer, split, None))
    for _ in range(ROUNDS):
        for key, backend, steps in (
            ("eager", EagerBackend, workload.eager_steps),
            ("fused", FusedBackend, workload.fused_steps),
        ):
            model, optimizer, runner = runs[backend]
            rates = torch.full((steps,), rate, dtype=torch.float64)
            if workload.batch_size != "full":
                batches = torch.randint(len(split), (steps, int(workload.batch_size)))
                seconds = cpu_seconds(lambda r=runner, b=batches, s=rates: r.run(b, s))
            elif key == "fused":
                seconds = cpu_seconds(lambda r=runner, s=rates: r.run(None, s))
            else:
                contexts, targets = split.contexts, split.targets
                seconds = cpu_seconds(lambda m=model, o=optimizer, c=contexts, t=targets: eager_full_step(m, o, c, t))
            best[key] = min(best[key], seconds / steps)
    ratio = best["eager"] / best["fused"]
    print(f"{name}: eager {best['eager'] * 1e6:,.1f} us, fused {best['fused'] * 1e6:,.1f} us a step, {ratio:.1f}x")


if __name__ == "__main__":
    torch.set_num_threads(1)
    names = data.load(context_length=3)
    for workload_name in sys.argv[1:] or WORKLOADS:
        race(workload_name, names)
