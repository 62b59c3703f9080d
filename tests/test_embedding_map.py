"""The map of embeddings: where tokens are, and that their labels can be read."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from figures import LARGE, VOCABULARY, legend, titles
from torch import Tensor

from charlm import MLP, Vocabulary, plots
from charlm.plots._placing import place

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def shown_points(axes: Axes) -> Tensor:
    """The points of all kinds, in the order of the vocabulary "ab": the boundary is drawn last."""
    a_vowel, a_consonant, another = (torch.tensor(np.asarray(of.get_offsets())) for of in axes.collections)
    return torch.cat([another, a_vowel, a_consonant])


def test_embeddings_of_two_dimensions_are_shown_as_they_are() -> None:
    embedding = torch.tensor([[1.0, 2.0], [3.0, 4.0], [-5.0, 6.0]])
    figure = plots.embedding_map(embedding, VOCABULARY)
    (axes,) = figure.axes
    np.testing.assert_array_equal(shown_points(axes), embedding)
    assert {text.get_text(): list(text.xy) for text in axes.texts} == dict(
        zip([".", "a", "b"], embedding.tolist(), strict=True)
    )
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("embedding[0]", "embedding[1]")
    assert legend(figure) == ["vowels", "consonants", "others"]


def test_embeddings_of_one_dimension_are_on_a_line() -> None:
    axes = plots.embedding_map(torch.tensor([[1.0], [3.0], [-5.0]]), VOCABULARY).axes[0]
    np.testing.assert_array_equal(shown_points(axes), [[1.0, 0.0], [3.0, 0.0], [-5.0, 0.0]])
    assert len(axes.get_yticks()) == 0


def test_embeddings_of_more_dimensions_are_shown_at_their_principal_components() -> None:
    # A plane in four dimensions, wider along its first axis.
    plane = torch.tensor([[4.0, 0.0], [-4.0, 1.0], [0.0, -1.0]], dtype=torch.float64)
    axes_in_space = torch.tensor([[0.6, 0.8, 0.0, 0.0], [0.0, 0.0, 0.0, -1.0]], dtype=torch.float64)
    embedding = plane @ axes_in_space + 7.0
    axes = plots.embedding_map(embedding, VOCABULARY).axes[0]
    shown = shown_points(axes)
    # Distances are kept, the centre is the origin, and the components are ordered and not correlated.
    torch.testing.assert_close(torch.cdist(shown, shown), torch.cdist(plane, plane))
    torch.testing.assert_close(shown.sum(dim=0), torch.zeros(2, dtype=torch.float64))
    assert shown[:, 0].square().sum() > shown[:, 1].square().sum()
    assert abs(shown[:, 0] @ shown[:, 1]) < 1e-12
    shares = shown.square().sum(dim=0) / shown.square().sum()
    assert axes.get_xlabel() == f"first principal component ({100 * shares[0]:.0f}% of the variance)"
    assert axes.get_ylabel() == f"second principal component ({100 * shares[1]:.1f}% of the variance)"


@pytest.mark.parametrize("dimensions", [1, 2, 10])
@pytest.mark.parametrize("size", [27, 100])
def test_labels_cover_neither_each_other_nor_points(size: int, dimensions: int) -> None:
    vocabulary = Vocabulary(LARGE.characters[:size])
    # Many in one place.
    embedding = torch.randn(len(vocabulary), dimensions) * torch.linspace(0.1, 1.0, len(vocabulary))[:, None]
    figure = plots.embedding_map(embedding, vocabulary)
    axes = figure.axes[0]
    figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    boxes = [text.get_window_extent(renderer) for text in axes.texts]
    # Without the line to the point, which is part of an annotation's extent.
    boxes = [type(text).__mro__[1].get_window_extent(text, renderer) for text in axes.texts]
    assert len(boxes) == len(vocabulary)
    for one, other in combinations(boxes, 2):
        assert not one.overlaps(other)
    points = axes.transData.transform(np.concatenate([of.get_offsets() for of in axes.collections]))
    for box in boxes:
        assert not box.count_contains(points)
        assert axes.get_window_extent(renderer).padded(1.0).containsx(box.x0)
        assert axes.get_window_extent(renderer).padded(1.0).containsy(box.y1)


def test_the_same_embedding_is_the_same_picture() -> None:
    embedding = torch.randn(len(LARGE), 2)
    first, second = ([t.get_position() for t in plots.embedding_map(embedding, LARGE).axes[0].texts] for _ in range(2))
    assert first == second


def test_a_label_without_room_covers_the_least() -> None:
    """Three labels in an area for two: the third is on the smaller of what is there, within it or not."""
    points, sizes = torch.zeros(2, 2, dtype=torch.float64), torch.full((2, 2), 8.0, dtype=torch.float64)
    places = place(points, sizes, torch.empty(0, 2, dtype=torch.float64), 1.0, (-6.0, -13.0, 6.0, 13.0))
    assert places.tolist() == [[pytest.approx(0.0), 6.5], [pytest.approx(0.0), -6.5]]


def test_the_most_frequent_of_many_tokens_have_labels() -> None:
    frequencies = torch.zeros(101, dtype=torch.int64)
    frequencies[50] = 1
    figure = plots.embedding_map(torch.randn(101, 2), LARGE, frequencies=frequencies)
    texts = {text.get_text() for text in figure.axes[0].texts}
    assert texts == {*LARGE.characters} - {LARGE.characters[100]}
    assert titles(figure) == ["Embeddings of 101 characters in 2 dimensions; the 100 most frequent have labels"]
    assert "the 100 first have labels" in titles(plots.embedding_map(torch.randn(101, 2), LARGE))[0]


def test_a_model_says_itself_which_tokens_are_frequent() -> None:
    model = MLP(101, 1, 2, 2)
    with torch.no_grad():
        model.weight2.zero_()
        model.bias2.fill_(-20.0)
        # A line ends, or goes on with the last character of the vocabulary.
        model.bias2[[LARGE.boundary, 100]] = 0.0
    (axes,) = plots.figures(model, LARGE, [], only=["embedding"])["embedding"].axes
    texts = {text.get_text() for text in axes.texts}
    assert len(texts) == 100
    assert {LARGE.characters[100], "."} <= texts
    assert LARGE.characters[99] not in texts


def test_vowels_are_those_of_three_alphabets() -> None:
    vocabulary = Vocabulary("aÉÿzñßЁйыαάσب7.")
    axes = plots.embedding_map(torch.zeros(len(vocabulary), 2), vocabulary).axes[0]
    sizes = {of.get_label(): len(of.get_offsets()) for of in axes.collections}
    assert sizes == {"vowels": 6, "consonants": 6, "others": 3}
