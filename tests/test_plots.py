"""The figures of runs: what they show, and the files they become."""

from __future__ import annotations

import math
import subprocess
import sys
import warnings
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor

from charlm import MLP, CountBigram, NeuralBigram, Vocabulary, plots
from charlm.plots._labels import fonts, visible
from charlm.plots._placing import place

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

VOCABULARY = Vocabulary("ab")
RECORDS = [{"step": 10, "loss": 3.0}, {"step": 20, "loss": 2.5, "dev": 2.75}, {"step": 30, "loss": None}]
# 101 tokens whose characters every font has.
LARGE = Vocabulary([chr(0x410 + i) for i in range(64)] + [chr(0x61 + i) for i in range(26)] + list("0123456789"))


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def titles(figure: Figure) -> list[str]:
    return [title for axes in figure.axes for title in (axes.get_title(), axes.get_title("left")) if title]


def tick_labels(axes: Axes) -> list[str]:
    return [label.get_text() for label in axes.get_xticklabels()]


def saturated_model() -> MLP:
    """Two tokens; the first hidden unit is saturated after token 0 only, the second never."""
    model = MLP(2, 1, 1, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.embedding.copy_(torch.tensor([[3.0], [0.5]]))
        model.weight1.copy_(torch.tensor([[1.0], [0.1]]))
        model.weight2.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
    return model


# Losses


def test_the_loss_curve_shows_every_record() -> None:
    figure = plots.loss_curve(RECORDS)
    (axes,) = figure.axes
    train, dev = axes.lines
    np.testing.assert_array_equal(train.get_xydata(), [[10, 3.0], [20, 2.5], [30, math.nan]])
    np.testing.assert_array_equal(dev.get_xydata(), [[20, 2.75]])
    assert legend(figure) == ["train not finite", "dev 2.7500"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("training steps", "loss (nats per character)")
    assert axes.get_xscale() == "linear"


def test_runs_are_told_apart_in_one_picture_without_colours_too() -> None:
    runs = {f"run {i}": [{"step": step, "loss": 3.0 - i, "dev": 3.5 - i} for step in (1, 2)] for i in range(9)}
    figure = plots.loss_curve(runs, log_steps=True, unit="word")
    (axes,) = figure.axes
    assert legend(figure) == [
        *(f"run {i}: train {3.0 - i:.4f}" for i in range(9)),
        *(f"run {i}: dev {3.5 - i:.4f}" for i in range(9)),
    ]
    train, dev = axes.lines[:9], axes.lines[9:]
    for of_train, of_dev in zip(train, dev, strict=True):
        assert of_train.get_color() == of_dev.get_color()
        assert of_train.get_markersize() < of_dev.get_markersize() / 3
    assert len({(line.get_color(), line.get_linestyle()) for line in dev}) == 9
    assert len({(line.get_marker(), line.get_linestyle()) for line in dev}) == 9
    assert axes.get_xscale() == "log"
    assert axes.get_ylabel() == "loss (nats per word)"


def test_the_last_loss_of_dev_has_a_dot() -> None:
    records = [{"step": step, "dev": 2.0} for step in range(1, 100)]
    line = plots.loss_curve(records).axes[0].lines[1]
    start, every = line.get_markevery()
    assert (98 - start) % every == 0
    assert 99 // every <= 16


def test_a_single_step_has_a_whole_number_at_its_axis() -> None:
    figure = plots.loss_curve([{"step": 1, "loss": 3.0}])
    figure.draw_without_rendering()
    assert len({*tick_labels(figure.axes[0])}) == len(tick_labels(figure.axes[0]))


# Tables


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


# Embeddings


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


# Activations and gradients


def test_activations_are_those_of_the_layers() -> None:
    figure = plots.activation_histograms(saturated_model(), torch.tensor([[0], [0], [0], [1]]))
    before, outputs, by_unit, logits = figure.axes
    values = [3.0, 0.3] * 3 + [0.5, 0.05]
    for axes, expected in (
        (before, values),
        (outputs, np.tanh(values)),
        (logits, np.tanh(values) * ([1.0, 2.0] * 4)),
    ):
        bars = axes.containers[0]
        assert [bar.get_height() for bar in bars] == np.histogram(expected, bins=len(bars))[0].tolist()
        assert bars[0].get_x() == pytest.approx(min(expected))
        assert bars[-1].get_x() + bars[-1].get_width() == pytest.approx(max(expected))
    assert titles(figure) == [
        f"pre-activations: mean {np.mean(values):.2g}, std {np.std(values, ddof=1):.2g}",
        "outputs: 38% saturated",
        "0 of 2 units saturated for every context",
        titles(figure)[3],
    ]
    (area,) = by_unit.collections
    assert area.get_paths()[0].get_extents().y1 == 75.0


def test_a_unit_that_is_always_saturated_is_counted() -> None:
    figure = plots.activation_histograms(saturated_model(), torch.tensor([[0], [0]]))
    assert titles(figure)[1:3] == ["outputs: 50% saturated", "1 of 2 units saturated for every context"]


@pytest.mark.parametrize("direct", [False, True])
def test_gradients_are_those_of_autograd(direct: bool) -> None:
    model = MLP(4, 2, 3, 5, direct=direct)
    contexts, targets = torch.randint(4, (20, 2)), torch.randint(4, (20,))
    figure = plots.gradient_histograms(model, contexts, targets, learning_rate=0.1)
    assert all(parameter.grad is None for parameter in model.parameters())
    model.loss(contexts, targets).backward()
    *panels, last = figure.axes
    points = {}
    for axes, (name, parameter) in zip(panels, model.named_parameters(), strict=True):
        assert axes.get_title().startswith(f"{name} ({' × '.join(map(str, parameter.shape))})\n")
        assert sum(bar.get_height() for bar in axes.patches) == parameter.numel()
        assert parameter.grad is not None
        assert axes.patches[0].get_x() == pytest.approx(parameter.grad.min().item(), rel=1e-5)
        if parameter.std() > 0:
            points[name] = 0.1 * (parameter.grad.std() / parameter.std()).item()
    line, guide = last.lines
    # Biases are 0 at the start, and have no ratio.
    assert list(line.get_ydata()) == list(points)
    assert list(line.get_xdata()) == pytest.approx(list(points.values()), rel=1e-4)
    assert guide.get_xdata()[0] == 1e-3
    assert last.get_title().startswith("update : parameter")


def test_histograms_refuse_what_they_cannot_show() -> None:
    model, contexts = saturated_model(), torch.zeros(0, 1, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"^contexts must have shape \(N, T\) with N >= 1, got \(0, 1\)$"):
        plots.activation_histograms(model, contexts)
    with pytest.raises(TypeError, match=r"^model must be MLP, got CountBigram$"):
        plots.activation_histograms(CountBigram(2), contexts)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^learning_rate must be a positive number or None, got 0\.0$"):
        plots.gradient_histograms(model, torch.zeros(1, 1).long(), torch.zeros(1).long(), learning_rate=0.0)
    with torch.no_grad():
        model.bias1.fill_(math.inf)
    with pytest.raises(ValueError, match="activations or gradients are not finite"):
        plots.activation_histograms(model, torch.zeros(1, 1).long())


# What comes next


def test_what_comes_next_has_the_probabilities_of_the_model() -> None:
    model = MLP(3, 2, 2, 4, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        model.weight2.mul_(300.0)
    figure = plots.next_character(model, VOCABULARY, ["", "a", "bab"], temperature=0.5, order="vocabulary")
    for axes, context in zip(figure.axes, ([0, 0], [0, 1], [1, 2]), strict=True):
        expected = torch.softmax(model(torch.tensor(context)) / 0.5, 0).tolist()
        assert [bar.get_height() / 100.0 for bar in axes.patches] == pytest.approx(expected, rel=1e-5)
        assert tick_labels(axes) == [".\nend", "a", "b"]
    assert titles(figure) == ["at the beginning", "after “a”", "after “bab”, of which the model reads “ab”"]
    assert figure.get_suptitle() == "Distribution of the next character, temperature 0.5"


def test_bars_come_in_the_order_of_their_probability() -> None:
    model = NeuralBigram(3)
    with torch.no_grad():
        model.weight[1] = torch.tensor([0.2, 0.3, 0.5]).log()
    (axes,) = plots.next_character(model, VOCABULARY, "a").axes
    assert tick_labels(axes) == ["b", "a", ".\nend"]
    assert [text.get_text() for text in axes.texts] == ["50%", "30%", "20%"]
    (coldest,) = plots.next_character(model, VOCABULARY, "a", temperature=0.0).axes
    assert [text.get_text() for text in coldest.texts] == ["100%", "0%", "0%"]


def test_of_many_characters_the_most_probable_are_shown() -> None:
    model = NeuralBigram(101)
    with torch.no_grad():
        model.weight.copy_(torch.linspace(5.0, -5.0, 101).expand(101, 101))
    (axes,) = (figure := plots.next_character(model, LARGE, "a")).axes
    shares = torch.linspace(5.0, -5.0, 101).softmax(0)
    assert tick_labels(axes)[1:] == list(LARGE.characters[1:40])
    assert titles(figure) == [f"after “a”: the 40 most probable of 101, {100 * shares[:40].sum():.0f}% together"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"after": "ax"}, ValueError, r"^after: text\[1\] = 'x' is not in the vocabulary of 3 characters$"),
        ({"after": []}, ValueError, "^after must be 1 to 50 texts, got 0$"),
        ({"after": ["a"] * 51}, ValueError, "^after must be 1 to 50 texts, got 51$"),
        ({"after": 3}, TypeError, "^after must be str or Sequence, got int$"),
        ({"after": "a", "temperature": -1.0}, ValueError, "^temperature must be a finite number >= 0, got -1.0$"),
        ({"after": "a", "order": "size"}, ValueError, "^order must be one of probability, vocabulary, got 'size'$"),
    ],
)
def test_what_cannot_come_before_is_named(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        plots.next_character(NeuralBigram(3), VOCABULARY, **arguments)


# Races


def test_speeds_are_compared_with_eager() -> None:
    figure = plots.speed_chart({"eager": 1000.0, "ops": 850.0, "fused": 12_345.6}, "small", note="2 cores")
    (axes,) = figure.axes
    assert [bar.get_width() for bar in axes.patches] == [1000.0, 850.0, 12_345.6]
    assert [text.get_text() for text in axes.texts] == ["1,000", "850  (0.85x eager)", "12,346  (12.3x eager)"]
    assert axes.get_xscale() == "linear"
    assert (axes.get_xlabel(), figure.get_supxlabel()) == ("training steps per second", "2 cores")


def test_far_apart_speeds_are_on_a_logarithmic_axis() -> None:
    figure = plots.speed_chart({"eager": 2.0, "fused": 450.0}, "large")
    (axes,) = figure.axes
    assert axes.get_xscale() == "log"
    assert axes.get_xlim()[0] == 1.0
    assert [text.get_text() for text in axes.texts] == ["2", "450  (225x eager)"]
    figure.draw_without_rendering()
    renderer = figure._get_renderer()  # type: ignore[attr-defined]
    assert all(text.get_window_extent(renderer).x1 < figure.bbox.x1 for text in axes.texts)
    assert [text.get_text() for text in plots.speed_chart({"fused": 2.0}, "alone").axes[0].texts] == ["2"]


# Labels


def test_characters_that_would_not_be_seen_are_shown_by_signs() -> None:
    assert [visible(c) for c in " \n\ta$\u0301\u200b\x07\xad一"] == [
        *("␣", "↵", "⇥", "a", "$", "◌\u0301", "\\u200b", "\\x07", "\\xad", "一")
    ]
    vocabulary = Vocabulary("\n\t $")
    axes = plots.embedding_map(torch.randn(5, 2), vocabulary).axes[0]
    assert {text.get_text() for text in axes.texts} == {"⇥", "↵", "␣", "$", "."}


def test_every_sign_is_in_the_font_of_matplotlib() -> None:
    assert fonts(["␣↵⇥◌“”×·−→éßЖω"]) == ["DejaVu Sans"]


def test_characters_without_a_glyph_are_named_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("charlm.plots._labels._other_fonts", lambda: [])
    vocabulary = Vocabulary([chr(0x4E00 + i) for i in range(5)])
    message = "no font on this machine has 一, 丁, 丂 and 2 more: there are boxes in the picture. Install one, such as "
    with pytest.warns(UserWarning, match=f"^{message}Noto Sans$") as caught:
        figure = plots.embedding_map(torch.randn(6, 2), vocabulary)
    assert len(caught) == 1
    (path,) = plots.save({"embedding": figure}, tmp_path)
    assert path.stat().st_size > 0


def test_fonts_of_the_machine_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "charlm.plots._labels._other_fonts", lambda: [("One", "one"), ("Two", "two"), ("Three", "three")]
    )
    monkeypatch.setattr(
        "charlm.plots._labels._characters",
        lambda file: frozenset({"one": "x", "two": "字", "three": "文"}.get(file, "ab")),
    )
    assert fonts(["a字", "b"]) == ["DejaVu Sans", "Two"]
    assert fonts(["字文"]) == ["DejaVu Sans", "Two", "Three"]


# Of runs, and as files


@pytest.mark.parametrize(
    ("model", "records", "names"),
    [
        (MLP(3, 2, 4, 5), RECORDS, ["loss", "embedding"]),
        (NeuralBigram(3), RECORDS, ["loss", "probabilities"]),
        (CountBigram(3), [], ["counts"]),
    ],
    ids=["mlp", "bigram", "count-bigram"],
)
def test_each_model_has_its_figures(
    model: MLP | NeuralBigram | CountBigram, records: list[dict[str, float]], names: list[str], tmp_path: Path
) -> None:
    drawn = plots.figures(model, VOCABULARY, records)
    assert list(drawn) == names
    paths = plots.save(drawn, tmp_path / "new" / "folder")
    assert paths == [tmp_path / "new" / "folder" / f"{name}.png" for name in names]
    assert all(path.read_bytes().startswith(b"\x89PNG\r\n") for path in paths)
    assert list(plots.figures(model, VOCABULARY, records, after=["a"], only=["next"])) == ["next"]
    assert {*names, "next"} <= {*plots.names(model)}


@pytest.mark.parametrize(
    ("only", "message"),
    [
        ("counts", "^only must be among loss, embedding, activations, gradients, next for a mlp, got 'counts'$"),
        ("loss", "^only='loss' needs records of training, which this run does not have$"),
        ("gradients", "^only='gradients' needs a split, whose examples it shows$"),
        ("next", "^only='next' needs after, a text$"),
    ],
)
def test_a_figure_that_cannot_be_is_explained(only: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plots.figures(MLP(3, 2, 4, 5), VOCABULARY, [], only=[only])


@pytest.mark.parametrize(("format", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_the_same_figure_is_the_same_file(format: str, start: bytes, tmp_path: Path) -> None:
    files = [
        plots.save({"loss": plots.loss_curve(RECORDS)}, tmp_path / folder, format=format)[0].read_bytes()
        for folder in ("first", "second")
    ]
    assert files[0].startswith(start)
    assert files[0] == files[1]


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"^plots need matplotlib\. Run: pip install matplotlib$"):
        plots.loss_curve(RECORDS)


def test_matplotlib_is_imported_by_the_first_figure_only() -> None:
    code = "import sys, charlm, charlm.cli, charlm.plots; sys.exit('matplotlib' in sys.modules)"
    folder = str(Path(plots.__file__).parent.parent.parent)
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": folder}, check=False).returncode == 0


def test_figures_close_nothing_and_warn_of_nothing(tmp_path: Path) -> None:
    """Many of them: pyplot, which would keep each one, has no part in it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(25):
            plots.loss_curve(RECORDS)
    assert "matplotlib.pyplot" not in sys.modules
