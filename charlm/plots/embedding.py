"""A map of what an MLP has learned about each token: its embedding, in two dimensions."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from charlm.plots._drawing import BLUE, GREY, MARKERS, ORANGE, VERMILION, new_figure, percent
from charlm.plots._labels import boxes_allowed, fonts, labels, most_frequent, unit
from charlm.plots._placing import place
from charlm.vocabulary import Vocabulary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Of larger vocabularies the most frequent tokens have a label.
MOST_LABELLED = 100
_KINDS = {"vowels": VERMILION, "consonants": BLUE, "others": ORANGE}
# Of Latin, Greek and Cyrillic, without accents.
_VOWELS = frozenset("aeiouæœøıαεηιουωаеёиоуыэюяіїє")
_ALPHABETS = ("LATIN", "GREEK", "CYRILLIC")
# In points: of a mark, of one without a label, and the distance from which on a line leads from a mark to its label.
_RADIUS, _SMALL_RADIUS = 3.0, 1.2
_FAR = 7.0
_FONT_SIZE = 10.0
_POINTS_AN_INCH = 72.0


def embedding_map(embedding: Tensor, vocabulary: Vocabulary, *, frequencies: Tensor | None = None) -> Figure:
    """The tokens at the first two principal components of their embeddings; at the embedding itself if D is 2, and on
    a line if D is 1. Labels move apart where they would overlap.

    Args:
        embedding: (V, D).
        vocabulary: of V tokens.
        frequencies: (V,), how often each token occurs; of more than 100 tokens the most frequent ones are labelled,
            or without this the first ones.

    Raises:
        ImportError: matplotlib is not installed.
    """
    points, axis_names = _plane(embedding.detach().cpu().double())
    shown = most_frequent(torch.zeros(len(points)) if frequencies is None else frequencies.cpu(), MOST_LABELLED)
    # From left to right, so that few lines cross.
    labelled = shown[points[shown, 0].argsort(stable=True)].tolist()
    is_line = embedding.shape[1] == 1
    figure = new_figure(8.0, 4.0 if is_line else 8.0)
    axes = figure.add_subplot()
    _draw_points(axes, points, [_kind(symbol) for symbol in vocabulary.symbols], {*labelled})
    title = f"Embeddings of {len(points):,} {unit(vocabulary)}s in {embedding.shape[1]:,} dimension"
    title += "s" * (embedding.shape[1] != 1)
    if len(labelled) < len(points):
        title += f"; the {len(labelled)} {'first' if frequencies is None else 'most frequent'} have labels"
    axes.set(xlabel=axis_names[0], ylabel=axis_names[1])
    axes.set_title(title, fontsize=11)
    axes.margins(0.08, 0.4 if is_line else 0.08)
    if is_line:
        axes.set_yticks([])
    axes.grid(alpha=0.3)
    if len(axes.get_legend_handles_labels()[0]) > 1:
        figure.legend(loc="outside lower center", ncols=len(_KINDS), frameon=False)
    names = labels(vocabulary)
    _write_labels(figure, axes, points, labelled, [names[token] for token in labelled])
    return figure


def _draw_points(axes: Axes, points: Tensor, kinds: Sequence[str], labelled: Collection[int]) -> None:
    """Draws a mark for each token, of its kind; a small one where there is no label."""
    for marker, (kind, colour) in zip(MARKERS, _KINDS.items(), strict=False):
        for radius, has_label in ((_SMALL_RADIUS, False), (_RADIUS, True)):
            members = [i for i, of in enumerate(kinds) if of == kind and (i in labelled) == has_label]
            if members:
                at = points[members].numpy()
                style: dict[str, Any] = {"color": colour, "marker": marker, "s": (2.0 * radius) ** 2, "linewidth": 0.0}
                axes.scatter(at[:, 0], at[:, 1], label=kind if has_label else None, **style)


def _write_labels(figure: Figure, axes: Axes, points: Tensor, tokens: list[int], names: list[str]) -> None:
    """Writes the name of each token beside its point."""
    families = fonts(names)
    texts = [
        axes.annotate(
            name,
            (0.0, 0.0),
            xytext=(0.0, 0.0),
            textcoords="offset points",
            ha="center",
            va="center",
            parse_math=False,
            fontfamily=families,
            fontsize=_FONT_SIZE,
            in_layout=False,
            arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.6, "shrinkA": 0.0, "shrinkB": _RADIUS},
        )
        for name in names
    ]
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    renderer = FigureCanvasAgg(figure).get_renderer()
    with boxes_allowed():
        # What has been laid out has its size.
        figure.draw_without_rendering()
        extents = [text.get_window_extent(renderer) for text in texts]
    scale = _POINTS_AN_INCH / figure.dpi
    sizes = torch.tensor([[box.width, box.height] for box in extents], dtype=torch.float64).reshape(-1, 2)
    area = [scale * side for side in axes.get_window_extent(renderer).extents]
    on_screen = scale * torch.as_tensor(axes.transData.transform(points.numpy()))
    # Small marks may be covered: there are many.
    centres = place(on_screen[tokens], scale * sizes, on_screen[tokens], _RADIUS, area)
    offsets = centres - on_screen[tokens]
    distances = (offsets.abs() - 0.5 * scale * sizes).clamp_min(0.0).norm(dim=1).tolist()
    for text, token, offset, distance in zip(texts, tokens, offsets.tolist(), distances, strict=True):
        text.xy = tuple(points[token].tolist())
        text.set_position(offset)
        if text.arrow_patch is not None:
            text.arrow_patch.set_visible(distance >= _FAR)


def _plane(points: Tensor) -> tuple[Tensor, tuple[str, str]]:
    """Points (V, D) in a plane (V, 2), and what its axes are."""
    if points.shape[1] == 1:
        return torch.cat([points, torch.zeros_like(points)], dim=1), ("embedding[0]", "")
    if points.shape[1] == 2:
        return points, ("embedding[0]", "embedding[1]")
    centred = points - points.mean(dim=0)
    _, lengths, directions = torch.linalg.svd(centred, full_matrices=False)
    # A direction has no sign of its own: the largest component is made positive, so that a run has one picture.
    largest = directions.abs().argmax(dim=1, keepdim=True)
    directions = directions * directions.gather(1, largest).sign()
    variances = lengths.square()
    shares = (variances / variances.sum().clamp_min(torch.finfo(variances.dtype).tiny)).tolist()
    plane = centred @ directions[:2].T
    if plane.shape[1] == 1:  # of a single token
        return torch.cat([plane, torch.zeros_like(plane)], dim=1), ("principal component", "")
    names = [
        f"{place} principal component ({percent(share)} of the variance)"
        for place, share in zip(("first", "second"), shares, strict=False)
    ]
    return plane, (names[0], names[1])


def _kind(symbol: str) -> str:
    """Of a letter whether it is a vowel, by its alphabet; y is none, as in schoolbooks."""
    if len(symbol) != 1 or not symbol.isalpha() or not unicodedata.name(symbol, "").startswith(_ALPHABETS):
        return "others"
    letter = symbol.lower()
    if not unicodedata.name(symbol).startswith("CYRILLIC"):
        # In Cyrillic, и and й are two letters.
        letter = unicodedata.normalize("NFD", letter)[0]
    return "vowels" if letter in _VOWELS else "consonants"
