"""The figures of runs: what they show, and the files they become."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from figures import LARGE, VOCABULARY, legend, tick_labels, titles

from charlm import MLP, CountBigram, NeuralBigram, Vocabulary, plots
from charlm.plots._labels import fonts, visible

RECORDS = [{"step": 10, "loss": 3.0}, {"step": 20, "loss": 2.5, "dev": 2.75}, {"step": 30, "loss": None}]


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
    assert [warning.category for warning in caught].count(UserWarning) == 1
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


def test_matplotlib_is_imported_by_the_first_figure_and_pyplot_never() -> None:
    """pyplot would keep every figure, and choose a window system."""
    code = "import sys, charlm, charlm.cli, charlm.plots; before = 'matplotlib' in sys.modules; "
    code += "charlm.plots.loss_curve([{'step': 1, 'loss': 1.0}]); "
    code += "print(before, 'matplotlib' in sys.modules, 'matplotlib.pyplot' in sys.modules)"
    folder = str(Path(plots.__file__).parent.parent.parent)
    result = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": folder}, capture_output=True, text=True)
    assert result.stdout == "False True False\n", result.stderr
