"""Samples follow the model's distribution, start and end where they should, and depend on the seed alone."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import small_names
import torch
from torch import Tensor

from charlm import MLP, CountBigram, NeuralBigram, Trainer, Vocabulary, sample
from charlm.models import LanguageModel
from charlm.sampler import probabilities

VOCABULARY = Vocabulary("abc")


def bigram(counts: list[list[int]]) -> CountBigram:
    model = CountBigram(len(counts))
    model.counts.copy_(torch.tensor(counts))
    return model


def make_model(kind: str, vocab_size: int) -> LanguageModel:
    generator = torch.Generator().manual_seed(2)
    if kind == "mlp":
        model = MLP(vocab_size, 3, 4, 16, backend="eager", generator=generator)
        with torch.no_grad():
            model.weight2.mul_(100)
        return model
    if kind == "bigram":
        neural = NeuralBigram(vocab_size, backend="eager")
        with torch.no_grad():
            neural.weight.normal_(generator=generator)
        return neural
    return bigram(torch.randint(1, 9, (vocab_size, vocab_size), generator=generator).tolist())


KINDS = ("count-bigram", "bigram", "mlp")


def assert_drawn_from(observed: Tensor, expected: Tensor) -> None:
    """Pearson's chi-squared against the exact probabilities; the limit is six standard deviations of a good draw."""
    possible = expected > 0
    assert not observed[~possible].any()
    expected = observed.sum() * expected[possible]
    statistic = ((observed[possible] - expected) ** 2 / expected).sum().item()
    degrees = int(possible.sum()) - 1
    assert statistic < degrees + 6 * math.sqrt(2 * degrees)


def test_characters_follow_the_bigram_probabilities() -> None:
    model = bigram([[0, 5, 3, 2], [4, 1, 0, 7], [1, 1, 1, 1], [6, 0, 2, 2]])
    names = sample(model, VOCABULARY, 6000, seed=11)
    observed = torch.zeros(4, 4)
    for name in names:
        tokens = [0, *VOCABULARY.encode(name).tolist(), 0]
        for pair in pairwise(tokens):
            observed[pair] += 1
    for row in range(4):
        assert_drawn_from(observed[row], model(torch.tensor([row])).exp())


@pytest.mark.parametrize("kind", KINDS)
def test_first_characters_follow_the_model(kind: str) -> None:
    model = make_model(kind, 4)
    names = sample(model, VOCABULARY, 5000, seed=3, prefix="b")
    observed = torch.bincount(VOCABULARY.encode("".join(name[1:2] or "." for name in names)).long(), minlength=4)
    context = torch.tensor([0, 0, 2])[-model.context_length :]
    with torch.no_grad():
        assert_drawn_from(observed, model(context).double().softmax(dim=0))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("top_k", [None, 1, 3, 6, 100])
def test_probabilities_follow_temperature_and_top_k(temperature: float, top_k: int | None) -> None:
    logits = torch.tensor([0.3, -math.inf, 2.0, 1.0, 1.0, 1.0])
    weights = (logits.double() / temperature).exp()
    if top_k in (1, 3):
        # Of the three equals the first two are kept.
        weights[[0, 3, 4, 5] if top_k == 1 else [0, 5]] = 0.0
    actual = probabilities(logits.repeat(2, 1), temperature, top_k)
    assert actual.dtype == torch.float64
    torch.testing.assert_close(actual, (weights / weights.sum()).repeat(2, 1), rtol=1e-14, atol=0)


def test_extreme_temperatures_and_logits_are_exact() -> None:
    logits = torch.tensor([[1e4, -1e4, 9e3]], dtype=torch.float64)
    for temperature in (0.0, 1e-300, 1.0):
        assert probabilities(logits, temperature, None).tolist() == [[1.0, 0.0, 0.0]]
    assert probabilities(torch.zeros(1, 5), 0.0, None).tolist() == [[1.0, 0.0, 0.0, 0.0, 0.0]]
    assert probabilities(logits, 1e300, None).tolist() == [[1 / 3] * 3]


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_is_the_most_probable_path(kind: str) -> None:
    model = make_model(kind, 4)
    context, expected = [0] * model.context_length, ""
    while len(expected) < 10:
        with torch.no_grad():
            token = int(model(torch.tensor(context)).argmax())
        if token == 0:
            break
        expected += VOCABULARY.characters[token]
        context = [*context[1:], token]
    assert [name[:10] for name in sample(model, VOCABULARY, 3, temperature=0.0)] == [expected] * 3


def test_names_end_at_the_boundary() -> None:
    certain = bigram([[0, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]])
    assert sample(certain, VOCABULARY, 2, seed=0) == ["ab", "ab"]
    assert sample(certain, VOCABULARY, 2, seed=0, max_length=2) == ["ab", "ab"]
    assert sample(certain, VOCABULARY, 1, seed=0, prefix="ccca") == ["cccab"]
    assert sample(certain, VOCABULARY, 1, seed=0, prefix="cab", max_length=3) == ["cab"]
    assert sample(certain, VOCABULARY, 0, seed=0) == []
    assert sample(certain, VOCABULARY, 2, seed=0, max_length=7, stop=False) == ["ab.ab.a"] * 2
    assert sample(certain, VOCABULARY, 1, seed=0, max_length=7, prefix="b.", stop=False) == ["b.ab.ab"]
    empty = bigram([[1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    assert sample(empty, VOCABULARY, 3, seed=0) == ["", "", ""]


def test_a_row_without_counts_is_uniform() -> None:
    nothing_after_c = bigram([[0, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    names = sample(nothing_after_c, VOCABULARY, 2000, seed=1)
    assert {name[0] for name in names} == {"c"}
    second = VOCABULARY.encode("".join(name[1:2] or "." for name in names)).long()
    assert_drawn_from(torch.bincount(second, minlength=4), torch.full((4,), 0.25))


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_determines_the_names_whatever_the_number_of_threads(kind: str, threads: None) -> None:
    characters = Vocabulary("abcdefghijklmnopqrstuvwxyz")
    model = make_model(kind, 27)
    torch.set_num_threads(1)
    names = sample(model, characters, 600, seed=5, temperature=0.8, top_k=20, max_length=30)
    generator_state = torch.get_rng_state()
    torch.set_num_threads(4)
    assert sample(model, characters, 600, seed=5, temperature=0.8, top_k=20, max_length=30) == names
    assert torch.get_num_threads() == 4
    assert torch.equal(torch.get_rng_state(), generator_state)
    assert sample(model, characters, 600, seed=6, temperature=0.8, top_k=20, max_length=30) != names
    assert sample(model, characters, 600, max_length=30) != sample(model, characters, 600, max_length=30)


@pytest.mark.parametrize("kind", KINDS)
def test_a_name_depends_on_its_number_and_the_seed_alone(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    characters = Vocabulary("abcdefghijklmnopqrstuvwxyz")
    model = make_model(kind, 27)
    names = sample(model, characters, 300, seed=5, max_length=12, stop=False)
    assert len(set(names)) > 200
    assert sample(model, characters, 7, seed=5, max_length=12, stop=False) == names[:7]
    # Shorter texts, blocks of fewer texts, and tables for three contexts at a time.
    assert sample(model, characters, 300, seed=5, max_length=2, stop=False) == [name[:2] for name in names]
    monkeypatch.setattr("charlm.sampler._drawing._MAX_TEXTS", 7)
    assert sample(model, characters, 300, seed=5, max_length=12, stop=False) == names
    monkeypatch.setattr("charlm.sampler._drawing._MAX_ENTRIES", 3 * 27)
    assert sample(model, characters, 30, seed=5, max_length=12, stop=False) == names[:30]
    monkeypatch.setattr("charlm.sampler._drawing._MAX_TOKENS", 1)
    assert sample(model, characters, 30, seed=5, max_length=12, stop=False) == names[:30]


def test_the_model_is_asked_once_for_each_context(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[int]] = []

    def record(module: LanguageModel, contexts: Tensor, batch_size: int) -> Tensor:
        asked.extend(contexts.tolist())
        return module(contexts)

    monkeypatch.setattr("charlm.sampler._tables._logits", record)
    names = sample(make_model("mlp", 4), VOCABULARY, 500, seed=1, max_length=9, stop=False)
    met = set()
    for name in names:
        tokens = [0, 0, 0, *VOCABULARY.encode(name).tolist()]
        met |= {tuple(tokens[i : i + 3]) for i in range(9)}
    assert len(asked) == len(met)
    assert set(map(tuple, asked)) == met
    asked.clear()
    monkeypatch.setattr("charlm.sampler._drawing._MAX_ENTRIES", 4 * 5)
    assert sample(make_model("mlp", 4), VOCABULARY, 500, seed=1, max_length=9, stop=False) == names
    assert len(asked) > len(met)


def test_threads_sample_at_the_same_time(threads: None) -> None:
    characters = Vocabulary("abcdefghijklmnopqrstuvwxyz")
    models = [make_model(kind, 27) for kind in KINDS] * 2
    torch.set_num_threads(2)
    expected = [sample(model, characters, 2000, seed=i, max_length=20) for i, model in enumerate(models)]
    with ThreadPoolExecutor(len(models)) as pool:
        jobs = [pool.submit(sample, model, characters, 2000, seed=i, max_length=20) for i, model in enumerate(models)]
        assert [job.result() for job in jobs] == expected
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("seed", [-(1 << 63), -1, (1 << 64) - 1])
def test_every_seed_of_64_bits_is_one(seed: int) -> None:
    model = make_model("mlp", 4)
    names = sample(model, VOCABULARY, 50, seed=seed)
    assert sample(model, VOCABULARY, 50, seed=seed) == names
    assert sample(model, VOCABULARY, 50, seed=seed ^ 1) != names
    assert sample(model, VOCABULARY, 50, seed=seed ^ (1 << 40)) != names


def test_any_characters_are_sampled() -> None:
    wide = Vocabulary("aé中😀")
    model = bigram([[0, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 0, 1], [1, 0, 0, 0, 0]])
    assert sample(model, wide, 2, seed=0) == ["aé中😀"] * 2
    assert sample(model, wide, 2, seed=0, prefix="😀aé") == ["😀aé中😀"] * 2
    assert sample(model, wide, 1, seed=0, max_length=2, temperature=0.0, stop=False) == ["aé"]


def test_a_trained_stream_model_is_sampled_across_lines(tmp_path: Path) -> None:
    dataset = small_names.load(tmp_path, mode="stream")
    model = MLP(len(dataset.vocabulary), 3, 4, 16, backend="eager", generator=torch.Generator().manual_seed(1))
    Trainer(model, dataset, learning_rate=0.2, backend="eager").run(300)
    names = sample(model, dataset.vocabulary, 200, seed=1)
    assert all("\n" not in name for name in names)
    assert 3 < sum(map(len, names)) / 200 < 12
    text = sample(model, dataset.vocabulary, 2, seed=1, stop=False, max_length=400, prefix="ann\n")
    assert [len(piece) for piece in text] == [400, 400]
    assert all(piece.startswith("ann\n") and piece.count("\n") > 20 for piece in text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": -1}, "n must be an integer >= 0, got -1"),
        ({"temperature": -0.1}, "temperature must be a finite number >= 0, got -0.1"),
        ({"temperature": math.nan}, "temperature must be a finite number >= 0, got nan"),
        ({"temperature": math.inf}, "temperature must be a finite number >= 0, got inf"),
        ({"top_k": 0}, "top_k must be a positive integer or None, got 0"),
        ({"prefix": "aé"}, r"prefix\[1\] = 'é' is not in the vocabulary"),
        ({"prefix": "a.b"}, r"prefix\[1\] = '\.' is the boundary, where a text ends"),
        ({"seed": 1 << 64}, "seed must be an integer <= 18446744073709551615 or None, got 18446744073709551616"),
        ({"seed": -(1 << 63) - 1}, "seed must be an integer >= -9223372036854775808 or None, got -9223372036854775809"),
        ({"max_length": 0}, "max_length must be a positive integer or None, got 0"),
        ({"prefix": "abc", "max_length": 2}, "max_length must be at least the length of prefix, 3, got 2"),
        ({"vocabulary": Vocabulary("ab")}, "vocabulary must have the model's 4 characters, got 3"),
    ],
)
def test_bad_arguments_are_named(options: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"model": make_model("bigram", 4), "vocabulary": VOCABULARY, "n": 2, **options}
    with pytest.raises(ValueError, match=message):
        sample(**arguments)


def test_a_model_that_diverged_is_refused() -> None:
    model = make_model("bigram", 4)
    with torch.no_grad():
        next(model.parameters())[0, 1] = math.nan
    with pytest.raises(ValueError, match="logits are not finite"):
        sample(model, VOCABULARY, 1)
