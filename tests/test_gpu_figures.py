"""The figures of a GPU's results, on results that are made up."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from gpu_results import OPS, compared, cross_entropy, damaged, everything, timed
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from benchmarks.gpu import figures


def test_no_figure_breaks_for_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is drawn once from the parts that it shows, and none is written."""
    monkeypatch.setattr(Figure, "savefig", lambda *_, **__: None)
    drawn = set()
    for results in damaged(entries_of_each=1):
        for op in figures.files(results):
            shown = {part: results["parts"].get(part, {}) for part in ("ceilings", op)}
            for entry in shown[op].values():
                for key in ("memory_bytes", "difference", "took_s"):
                    entry.pop(key, None)
            if (op, json.dumps(shown)) not in drawn:
                drawn.add((op, json.dumps(shown)))
                assert figures.draw({"gpu": "A GPU", "parts": shown}, tmp_path) == [tmp_path / f"a-gpu-{op}.png"]
    assert len(drawn) > 30


def lines_of(axes: Any) -> dict[str, tuple[list[float], list[float]]]:
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.get_lines()}


def test_cross_entropy_is_drawn_as_rates_against_classes() -> None:
    forward, backward = figures.curves(everything()).axes
    assert [axes.get_title(loc="left") for axes in (forward, backward)] == ["forward", "forward + backward"]
    assert lines_of(forward) == {
        "charlm": ([27, 1024, 65536], [1000.0, 1250.0, pytest.approx(1e4 / 6)]),
        "Liger": ([1024, 65536], [pytest.approx(1e4 / 7), pytest.approx(1e4 / 9)]),
        "eager": ([27, 65536], [500.0, pytest.approx(1e4 / 12)]),
        "copy": ([0, 1], [2000.0, 2000.0]),
        "quack, published": ([1024, 65536], [1000.0, 1000.0]),
    }
    assert lines_of(backward) == {"charlm": ([1024], [1600.0]), "copy": ([0, 1], [2000.0, 2000.0])}
    assert forward.get_ylabel() == "GB/s"
    assert forward.get_xscale() == "log"
    assert [label.get_text() for label in forward.get_xticklabels()] == ["27\n8", "1K\n4", "64K\n4"]
    # Each is named, the fastest on top, and no name covers another.
    names = sorted(forward.texts, key=lambda text: -text.get_position()[1])
    assert [text.get_text() for text in names] == [*("copy, 2,000", "charlm", "Liger", "quack, published", "eager")]
    heights = [text.get_position()[1] for text in names]
    assert all(above - below >= 0.054 for above, below in pairwise(heights))


def test_without_a_copy_or_a_direction_there_is_none_of_it() -> None:
    results = everything()
    del results["parts"]["ceilings"]["copy"]
    found = results["parts"]["cross_entropy"]
    results["parts"]["cross_entropy"] = {name: entry for name, entry in found.items() if not entry["backward"]}
    (axes,) = figures.curves(results).axes
    assert list(lines_of(axes)) == ["charlm", "Liger", "eager"]


def test_names_of_sizes_leave_each_other_room() -> None:
    results = everything()
    sizes = {27: 1 << 20, 256: 32768, 16384: 32768, 32768: 32768, 50257: 32768, 65536: 32768, 131072: 16384}
    results["parts"]["cross_entropy"] = {}
    for classes, rows in sizes.items():
        results["parts"]["cross_entropy"].update(cross_entropy(rows, classes, False, {"charlm": timed(600)}))
    (axes,) = figures.curves(results).axes
    assert list(axes.get_xticks()) == list(sizes)
    written = [label.get_text() for label in axes.get_xticklabels()]
    assert written == ["27\n1M", "256\n32K", "", "32K\n32K", "", "", "128K\n16K"]


def bars_of(axes: Any) -> dict[str, tuple[float, str]]:
    """The lengths of bars and what is written at their ends, by name, from top to bottom."""
    names = [label.get_text() for label in axes.get_yticklabels()]
    said = [text.get_text() for text in axes.texts]
    (drawn,) = axes.containers
    assert axes.yaxis_inverted()
    return {name: (bar.get_width(), number) for name, bar, number in zip(names, drawn.patches, said, strict=True)}


def limits_of(axes: Any) -> list[float]:
    return [line.get_xdata()[0] for line in axes.get_lines()]


def test_linear_cross_entropy_is_drawn_as_times_above_those_of_its_products() -> None:
    (axes,) = figures.bars(everything(), "linear_cross_entropy").axes
    # What is not installed is left out.
    assert bars_of(axes) == {"charlm": (12.5, "12.5"), "CCE": (20.0, "20"), "eager": (0.0, "failed")}
    assert limits_of(axes) == [10.0]
    assert axes.get_title(loc="left") == "N=2 D=3 C=4\nforward + backward"
    assert axes.get_xlabel() == "ms (dashed: three products at 1,200 TFLOP/s, 10)"


def test_linear_log_probs_is_drawn_as_times_above_those_of_as_many_products_as_it_takes() -> None:
    (axes,) = figures.bars(everything(), "linear_log_probs").axes
    assert bars_of(axes) == {"charlm": (4.0, "4"), "eager": (20.0, "20")}
    assert axes.get_xlabel() == "ms (dashed: one product at 1,200 TFLOP/s, 3.33)"


def test_embedding_linear_is_drawn_as_rates_below_those_of_a_write_and_of_a_copy() -> None:
    forward, backward = figures.bars(everything(), "embedding_linear").axes
    assert bars_of(forward) == {"charlm": (2000.0, "2,000"), "eager": (1000.0, "1,000")}
    assert bars_of(backward) == {"charlm": (0.0, "failed"), "eager": (1000.0, "1,000")}
    assert [limits_of(axes) for axes in (forward, backward)] == [[4000.0], [2000.0]]
    assert forward.get_xlabel() == "GB/s (dashed: write, 4,000)"
    assert forward.get_xlim()[1] > 4000.0


def test_where_no_ceiling_was_measured_there_is_no_line() -> None:
    (axes,) = figures.bars(everything(), "mlp_cross_entropy").axes
    assert bars_of(axes) == {
        "charlm": (pytest.approx(0.05), "0.05"),
        "torch.compile": (pytest.approx(0.08), "0.08"),
        "eager": (pytest.approx(0.1), "0.1"),
    }
    assert (limits_of(axes), axes.get_xlabel()) == ([], "ms")
    # Nor where it could not be told from zero.
    results = everything()
    results["parts"]["ceilings"]["float32 product"] = {"flops_per_s": 2e15}
    (axes,) = figures.bars(results, "mlp_cross_entropy").axes
    assert (limits_of(axes), axes.get_xlabel()) == ([], "ms")


def test_training_is_drawn_as_times_of_steps() -> None:
    (axes,) = figures.bars(everything(), "training").axes
    assert bars_of(axes) == {
        "charlm, fused": (0.5, "0.5"),
        "charlm, ops": (1.0, "1"),
        "eager in a graph": (2.0, "2"),
        "eager": (4.0, "4"),
    }
    assert axes.get_title(loc="left") == "makemore: batches of 32, sgd"


def test_an_implementation_has_one_colour() -> None:
    assert len({style.colour for style in figures.STYLES.values()} | {figures.PUBLISHED.colour}) == 10
    drawn: dict[str, set[Any]] = {}
    for axes in figures.curves(everything()).axes:
        for line in axes.get_lines():
            drawn.setdefault(str(line.get_label()), set()).add(to_rgba(line.get_color()))
    for op in OPS[1:]:
        for axes in figures.bars(everything(), op).axes:
            for label, bar in zip(axes.get_yticklabels(), axes.patches, strict=True):
                drawn.setdefault(label.get_text(), set()).add(bar.get_facecolor())
    assert drawn["charlm"] == {to_rgba(figures.STYLES["charlm"].colour)}
    of_ops = {"charlm", "Liger", "CCE", "torch.compile", "eager", "copy", figures.PUBLISHED.label}
    assert drawn.keys() == of_ops | {"charlm, fused", "charlm, ops", "eager in a graph"}
    assert all(len(colours) == 1 for colours in drawn.values())


def test_an_implementation_without_a_style_is_drawn_last() -> None:
    results = everything()
    found = results["parts"]["training"]
    name = "training steps of makemore: batches of 32, sgd"
    results["parts"]["training"] = compared(name, {}, {"new": {"call_s": 2e-3}}) | found
    (axes,) = figures.bars(results, "training").axes
    assert list(bars_of(axes)) == ["charlm, fused", "charlm, ops", "eager in a graph", "eager", "new"]
