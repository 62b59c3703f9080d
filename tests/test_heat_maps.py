"""The tables of bigrams as heat maps: what is in their cells, at every size of alphabet."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from figures import LARGE, VOCABULARY, tick_labels, titles

from charlm import CountBigram, NeuralBigram, Vocabulary, plots


def test_pairs_and_counts_are_written_into_their_cells() -> None:
    counts = torch.tensor([[0, 9, 99], [1, 2, 3], [4, 5, 6]])
    figure = plots.count_map(counts, VOCABULARY)
    axes, scale = figure.axes
    np.testing.assert_array_equal(axes.images[0].get_array(), counts)
    written = {text.get_position(): text.get_text() for text in axes.texts}
    assert written == {
        **{(0, 0): "..\n0", (1, 0): ".a\n9", (2, 0): ".b\n99"},
        **{(0, 1): "a.\n1", (1, 1): "aa\n2", (2, 1): "ab\n3"},
        **{(0, 2): "b.\n4", (1, 2): "ba\n5", (2, 2): "bb\n6"},
    }
    assert tick_labels(axes) == [label.get_text() for label in axes.get_yticklabels()] == [".", "a", "b"]
    assert titles(figure) == ["Bigram counts: 129 pairs of 3 characters"]
    assert (axes.get_xlabel(), axes.get_ylabel(), scale.get_ylabel()) == ("next character", "character", "count")


def test_probabilities_are_written_as_percentages() -> None:
    model = NeuralBigram(3)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.123, 0.0123, 0.8647], [0.5, 0.4996, 0.0004], [1.0, 1e-9, 1e-9]]).log())
    axes, scale = plots.figures(model, VOCABULARY, [])["probabilities"].axes
    np.testing.assert_allclose(axes.images[0].get_array(), 100.0 * model.weight.softmax(1).detach(), rtol=1e-6)
    assert [text.get_text().split("\n")[1] for text in axes.texts] == [
        *("12%", "1.2%", "86%", "50%", "50%", "0%", "100%", "0%", "0%")
    ]
    assert scale.get_ylabel() == "probability (%)"


def test_dark_cells_have_white_text() -> None:
    axes = plots.count_map(torch.tensor([[0, 0, 0], [0, 0, 5], [0, 0, 100_000]]), VOCABULARY).axes[0]
    assert [text.get_color() for text in axes.texts] == ["black"] * 8 + ["white"]


def test_a_large_alphabet_has_the_numbers_of_its_most_frequent_pairs_in_short() -> None:
    vocabulary = Vocabulary(LARGE.characters[:99])
    counts = torch.zeros(len(vocabulary), len(vocabulary), dtype=torch.int64)
    counts[1, 2], counts[3, 4], counts[5, 6] = 123_456, 7, 1_234_567
    axes = plots.count_map(counts, vocabulary).axes[0]
    first, second, third = (vocabulary.characters[i] + vocabulary.characters[i + 1] for i in (1, 3, 5))
    assert [text.get_text() for text in axes.texts] == [f"{first}\n123k", f"{second}\n7", f"{third}\n1.2M"]
    assert len(axes.get_xticks()) == len(vocabulary)
    dense = torch.arange(len(vocabulary) ** 2).reshape(len(vocabulary), -1)
    assert len(plots.count_map(dense, vocabulary).axes[0].texts) == 1000


def test_a_still_larger_one_has_its_most_frequent_characters() -> None:
    size = len(LARGE)
    counts = torch.zeros(size, size, dtype=torch.int64)
    counts[-39:, -40] = 3
    counts[7, 7] = 883
    counts[range(8, 19), range(8, 19)] = 1
    figure = plots.count_map(counts, LARGE)
    axes = figure.axes[0]
    assert tick_labels(axes) == [LARGE.characters[7], *LARGE.characters[-40:-1]]
    assert titles(figure) == [
        "Bigram counts: 1,011 pairs of 101 characters; the 40 most frequent, with 99% of the pairs"
    ]
    assert len(axes.texts) == 1600


def test_the_most_frequent_characters_of_probabilities_are_those_of_a_long_text() -> None:
    probabilities = torch.full((101, 101), 1e-6)
    probabilities[:, 50:90] = 1.0
    figure = plots.probability_map(probabilities / probabilities.sum(1, keepdim=True), LARGE)
    assert tick_labels(figure.axes[0]) == list(LARGE.characters[50:90])
    assert titles(figure) == ["Probability of the next character; the 40 most frequent of 101 characters"]


def test_words_have_counts_alone_and_the_axes_say_words(monkeypatch: pytest.MonkeyPatch) -> None:
    vocabulary = Vocabulary("ab")
    monkeypatch.setattr(vocabulary, "symbols", ("<unk>", "the", "of"))
    monkeypatch.setattr(vocabulary, "tokens_are", "words")
    axes = plots.count_map(torch.arange(9).reshape(3, 3), vocabulary).axes[0]
    assert [text.get_text() for text in axes.texts] == [str(count) for count in range(9)]
    assert tick_labels(axes) == ["<unk>", "the", "of"]
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title()) == (
        *("next word", "word", "Bigram counts: 36 pairs of 3 words"),
    )


def test_an_empty_table_is_drawn(tmp_path: Path) -> None:
    figures = plots.figures(CountBigram(3), VOCABULARY, [])
    assert [text.get_text()[-2:] for text in figures["counts"].axes[0].texts] == ["\n0"] * 9
    assert plots.save(figures, tmp_path)[0].stat().st_size > 0
