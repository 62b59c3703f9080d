"""How many characters a second does charlm.sample draw, against the lecture's loop of one name and character at a time?

Run: `python -m pytest benchmarks/bench_sampler.py`; `extra_info` has the characters a second.

Every call starts without tables, so it includes asking the model for every context that comes up. The lecture's loop
would take a minute for 100,000 names, so only charlm draws as many.

The floor, per character: read one 16-byte column of a table and write one 4-byte token; per name: write one Python str
of 49 bytes and its characters. No model is in it. The goal is 5 million characters a second on one core once contexts
are known, 0.12 s for 100,000 names.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from benchmarks.ceilings import copy_seconds
from benchmarks.common import measure
from charlm import MLP, CountBigram, Trainer, Vocabulary, data, sample
from charlm.models import LanguageModel

MODELS = ("count-bigram", "mlp")


@cache
def trained(kind: str) -> tuple[LanguageModel, Vocabulary]:
    """A model of the embedded names: the lecture's two, T = 3, D = 10, H = 200 for the MLP."""
    dataset = data.load(context_length=3)
    if kind == "count-bigram":
        return CountBigram(len(dataset.vocabulary)).fit(dataset.train), dataset.vocabulary
    model = MLP(len(dataset.vocabulary), 3, 10, 200, backend="eager", generator=torch.Generator().manual_seed(0))
    Trainer(model, dataset, optimizer="adamw", learning_rate=0.01, batch_size=1024, backend="eager").run(400)
    return model, dataset.vocabulary


@torch.no_grad()
def lecture(model: LanguageModel, vocabulary: Vocabulary, n: int) -> list[str]:
    """The last cell of makemore part 2, in the words of plain PyTorch."""
    generator = torch.Generator().manual_seed(2147483647)
    names = []
    for _ in range(n):
        name = []
        context = [0] * model.context_length
        while True:
            probabilities = F.softmax(model(torch.tensor([context])), dim=1)
            token = int(torch.multinomial(probabilities, num_samples=1, generator=generator).item())
            if token == 0:
                break
            context = [*context[1:], token]
            name.append(vocabulary.characters[token])
        names.append("".join(name))
    return names


def measure_names(benchmark: Any, kind: str, n: int, draw: Callable[[LanguageModel, Vocabulary], list[str]]) -> None:
    model, vocabulary = trained(kind)
    characters = sum(map(len, draw(model, vocabulary)))
    measure(
        benchmark,
        f"sample {n:,} names: {kind}",
        lambda: draw(model, vocabulary),
        floor="per character a table's column read and a token written, per name a str written",
        floor_seconds=copy_seconds((20 * characters + 49 * n + characters) // 2),
    )
    if benchmark.stats is not None:  # None with --benchmark-disable
        benchmark.extra_info["characters_per_second"] = characters / benchmark.stats.stats.median


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("implementation", ["charlm", "eager"])
def test_two_hundred_names(benchmark: Any, kind: str, implementation: str) -> None:
    measure_names(
        benchmark,
        kind,
        200,
        lambda model, vocabulary: (
            sample(model, vocabulary, 200, seed=1) if implementation == "charlm" else lecture(model, vocabulary, 200)
        ),
    )


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("implementation", ["charlm"])
def test_a_hundred_thousand_names(benchmark: Any, kind: str, implementation: str) -> None:
    measure_names(benchmark, kind, 100_000, lambda model, vocabulary: sample(model, vocabulary, 100_000, seed=1))
