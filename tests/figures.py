"""What tests read from figures, and vocabularies that they draw."""

from __future__ import annotations

from typing import TYPE_CHECKING

from charlm import Vocabulary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

VOCABULARY = Vocabulary("ab")
# 101 tokens whose characters matplotlib's own font has.
LARGE = Vocabulary([chr(0x410 + i) for i in range(64)] + [chr(0x61 + i) for i in range(26)] + list("0123456789"))


def legend(figure: Figure) -> list[str]:
    """The lines of the legend beside the axes."""
    return [text.get_text() for text in figure.legends[0].get_texts()]


def titles(figure: Figure) -> list[str]:
    """The titles of all axes, on the left or in the middle."""
    return [title for axes in figure.axes for title in (axes.get_title(), axes.get_title("left")) if title]


def tick_labels(axes: Axes) -> list[str]:
    """What stands at the ticks of the horizontal axis."""
    return [label.get_text() for label in axes.get_xticklabels()]
