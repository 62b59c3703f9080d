"""The results of one GPU as figures: how near each implementation of an op comes to what the GPU does at best.

They need matplotlib, which is imported when the first is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.gpu import entries
from benchmarks.gpu.entries import Row
from benchmarks.gpu.results import OURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Results = Mapping[str, Any]


@dataclass(frozen=True)
class Style:
    label: str
    colour: str
    marker: str
    width: float = 1.4
    weight: str = "normal"


def _ours(implementation: str) -> Style:
    name = "charlm" if implementation == OURS[0] else f"charlm, {implementation}"
    return Style(name, "#c1121f", "o", width=3.2, weight="bold")


# By implementation, in the order of bars. Colours that colour-blind readers tell apart, in every figure the same.
STYLES = {
    **{name: _ours(name) for name in OURS},
    "quack": Style("quack", "#0072b2", "s"),
    "liger": Style("Liger", "#009e73", "^"),
    "cce": Style("CCE", "#cc79a7", "D"),
    "cce unfiltered": Style("CCE, unfiltered", "#ecc9dd", "d"),
    "compile": Style("torch.compile", "#e69f00", "v"),
    "compile, reduce-overhead": Style("torch.compile, graphs", "#f0c76b", "<"),
    "eager graph": Style("eager in a graph", "#2f2f2f", "p"),
    "eager": Style("eager", "#636363", "P"),
}
PUBLISHED = Style("quack, published", "#9a9a9a", "_")
_LIMIT_COLOUR = "#222222"
# Whose FLOPs an entry counts: of three, forward and backward, unless it says otherwise.
_PRODUCTS = {1: "one product", 3: "three products", 4: "four products"}
_DPI = 150
# What the longest name of a GPU takes beside that of an op.
_TITLE_INCHES = 7.0
# Of an axis' height, what names beside it are apart.
_NAME_HEIGHT = 0.055
# Octaves that labels below an axis are apart.
_LABEL_WIDTH = 1.5
# Of the longest bar, below which a limit cannot be told from zero.
_LEAST_LIMIT = 0.01


@dataclass(frozen=True)
class Panel:
    """One workload, as a bar for each implementation and a line at what the GPU does at best.

    Attributes:
        title: the sizes.
        unit: of the values.
        values: by implementation; None for one that failed.
        limit: the value at the ceiling, None where that was not measured.
        limit_label: what it is.
    """

    title: str
    unit: str
    values: Mapping[str, float | None]
    limit: float | None
    limit_label: str


def files(results: Results) -> dict[str, str]:
    """The names of the figures that `draw` writes, by op: of each that has a size that was measured."""
    drawn = [op for op in entries.ops(results) if (_points(results) if op == "cross_entropy" else _panels(results, op))]
    return {op: f"{entries.slug(results['gpu'])}-{op}.png" for op in drawn}


def draw(results: Results, folder: Path) -> list[Path]:
    """Writes a figure for each op that has a size that was measured; the same results give the same bytes.

    Args:
        results: of one GPU, as `python -m benchmarks.gpu` writes them.
        folder: where the PNG files go, by the names of `files`; it is created.

    Raises:
        ImportError: matplotlib is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = files(results)
    for op, name in names.items():
        figure = curves(results) if op == "cross_entropy" else bars(results, op)
        # Without the version of matplotlib.
        figure.savefig(folder / name, dpi=_DPI, metadata={"Software": None})
    return [folder / name for name in names.values()]


def curves(results: Results) -> Figure:
    """cross_entropy: GB/s against the number of classes, under the bandwidth of a copy; forward, and with backward.

    Args:
        results: with a size of it that was measured.
    """
    points = _points(results)
    copy = _gigabytes(entries.ceiling(results, "copy"))
    directions = [backward for backward in (False, True) if any(row["backward"] == backward for row in points)]
    figure = _figure(results, "cross_entropy", 0.8 + 5.0 * len(directions), 4.4)
    panels = figure.subplots(1, len(directions), sharey=True, squeeze=False)[0]
    top = max([entries.gb_per_s(row) or 0.0 for row in points] + [copy or 0.0])
    for axes, backward in zip(panels, directions, strict=True):
        axes.set_ylim(0.0, 1.05 * top)
        _curves(axes, [row for row in points if row["backward"] == backward], copy)
        axes.set_title(f"forward{' + backward' * backward}", loc="left", fontsize="medium")
    panels[0].set_ylabel("GB/s")
    return figure


def bars(results: Results, op: str) -> Figure:
    """Another op, or training: a panel for each workload, of GB/s where bytes are counted and of ms elsewhere.

    Args:
        results: with a size of it that was measured.
        op: the name of the part.
    """
    panels = _panels(results, op)
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    most = max(len(panel.values) for panel in panels)
    figure = _figure(results, op, 5.4 * columns, 0.4 + rows * (1.0 + 0.28 * most))
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, panel in zip(grid, panels, strict=False):
        _bars(axes, panel)
    for axes in grid[len(panels) :]:
        axes.remove()
    return figure


def _points(results: Results) -> list[Row]:
    """What can be drawn of cross_entropy, by size."""
    rows = entries.part(results, "cross_entropy").values()
    told = {"implementation", "classes", "backward"}
    measured = [row for row in rows if told <= row.keys() and entries.gb_per_s(row)]
    return sorted(measured, key=lambda row: (row["classes"], row.get("rows", 0)))


def _panels(results: Results, op: str) -> list[Panel]:
    """The workloads of an op of which anything was measured."""
    panels = [
        _panel(results, entries.size(workload, op), implementations)
        for workload, implementations in entries.workloads(results, op).items()
    ]
    return [panel for panel in panels if any(panel.values.values())]


def _panel(results: Results, size: str, implementations: Mapping[str, Row]) -> Panel:
    names = sorted(implementations, key=_place)
    rows = {name: implementations[name] for name in names if entries.is_installed(implementations[name])}
    counts = next(iter(rows.values()), {})
    best = entries.ceiling(results, counts.get("ceiling"))
    title = size.replace(", forward", "\nforward")
    if "bytes" in counts:
        values = {name: entries.gb_per_s(row) for name, row in rows.items()}
        limit = _gigabytes(best)
        return Panel(title, "GB/s", values, limit, "" if limit is None else f"{counts['ceiling']}, {limit:,.0f}")
    values = {name: entries.milliseconds(row) for name, row in rows.items()}
    if best is None or "flops" not in counts:
        return Panel(title, "ms", values, None, "")
    limit = counts["flops"] / best * 1e3
    rate = entries.three_digits(best / 1e12)
    products = _PRODUCTS[counts.get("products", 3)]
    return Panel(title, "ms", values, limit, f"{products} at {rate} TFLOP/s, {entries.three_digits(limit)}")


def _curves(axes: Axes, rows: Sequence[Row], copy: float | None) -> None:
    """A line for each implementation, named at its right end."""
    ends = []
    for name in sorted({row["implementation"]: None for row in rows}, key=_place):
        own = [row for row in rows if row["implementation"] == name]
        ends.append(_line(axes, {row["classes"]: entries.gb_per_s(row) or 0.0 for row in own}, _style(name)))
    if copy is not None:
        _limit(axes.axhline, copy, "copy")
        ends.append((copy, Style(f"copy, {copy:,.0f}", _LIMIT_COLOUR, "")))
        if published := {row["classes"]: row["published_share"] * copy for row in rows if "published_share" in row}:
            ends.append(_line(axes, published, PUBLISHED, linestyle="", markersize=17, markeredgewidth=2))
    _name_ends(axes, ends)
    sizes = {row["classes"]: row.get("rows") for row in rows}
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(sizes), _size_labels(sizes))
    axes.minorticks_off()
    axes.set_xlabel("classes, and rows below")
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.grid(axis="y", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _line(axes: Axes, values: Mapping[int, float], style: Style, **options: Any) -> tuple[float, Style]:
    """Draws a line, ours below the thinner ones of others; returns where it ends."""
    options = {"markersize": 3.5 + style.width, "zorder": 4 - style.width / 10, **options}
    axes.plot(
        list(values),
        list(values.values()),
        color=style.colour,
        marker=style.marker,
        linewidth=style.width,
        label=style.label,
        **options,
    )
    return list(values.values())[-1], style


def _limit(draw_line: Callable[..., Any], value: float, label: str) -> None:
    draw_line(value, color=_LIMIT_COLOUR, linestyle="--", linewidth=1.3, label=label)


def _name_ends(axes: Axes, ends: Sequence[tuple[float, Style]]) -> None:
    """Names lines at the heights at which they end, the lower ones moved down until none covers another."""
    bottom, top = axes.get_ylim()
    place = math.inf
    for value, style in sorted(ends, key=lambda end: -end[0]):
        place = min((value - bottom) / (top - bottom), place - _NAME_HEIGHT)
        axes.text(
            1.015, place, style.label, color=style.colour, weight=style.weight, transform=axes.transAxes, va="center"
        )


def _size_labels(sizes: Mapping[int, int | None]) -> list[str]:
    """Rows below ascending numbers of classes: the largest, and nothing where it would cover the next."""
    labels: list[str] = []
    last = math.inf
    for classes, rows in reversed(list(sizes.items())):
        if has_room := math.log2(classes) <= last - _LABEL_WIDTH:
            last = math.log2(classes)
        labels.append("\n".join(_in_short(number) for number in (classes, rows) if number) if has_room else "")
    return labels[::-1]


def _in_short(number: int) -> str:
    """65536 as 64K; in full what is no multiple of 1024."""
    for unit, letter in ((1 << 20, "M"), (1 << 10, "K")):
        if number % unit == 0:
            return f"{number // unit}{letter}"
    return f"{number:,}"


def _bars(axes: Axes, panel: Panel) -> None:
    """The first on top, each with its number."""
    styles = [_style(name) for name in panel.values]
    lengths = [value or 0.0 for value in panel.values.values()]
    drawn = axes.barh(range(len(lengths)), lengths, height=0.74, color=[style.colour for style in styles])
    numbers = ["failed" if value is None else entries.three_digits(value) for value in panel.values.values()]
    # The line at the limit may run through them.
    axes.bar_label(drawn, numbers, padding=4, zorder=4, bbox={"facecolor": "white", "linewidth": 0, "pad": 1.0})
    unit, longest = panel.unit, max(lengths)
    if panel.limit is not None and panel.limit >= _LEAST_LIMIT * longest:
        _limit(axes.axvline, panel.limit, panel.limit_label)
        unit, longest = f"{unit} (dashed: {panel.limit_label})", max(longest, panel.limit)
    axes.set_xlim(0.0, 1.16 * longest)
    axes.set_yticks(range(len(lengths)), [style.label for style in styles])
    for label, style in zip(axes.get_yticklabels(), styles, strict=True):
        label.set_fontweight(style.weight)
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_formatter("{x:,g}")
    axes.set_xlabel(unit)
    axes.set_title(panel.title, loc="left", fontsize="medium")
    axes.spines[["top", "right"]].set_visible(False)


def _figure(results: Results, op: str, width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(width, _TITLE_INCHES), height), layout="constrained")
    figure.suptitle(f"{op} on {results['gpu']}", x=0.01, ha="left", fontsize="large")
    return figure


def _place(implementation: str) -> int:
    return list(STYLES).index(implementation) if implementation in STYLES else len(STYLES)


def _style(implementation: str) -> Style:
    return STYLES.get(implementation, Style(implementation, "#56b4e9", "X"))


def _gigabytes(per_second: float | None) -> float | None:
    return None if per_second is None else per_second / 1e9
