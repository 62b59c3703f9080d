"""What all pictures have in common: figures, and colours that print in grey and are told apart by the colour-blind."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Of Okabe and Ito 2008, "Color Universal Design", without its yellow, which white paper swallows.
BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, BLACK = COLOURS = (
    *("#0072B2", "#D55E00", "#009E73", "#E69F00"),
    *("#CC79A7", "#56B4E9", "#000000"),
)
# What tells lines and points apart where there are no colours.
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GREY = "#666666"
# Dots an inch of a PNG.
DPI = 150


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib. Run: pip install matplotlib") from error
    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def tidy(axes: Axes) -> None:
    """Without the lines at the top and on the right, which say nothing."""
    axes.spines[["top", "right"]].set_visible(False)


def percent(share: float) -> str:
    """A share as a percentage of two digits: 0.123 is "12%", 0.0123 "1.2%"."""
    if share >= 0.0995:
        return f"{100 * share:.0f}%"
    return f"{100 * share:.1f}%" if share >= 0.0005 else "0%"
