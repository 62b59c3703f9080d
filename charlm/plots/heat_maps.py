"""The table of a bigram as a heat map: in each cell the pair, and beneath it its count or probability."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from charlm.plots._drawing import new_figure, percent
from charlm.plots._labels import fonts, labels, most_frequent, unit
from charlm.vocabulary import Vocabulary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Up to here each cell has its pair and number; a larger map has those of its most frequent pairs, in short.
_ROOMY = 40
# Rows and columns; a still larger vocabulary would be a wall, and has the map of its `_ROOMY` most frequent tokens.
_MOST_SHOWN = 100
_MOST_NUMBERS = 1000
# Inches of a cell, and points of the text in it.
_CELL, _SMALL_CELL = 0.45, 0.3
_FONT_SIZE, _SMALL_FONT_SIZE = 6.5, 5.0
_TICK_FONT_SIZE = 11.0
# Of the font size, about the width of a digit.
_DIGIT = 0.65
# Above this share of the colour scale, blue is dark.
_DARK = 0.7
_STEPS_TO_STATIONARITY = 64


def count_map(counts: Tensor, vocabulary: Vocabulary) -> Figure:
    """How often each token (column) followed each other one (row), on a logarithmic colour scale.

    Args:
        counts: (V, V) integers.
        vocabulary: of V tokens; of more than 100, the 40 most frequent ones are shown.

    Raises:
        ImportError: matplotlib is not installed.

    Source: Karpathy, "Neural Networks: Zero to Hero", makemore part 1.
    """
    counts = counts.cpu()
    total = int(counts.sum())
    shown = _shown(counts.sum(dim=0) + counts.sum(dim=1))
    part = counts[shown][:, shown]
    title = f"Bigram counts: {total:,} pairs of {len(vocabulary):,} {unit(vocabulary)}s"
    if len(shown) < len(vocabulary):
        title += f"; the {len(shown)} most frequent, with {percent(int(part.sum()) / max(1, total))} of the pairs"

    from matplotlib.colors import SymLogNorm

    norm = SymLogNorm(linthresh=1.0, vmin=0.0, vmax=max(1.0, float(part.max())))
    return _heat_map(part, shown, vocabulary, norm, title, "count", _short)


def probability_map(probabilities: Tensor, vocabulary: Vocabulary) -> Figure:
    """How probable each token (column) is after each other one (row), in percent.

    Args:
        probabilities: (V, V), rows that sum to 1.
        vocabulary: of V tokens; of more than 100, the 40 are shown that a long text of the model has most often.

    Raises:
        ImportError: matplotlib is not installed.
    """
    probabilities = probabilities.cpu()
    shown = _shown(_stationary(probabilities))
    part = 100.0 * probabilities[shown][:, shown].double()
    what = unit(vocabulary)
    title = f"Probability of the next {what}"
    if len(shown) < len(vocabulary):
        title += f"; the {len(shown)} most frequent of {len(vocabulary):,} {what}s"

    from matplotlib.colors import PowerNorm

    norm = PowerNorm(0.5, vmin=0.0, vmax=max(1.0, float(part.max())))
    return _heat_map(part, shown, vocabulary, norm, title, "probability (%)", lambda value, _: percent(value / 100.0))


def _heat_map(
    values: Tensor,
    shown: Tensor,
    vocabulary: Vocabulary,
    norm: Any,
    title: str,
    scale: str,
    text: Callable[[float, int], str],
) -> Figure:
    """A cell for each of `values` (n, n), whose rows and columns are the tokens `shown` (n,)."""
    names = labels(vocabulary)
    names = [names[token] for token in shown.tolist()]
    roomy = len(names) <= _ROOMY
    cell, size = (_CELL, _FONT_SIZE) if roomy else (_SMALL_CELL, _SMALL_FONT_SIZE)
    digits = int(72.0 * cell / (_DIGIT * size))
    families = fonts(names)

    inches = max(3.0, cell * len(names))
    figure = new_figure(inches + 1.8, inches + 0.9)
    axes = figure.add_subplot()
    image = axes.imshow(values.tolist(), cmap="Blues", norm=norm)
    bar = figure.colorbar(image, shrink=0.6, format="{x:,.0f}", ticks=_round_numbers(norm.vmax, scale))
    # What is around a large map is looked at from farther away.
    title_size = max(10.0, inches)
    bar.set_label(scale, fontsize=title_size)
    bar.ax.tick_params(labelsize=0.8 * title_size)
    axes.set_xlabel(f"next {unit(vocabulary)}", fontsize=title_size)
    axes.set_ylabel(unit(vocabulary), fontsize=title_size)
    axes.set_title(title, fontsize=title_size, wrap=True)
    large: dict[str, Any] = {"parse_math": False, "fontfamily": families, "fontsize": _TICK_FONT_SIZE}
    axes.set_xticks(range(len(names)), names, rotation=90 if max(map(len, names)) > 2 else 0, **large)
    axes.set_yticks(range(len(names)), names, **large)
    # A map that is larger than a screen is labelled on every side.
    axes.tick_params(length=0, labeltop=not roomy, labelright=not roomy)

    shares = torch.as_tensor(norm(values.double().numpy()).data)
    style: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": size, "fontfamily": families}
    # What is inside of the axes need not be measured to lay them out.
    style |= {"parse_math": False, "in_layout": False, "linespacing": 1.1}
    # Pairs of words do not fit.
    has_pairs = vocabulary.tokens_are != "words"
    cells = range(values.numel()) if roomy else most_frequent(values.flatten(), _MOST_NUMBERS).tolist()
    for row, column in (divmod(cell, len(names)) for cell in cells):
        number = values[row, column].item()
        if not roomy and number == 0:
            continue
        pair = names[row] + names[column]
        lines = [pair] if has_pairs and len(pair) <= digits - 2 else []
        color = "white" if shares[row, column] > _DARK else "black"
        axes.text(column, row, "\n".join([*lines, text(number, digits - 1 if roomy else 4)]), color=color, **style)
    return figure


def _shown(frequencies: Tensor) -> Tensor:
    """The tokens (n,) that have rows and columns, ascending."""
    return most_frequent(frequencies, len(frequencies) if len(frequencies) <= _MOST_SHOWN else _ROOMY)


def _round_numbers(highest: float, scale: str) -> list[float]:
    """Where the colour scale has ticks."""
    if scale == "count":
        return [0.0, *(10.0**i for i in range(13) if 10.0**i <= highest)]
    return [tick for tick in (0.0, 1.0, 5.0, 10.0, 20.0, 40.0, 60.0, 80.0, 100.0) if tick <= highest]


def _short(count: float, digits: int) -> str:
    """A count as it is, or, where it has more digits than there is room for, as 12k, 1.2M and so on."""
    if len(str(int(count))) <= digits:
        return str(int(count))
    signs = iter("kMGTPE")
    sign = ""
    while count >= 999.5:
        count, sign = count / 1000.0, next(signs)
    return f"{count:.1f}{sign}" if count < 9.95 else f"{count:.0f}{sign}"


def _stationary(probabilities: Tensor) -> Tensor:
    """How often each token comes in a long text of the bigram: (V,)."""
    shares = probabilities.new_full((len(probabilities),), 1.0 / len(probabilities))
    for _ in range(_STEPS_TO_STATIONARITY):
        # Half of it stays, so that it settles where tokens take turns.
        shares = 0.5 * (shares + shares @ probabilities)
    return shares
