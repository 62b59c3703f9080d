"""How many characters a second does charlm.sample draw, against the lecture's loop of one name and character at a time?

And how many names a second, as lines of UTF-8, where they must keep rules?

Run: `python -m pytest benchmarks/bench_sampler.py`; `extra_info` has the characters, or the names, a second.

Every call starts without tables, so it includes asking the model for every context that comes up. The lecture's loop
would take a minute for 100,000 names, so only charlm draws as many.

The floor, per character: read one 12-byte column of a table and write one 4-byte token; per name: write one Python str
of 49 bytes and its characters, or these and a line break. No model is in it, and no draw in vain. The goal is 5 million
characters a second on one core once contexts are known, 0.12 s for 100,000 names, and a million names a second that are
not in the data.
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
from charlm.sampler import stream_lines

MODELS = ("count-bigram", "mlp")

# What names must be.
RULES: dict[str, dict[str, Any]] = {
    "any": {},
    "novel": {"novel": True},
    "novel and unique": {"novel": True, "unique": True},
    "suffix lyn": {"suffix": "lyn"},
    "5 to 8 characters": {"min_length": 5, "max_length": 8},
}


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
        floor_seconds=copy_seconds((16 * characters + 49 * n + characters) // 2),
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


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("implementation", ["charlm"])
def test_a_million_names_that_keep_rules(benchmark: Any, rules: str, implementation: str) -> None:
    model, vocabulary = trained("mlp")
    options = {**RULES[rules]}
    if "novel" in options:
        options["novel"] = data.load(context_length=3)

    def draw() -> list[bytes]:
        return list(stream_lines(model, vocabulary, 1_000_000, seed=1, **options))

    characters = sum(map(len, draw())) - 1_000_000
    measure(
        benchmark,
        f"write 1,000,000 names: mlp, {rules}",
        draw,
        floor="per character a table's column read, a token and a byte written",
        floor_seconds=copy_seconds((17 * characters + 1_000_000) // 2),
    )
    if benchmark.stats is not None:  # None with --benchmark-disable
        benchmark.extra_info["names_per_second"] = 1_000_000 / benchmark.stats.stats.median
