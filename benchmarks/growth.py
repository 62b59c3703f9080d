"""How the cost of a training step grows with each size of the model and of the batch.

One size runs over its range while the others stay those of `BASE`; each point is a race of its own between the
backends, in alternating rounds. A curve with a cliff, or one above eager's, is a dispatch decision gone wrong.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.timing import Run, alternate
from charlm import optimizers
from charlm.backends import BACKENDS
from charlm.benchmark import torch_threads
from charlm.data import Split
from charlm.models import MLP
from charlm.optimizers import OptimizerOptions

ROUNDS = 5
_BATCHES = 64  # different ones, over which the steps of a round run
_RATE = 0.01


@dataclass(frozen=True)
class Sizes:
    """Of a training step: B examples of T tokens out of V, embeddings of D, a hidden layer of H."""

    batch_size: int
    context_length: int
    vocab_size: int
    embedding_dim: int
    hidden_dim: int


@dataclass(frozen=True)
class Sweep:
    """One size over its range; what belongs to both ends is measured under one label."""

    label: str
    points: tuple[Sizes, ...]


BASE = Sizes(batch_size=128, context_length=3, vocab_size=27, embedding_dim=10, hidden_dim=200)


def _sweep(label: str, name: str, values: Sequence[int], base: Sizes = BASE) -> Sweep:
    return Sweep(label, tuple(replace(base, **{name: value}) for value in values))


SWEEPS = {
    "batch_size": _sweep(
        "batch size B", "batch_size", (1, 4, 16, 32, 64, 128, 192, 256, 512, 1024, 4096, 16384, 65536, 228146)
    ),
    "hidden_dim": _sweep("hidden layer H", "hidden_dim", (64, 128, 200, 256, 512, 1024, 2048, 4096)),
    "vocab_size": _sweep("vocabulary V", "vocab_size", (27, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)),
    "context_length": _sweep("context T", "context_length", (1, 2, 3, 4, 6, 8, 12, 16)),
    # Bengio et al. 2003, section 4.1: the Brown corpus, model MLP5 without direct connections.
    "word_model": Sweep("word model", (Sizes(256, 5, 16383, 60, 100),)),
}
# Who takes part, and with how many threads.
CONTESTANTS = {"eager": ("eager", 1), "ops": ("ops", 1), "fused": ("fused", 1), "fused, 2 threads": ("fused", 2)}


def token_stream(vocab_size: int, examples: int, context_length: int) -> Split:
    """Tokens of which each follows from the last with some noise: contexts repeat about as often as those of text."""
    generator = torch.Generator().manual_seed(1)
    rank = torch.arange(1, vocab_size + 1, dtype=torch.float64)
    frequent = torch.multinomial(1 / rank, examples + context_length, replacement=True, generator=generator)
    follows = torch.rand(len(frequent), generator=generator) < 0.7
    tokens = frequent.clone()
    tokens[1:][follows[1:]] = (tokens[:-1][follows[1:]] * 31 + 7) % vocab_size
    return Split(tokens.int(), torch.tensor([examples]), context_length, vocab_size)


def measure(sweeps: Mapping[str, Sweep], seconds: float, contestants: Sequence[str] = tuple(CONTESTANTS)) -> list[Any]:
    """The median seconds of a step, by sweep, point and contestant; `seconds` is what a round of one should take."""
    return [
        {
            "sweep": name,
            "label": sweep.label,
            "points": [asdict(sizes) | {"median_s": _race(sizes, seconds, contestants)} for sizes in sweep.points],
        }
        for name, sweep in sweeps.items()
    ]


def _race(sizes: Sizes, seconds: float, contestants: Sequence[str]) -> dict[str, float]:
    split = token_stream(sizes.vocab_size, 200_000, sizes.context_length)
    indices = torch.randint(len(split), (_BATCHES, sizes.batch_size), generator=torch.Generator().manual_seed(2))
    runs = {name: _steps(*CONTESTANTS[name], sizes, split, indices) for name in contestants}
    return {name: statistics.median(times) for name, times in alternate(runs, ROUNDS, seconds).items()}


def _steps(backend: str, threads: int, sizes: Sizes, split: Split, indices: Tensor) -> Run:
    model = MLP(
        sizes.vocab_size,
        sizes.context_length,
        sizes.embedding_dim,
        sizes.hidden_dim,
        generator=torch.Generator().manual_seed(3),
    )
    options = OptimizerOptions()
    runner = BACKENDS[backend](model, optimizers.create(model, options, _RATE), split, options)

    def run(steps: int) -> None:
        with torch_threads(threads):
            for first in range(0, steps, _BATCHES):
                count = min(_BATCHES, steps - first)
                runner.run(indices[:count], torch.full((count,), _RATE, dtype=torch.float64))

    return run


def draw(growth: Sequence[dict[str, Any]], path: Path) -> None:
    """The curves of all sweeps with more than one point, as a picture."""
    from matplotlib.figure import Figure

    curves = [sweep for sweep in growth if len(sweep["points"]) > 1]
    figure = Figure(figsize=(5 * len(curves), 4), layout="constrained")
    for axes, sweep in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves, strict=True):
        for name in sweep["points"][0]["median_s"]:
            axes.plot(
                [point[sweep["sweep"]] for point in sweep["points"]],
                [point["median_s"][name] * 1e6 for point in sweep["points"]],
                marker=".",
                label=name,
            )
        axes.set(xscale="log", yscale="log", xlabel=sweep["label"], ylabel="µs per step")
        axes.grid(alpha=0.3, which="both")
        axes.legend()
    figure.savefig(path, dpi=110)
