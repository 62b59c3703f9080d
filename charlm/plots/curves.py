"""Loss curves of runs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from charlm.plots._drawing import COLOURS, MARKERS, new_figure, tidy
from charlm.plots._labels import fonts, printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Records = Iterable[Mapping[str, Any]]
_DASHES = ("-", "--", ":", "-.")
# Markers of dev that a line has at most.
_MARKERS_ON_A_LINE = 15


def loss_curve(runs: Records | Mapping[str, Records], *, unit: str = "character", log_steps: bool = False) -> Figure:
    """Train and dev loss of a run, or of several, against the step; a loss that was not finite leaves a gap.

    The loss of train is that of the batches, averaged between two records; the legend has the last values.

    Args:
        runs: records of a run, as from `charlm.checkpoint.read_metrics`, each with "step", and "loss" or "dev" or both;
            or those of several runs by name.
        unit: what one token is.
        log_steps: a logarithmic axis, on which the first steps of a long run can be seen.

    Raises:
        ImportError: matplotlib is not installed.
    """
    by_name = {printable(name): list(records) for name, records in runs.items()} if isinstance(runs, Mapping) else None
    by_name = {"": list(runs)} if by_name is None else by_name
    figure = new_figure(8.0, 4.8 + 0.2 * len(by_name))
    axes = figure.add_subplot()
    lines = []
    for key, split in (("loss", "train"), ("dev", "dev")):
        for i, (name, records) in enumerate(by_name.items()):
            points = [(record["step"], record[key]) for record in records if key in record]
            losses = [math.nan if loss is None else loss for _, loss in points]
            style: dict[str, Any] = {"color": COLOURS[i % len(COLOURS)], "linestyle": _dash(i), "linewidth": 0.9}
            # As wide as the line: a loss between two that are not finite is seen.
            style |= {"marker": ".", "markersize": 1.5}
            if key == "dev":
                style |= {"marker": MARKERS[i % len(MARKERS)], "markersize": 5, "linewidth": 1.4}
                every = 1 + len(points) // _MARKERS_ON_A_LINE
                style["markevery"] = ((len(points) - 1) % every if points else 0, every)
            (line,) = axes.plot([step for step, _ in points], losses, **style)
            line.set_label(f"{name + ': ' if name else ''}{split} {_last(losses)}")
            lines.append(line)
    axes.set(xlabel="training steps", ylabel=f"loss (nats per {unit})", title="Loss; thin: training batches, dots: dev")
    if log_steps:
        axes.set_xscale("log")
        axes.minorticks_off()
    else:
        axes.locator_params(axis="x", integer=True)
        last = max((record["step"] for records in by_name.values() for record in records), default=0)
        axes.set_xlim(0.0, 1.02 * max(1, last))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.grid(alpha=0.3)
    tidy(axes)
    # In columns: train on the left, dev on the right. Beneath the axes, where there is no curve.
    figure.legend(
        handles=lines,
        loc="outside lower center",
        ncols=2,
        frameon=False,
        prop={"family": fonts(list(by_name)), "size": 9},
    )
    return figure


def _dash(i: int) -> str:
    """Runs of one colour, from the eighth on, have another dash."""
    return _DASHES[i // len(COLOURS) % len(_DASHES)]


def _last(losses: list[float]) -> str:
    if not losses:
        return "-"
    return f"{losses[-1]:.4f}" if math.isfinite(losses[-1]) else "not finite"
