"""The names that are trained on: the lecture's, whose published figures must come out, and the embedded ones."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest
import torch
from text_examples import line_examples, parts, splits

from charlm import data


@pytest.fixture
def makemore(makemore_names: Path) -> data.Dataset:
    return data.load(makemore_names, split="makemore")


def test_makemore_figures(makemore: data.Dataset) -> None:
    """nn-zero-to-hero, makemore parts 2 to 5."""
    assert [len(split) for split in splits(makemore)] == [182_625, 22_655, 22_866, 228_146]
    assert "".join(makemore.vocabulary.characters) == ".abcdefghijklmnopqrstuvwxyz"
    distinct = makemore.all.distinct()
    assert len(distinct) == 5_686
    assert int(distinct.counts.values.sum()) == 228_146
    assert torch.equal(distinct.contexts[distinct.index], makemore.all.contexts)


@pytest.mark.parametrize(("context_length", "dtype"), [(8, torch.uint8), (9, torch.uint8), (5, torch.int16)])
def test_many_distinct_contexts(makemore_names: Path, context_length: int, dtype: torch.dtype) -> None:
    """Tokens that fill the 64 bits that the index compares at once, and more of them than that."""
    whole = data.load(makemore_names, context_length=context_length).all
    whole = data.Split(whole.tokens.to(dtype), whole.ends, context_length, whole.vocab_size)
    distinct = whole.distinct()
    assert torch.equal(distinct.contexts[distinct.index], whole.contexts)
    assert len(torch.unique(distinct.contexts, dim=0)) == len(distinct)
    assert len(distinct) > 20_000


def test_makemore_examples_are_those_of_the_lecture(makemore: data.Dataset, makemore_names: Path) -> None:
    words = makemore_names.read_text().splitlines()
    random.seed(42)
    random.shuffle(words)
    expected = line_examples(words, *parts(makemore))
    assert makemore.all.contexts.tolist() == [context for context, _ in expected]
    assert makemore.all.targets.tolist() == [target for _, target in expected]
    assert makemore.vocabulary.decode(makemore.train.targets[:15]) == "yuheng.diondre."


def test_makemore_count_bigram(makemore_names: Path) -> None:
    """The mean negative log-likelihood of the bigram of all names, from its distinct contexts."""
    counts = data.load(makemore_names, context_length=1).all.distinct().counts[:].double()
    for smoothing, expected in ((0, 2.4540145), (1, 2.4545768)):
        probabilities = (counts + smoothing) / (counts + smoothing).sum(1, keepdim=True)
        nll = -torch.special.xlogy(counts, probabilities).sum() / counts.sum()
        assert float(nll) == pytest.approx(expected, abs=5e-8)


def test_embedded_names() -> None:
    content = data.EMBEDDED_NAMES.read_bytes()
    names = content.decode("ascii").splitlines()
    assert len(names) == 30_460
    assert names == sorted(set(names))
    assert hashlib.sha256(content).hexdigest() in data.EMBEDDED_NAMES.with_suffix(".md").read_text(encoding="utf-8")
    dataset = data.load()
    assert (dataset.name, dataset.mode, dataset.context_length) == ("names", "lines", 3)
    assert "".join(dataset.vocabulary.characters) == ".abcdefghijklmnopqrstuvwxyz"
    assert len(dataset.train.ends) == 24_368
    assert [len(split) for split in splits(dataset)] == [175_781, 21_898, 21_937, 219_616]
