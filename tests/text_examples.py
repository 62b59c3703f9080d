"""Datasets against lists of their examples, cut out of the text in plain Python."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from charlm import data
from charlm.vocabulary import Vocabulary

Examples = list[tuple[list[int], int]]


def line_examples(lines: Sequence[str], vocabulary: Vocabulary, context_length: int) -> Examples:
    """As in the lecture: the context slides over each line, from boundaries to a boundary."""
    examples = []
    token_of = {character: token for token, character in enumerate(vocabulary.characters)}
    for line in lines:
        context = [vocabulary.boundary] * context_length
        for token in [*(token_of[character] for character in line), vocabulary.boundary]:
            examples.append((context, token))
            context = [*context[1:], token]
    return examples


def stream_examples(text: str, vocabulary: Vocabulary, context_length: int) -> Examples:
    token_of = {character: token for token, character in enumerate(vocabulary.characters)}
    tokens = [token_of[character] for character in text]
    return [(tokens[i : i + context_length], tokens[i + context_length]) for i in range(len(text) - context_length)]


def check_split(split: data.Split, expected: Examples) -> None:
    """Everything that a split offers, against a list of its examples."""
    contexts = [context for context, _ in expected]
    targets = [target for _, target in expected]
    assert len(split) == len(expected)
    assert split.contexts.tolist() == contexts
    assert split.targets.tolist() == targets
    assert split.contexts.dtype == split.targets.dtype == split.tokens.dtype

    chosen = torch.randint(len(expected), (20,))
    batch_contexts, batch_targets = split.batch(chosen)
    assert batch_contexts.tolist() == [contexts[i] for i in chosen]
    assert batch_targets.tolist() == [targets[i] for i in chosen]
    assert batch_contexts.dtype == batch_targets.dtype == split.tokens.dtype

    numbers: dict[tuple[int, ...], int] = {}
    index = [numbers.setdefault(tuple(context), len(numbers)) for context in contexts]
    counts = torch.zeros(len(numbers), split.vocab_size, dtype=torch.int64)
    for number, target in zip(index, targets, strict=True):
        counts[number, target] += 1
    distinct = split.distinct()
    for step in (1, 2, 3):
        sampled, counted = split.distinct(step), split.distinct(step, with_index=False)
        assert sampled.contexts[sampled.index].tolist() == contexts[::step]
        assert len(counted.index) == 0
        assert counted.contexts.equal(sampled.contexts)
        for name in ("row_ptr", "targets", "values"):
            assert getattr(counted.counts, name).equal(getattr(sampled.counts, name))
        assert int(counted.counts.values.sum()) == len(contexts[::step])
    for size in (1, 3, len(expected)):
        found = [(part.contexts.tolist(), part.targets.tolist()) for part in split.parts(size)]
        assert [context for part, _ in found for context in part] == contexts
        assert [target for _, part in found for target in part] == targets
    assert len(distinct) == len(numbers)
    assert distinct.contexts.tolist() == [list(context) for context in numbers]
    assert distinct.contexts.dtype == split.tokens.dtype
    assert distinct.index.tolist() == index
    assert distinct.counts.shape == (len(numbers), split.vocab_size)
    assert torch.equal(distinct.counts[:], counts)
    per_context = (counts > 0).sum(1).tolist()
    assert distinct.counts.row_ptr.tolist() == [sum(per_context[:u]) for u in range(len(numbers) + 1)]
    assert distinct.counts.targets.tolist() == counts.nonzero()[:, 1].tolist()
    assert distinct.counts.values.tolist() == counts[counts > 0].tolist()
    assert distinct.counts.targets.dtype == split.tokens.dtype


def parts(dataset: data.Dataset) -> tuple[Vocabulary, int]:
    return dataset.vocabulary, dataset.context_length


def splits(dataset: data.Dataset) -> list[data.Split]:
    return [dataset.train, dataset.dev, dataset.test, dataset.all]
