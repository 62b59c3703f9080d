"""Races of backends as bars."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from charlm.plots._drawing import BLUE, GREY, SKY, new_figure, tidy

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Beside a bar that is this many times as long, others could not be told apart.
_LOGARITHMIC = 20.0
_BASELINE = "eager"


def speed_chart(steps_per_second: Mapping[str, float], title: str, note: str = "") -> Figure:
    """Training steps a second of each backend as bars, and how many times as fast as eager PyTorch it is.

    Where the fastest is more than 20 times as fast as the slowest, the axis is logarithmic.

    Args:
        steps_per_second: by backend.
        title: what was trained.
        note: in small print, such as the machine and versions.

    Raises:
        ImportError: matplotlib is not installed.
    """
    speeds = list(steps_per_second.values())
    baseline = steps_per_second.get(_BASELINE)
    figure = new_figure(8.0, 1.6 + 0.45 * len(speeds) + 0.15 * note.count("\n"))
    axes = figure.add_subplot()
    # The baseline is paler, and hatched for print.
    colours = [SKY if name == _BASELINE else BLUE for name in steps_per_second]
    bars = axes.barh(list(steps_per_second), speeds, color=colours, height=0.65)
    for bar, name in zip(bars, steps_per_second, strict=True):
        bar.set_hatch("//" if name == _BASELINE else "")
    axes.bar_label(
        bars, [_label(name, speed, baseline) for name, speed in steps_per_second.items()], padding=4, fontsize=9
    )
    axes.set_title(title, fontsize=10, wrap=True)
    axes.set_xlabel("training steps per second")
    if max(speeds) > _LOGARITHMIC * min(speeds):
        axes.set_xscale("log")
        axes.set_xlabel("training steps per second, logarithmic")
        # From half of the slowest on; beyond the fastest, room for its label.
        axes.set_xlim(min(speeds) / 2.0, max(speeds) * (max(speeds) / min(speeds)) ** 0.45)
    else:
        axes.set_xlim(0.0, 1.4 * max(speeds))
    axes.xaxis.set_major_formatter("{x:,.10g}")
    axes.invert_yaxis()
    tidy(axes)
    if note:
        figure.supxlabel(note, fontsize=7, color=GREY)
    return figure


def _label(name: str, speed: float, baseline: float | None) -> str:
    shown = f"{speed:,.0f}" if speed >= 1000.0 else f"{speed:.4g}"
    if baseline is None or name == _BASELINE:
        return shown
    ratio = speed / baseline
    digits = 2 if ratio < 9.995 else 1 if ratio < 99.95 else 0
    return f"{shown}  ({ratio:,.{digits}f}x eager)"
