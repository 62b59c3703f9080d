"""Sweeps: what became of the loss of dev with each value of each option."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from charlm.plots._drawing import BLACK, BLUE, GREY, ORANGE, VERMILION, new_figure, tidy
from charlm.search_space import Range, Values, checked, is_logarithmic, value_shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Columns beside each other; more options are in further rows.
_COLUMNS = 4
# Values of a list that all have their number on the axis.
_MOST_TICKS = 8
# Of the distance between the best model and the median one: losses that are further above the best are at the edge.
_SHOWN_DISTANCES = 8.0
# Where models are that have no loss, as a share of the height.
_EDGE = 0.97

Records = Iterable[Mapping[str, Any]]


def sweep_chart(options: Mapping[str, Sequence[Any] | Range], results: Records, *, unit: str = "character") -> Figure:
    """The loss of dev of each model over the value that it has of each option that was swept, a column each.

    A line connects the means of the models that were trained to their end, where an option has a list of values. Models
    that were stopped are shown at the loss that they were stopped with, those that have diverged at the upper edge, and
    so are those far above the others.

    Args:
        options: what was swept, as in `charlm.SweepConfig`; empty where only seeds were.
        results: of the models, as `SweepResult.to_dict` has them, or results.jsonl.
        unit: what one token is.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: no model has a loss, or the options are not those of a sweep.
    """
    space = checked(options)
    records = [record for record in results if record["status"] == "diverged" or record["dev"] is not None]
    finite = [record for record in records if record["status"] != "diverged"]
    if not finite:
        raise ValueError("results must have a model with a loss of dev: there is nothing to draw")
    best = min(finite, key=lambda record: (record["status"] == "stopped", record["dev"], record["model"]))
    names = list(space) or ["seed"]
    rows = math.ceil(len(names) / _COLUMNS)
    columns = math.ceil(len(names) / rows)
    figure = new_figure(max(4.5, 0.8 + 2.9 * columns), 0.9 + 3.1 * rows)
    every = figure.subplots(rows, columns, sharey=True, squeeze=False)
    top = _highest(finite)
    for name, axes in zip(names, every.flat, strict=False):
        axis = _Axis(axes, name, space.get(name, tuple(sorted({record["seed"] for record in records}))))
        places = {record["model"]: axis.place(_value(record, name)) for record in records}
        _draw(axes, records, best, places, top, isinstance(space.get(name), tuple))
    for axes in every.flat[len(names) :]:
        axes.set_visible(False)
    for axes in every[:, 0]:
        axes.set_ylabel(f"loss of dev (nats per {unit})")
    handles = {
        line.get_label(): line
        for axes in every.flat
        for line in axes.get_lines()
        if not str(line.get_label()).startswith("_")
    }
    figure.legend(
        handles=list(handles.values()), loc="outside lower center", ncols=max(2, columns + 1), frameon=False, fontsize=9
    )
    figure.suptitle(f"Loss of dev by option; the best model: {best['dev']:.4f}", fontsize=11)
    return figure


class _Axis:
    """The horizontal axis of an option: numbers where they are, or places for words."""

    def __init__(self, axes: Axes, name: str, values: Values) -> None:
        axes.set_xlabel(name.replace("_", " "))
        self._places: dict[Any, int] | None = None
        if not isinstance(values, tuple):
            if is_logarithmic(name, values):
                axes.set_xscale("log")
            return
        numbers = all(isinstance(value, (int, float)) for value in values) and name != "seed"
        if numbers and is_logarithmic(name, values):
            axes.set_xscale("log")
        if not numbers:
            self._places = {value: i for i, value in enumerate(values)}
            axes.set_xlim(-0.5, len(values) - 0.5)
        if len(values) <= _MOST_TICKS:
            ticks = [self.place(value) for value in values]
            axes.set_xticks(ticks, [value_shown(value) for value in values], fontsize=9)
            axes.minorticks_off()

    def place(self, value: Any) -> float:
        """Where a value is on the axis."""
        return float(value) if self._places is None else float(self._places[value])


def _draw(
    axes: Axes,
    records: Sequence[Mapping[str, Any]],
    best: Mapping[str, Any],
    places: Mapping[int, float],
    top: float,
    is_list: bool,
) -> None:
    """The models, each at its place by its number, and the mean of those at the same place where values are a list."""
    done = [record for record in records if record["status"] in ("done", "training")]
    stopped = [record for record in records if record["status"] == "stopped"]
    lost = [record for record in records if record["status"] == "diverged"]
    low = min(record["dev"] for record in (*done, *stopped))
    margin = 0.06 * max(top - low, 1e-3)
    axes.set_ylim(low - margin, top + margin)
    means: dict[float, list[float]] = {}
    for record in done:
        means.setdefault(places[record["model"]], []).append(record["dev"])
    if is_list and means:
        line = [(x, statistics.fmean(losses)) for x, losses in sorted(means.items())]
        axes.plot(*zip(*line, strict=True), "-", color=BLACK, linewidth=1.2, zorder=2, label="mean")
    for label, some, marker, colour, fill in (
        ("trained to the end", done, "o", BLUE, BLUE),
        ("stopped", stopped, "s", ORANGE, "none"),
    ):
        inside = [record for record in some if record["dev"] <= top]
        if inside:
            xs, ys = [places[record["model"]] for record in inside], [record["dev"] for record in inside]
            axes.plot(xs, ys, marker, color=colour, markersize=5, markerfacecolor=fill, label=label, zorder=3)
    edge = axes.get_xaxis_transform()
    above = [record for record in (*done, *stopped) if record["dev"] > top]
    for label, some, marker in (("far above", above, "^"), ("diverged", lost, "x")):
        if some:
            xs = [places[record["model"]] for record in some]
            axes.plot(xs, [_EDGE] * len(xs), marker, color=GREY, markersize=6, transform=edge, label=label, zorder=3)
    at = places[best["model"]], best["dev"]
    axes.plot(*at, "*", color=VERMILION, markersize=13, label="the best", zorder=4, clip_on=False)
    axes.grid(alpha=0.3)
    tidy(axes)


def _highest(finite: Sequence[Mapping[str, Any]]) -> float:
    """The highest loss inside the picture."""
    losses = [record["dev"] for record in finite]
    limit = min(losses) + _SHOWN_DISTANCES * (statistics.median(losses) - min(losses))
    return max(loss for loss in losses if loss <= limit)


def _value(record: Mapping[str, Any], name: str) -> Any:
    """What a model has of an option; JSON has lists for pairs."""
    value = record["options"][name] if name in record["options"] else record[name]
    return tuple(value) if isinstance(value, list) else value
