"""The page and the figures of a GPU's results, on results that are made up."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Iterator
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from benchmarks.gpu import figures, page

FACTS = {
    "gpu": "A GPU",
    "commit": "abc",
    "date": "2026-01-01",
    "versions": {"charlm": "1.0", "torch": "2.13.0", "python": "3.12.3"},
    "cuda": "13.0",
    "driver": "580.65",
    "machine": {"processor": "A processor", "cores": 16, "platform": "Linux"},
    "command": "python -m benchmarks.gpu --minutes 9",
}
OPS = ["cross_entropy", "linear_cross_entropy", "embedding_linear", "mlp_cross_entropy", "training"]
CEILINGS = {
    "copy": {"bytes_per_s": 2e12},
    "write": {"bytes_per_s": 4e12},
    "bf16 product": {"flops_per_s": 1.2e15},
    "float32 product": {"error": "RuntimeError: too little memory"},
}
NOT_INSTALLED = {"error": "not installed: No module named 'quack'"}
MEMORY = {"error": "OutOfMemoryError: CUDA out of memory."}


def timed(microseconds: float) -> dict[str, float]:
    seconds = microseconds / 1e6
    return {"call_s": 2 * seconds, "median_s": seconds, "memory_bytes": 3_000_000, "difference": 0.0015, "took_s": 1.5}


def compared(workload: str, counts: dict[str, Any], measured: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Entries of one workload, by implementation."""
    return {
        f"{workload}: {name}": {"workload": workload, "implementation": name, **counts, **entry}
        for name, entry in measured.items()
    }


def cross_entropy(rows: int, classes: int, backward: bool, measured: dict[str, dict[str, Any]]) -> dict[str, Any]:
    name = f"cross_entropy N={rows:,} C={classes:,}, forward{' + backward' * backward}"
    counts = {"bytes": 10**9, "ceiling": "copy", "rows": rows, "classes": classes, "backward": backward}
    published = {} if backward or classes == 27 else {"published_share": 0.5}
    return compared(name, {**counts, **published}, measured)


def everything() -> dict[str, Any]:
    """What a whole run leaves, with a failure of every kind."""
    return {
        **FACTS,
        "parts": {
            "machine": {"nvidia-smi": {"power limit": "700 W", "clock_mhz": 1980, "took_s": 0.1}},
            "smoke": {
                "capture": {"took_s": 0.5},
                "mlp | float16": {"error": "AssertionError: <Tensor>\n`x`[0] | *nan*", "took_s": 0.5},
            },
            "risky": {"tiles": {"took_s": 0.5}, "2^31 elements": {"skipped": "too little memory"}},
            "ceilings": copy.deepcopy(CEILINGS),
            "cross_entropy": {
                # Not in the order of their sizes.
                **cross_entropy(4, 65536, False, {"charlm": timed(600), "eager": timed(1200), "liger": timed(900)}),
                **cross_entropy(8, 27, False, {"eager": timed(2000), "charlm": timed(1000), "quack": NOT_INSTALLED}),
                **cross_entropy(4, 1024, False, {"charlm": timed(800), "eager": MEMORY, "liger": timed(700)}),
                **cross_entropy(4, 1024, True, {"charlm": timed(625)}),
            },
            "linear_cross_entropy": compared(
                "linear_cross_entropy N=2 D=3 C=4, forward + backward",
                {"flops": 12 * 10**12, "ceiling": "bf16 product", "rows": 2, "features": 3, "classes": 4},
                {"eager": MEMORY, "charlm": timed(12_500), "cce": timed(20_000), "quack": NOT_INSTALLED},
            ),
            "embedding_linear": compared(
                "embedding_linear N=2 T=3 float32, forward",
                {"bytes": 10**9, "ceiling": "write", "rows": 2, "backward": False},
                {"eager": timed(1000), "charlm": timed(500)},
            )
            | compared(
                "embedding_linear N=2 T=3 float32, forward + backward",
                {"bytes": 10**9, "ceiling": "copy", "rows": 2, "backward": True},
                {"eager": timed(1000), "charlm": {"error": "RuntimeError: wrong | worse"}},
            ),
            "mlp_cross_entropy": compared(
                "mlp_cross_entropy N=2, forward + backward",
                {"flops": 10**9, "ceiling": "float32 product", "examples": 2, "rows": 2},
                {"charlm": timed(50), "eager": timed(100), "compile": timed(80)},
            ),
            "training": compared(
                "training steps of makemore: batches of 32, sgd",
                {"examples": 32},
                {"eager": {"call_s": 4e-3}, "ops": {"call_s": 1e-3, "difference": 0.0}},
            ),
            "ncu": {
                "ncu wide": {
                    "kernels": [
                        {"kernel": "wide_rows<float>", "duration_s": 7e-4, "dram_percent": 91.4},
                        {"kernel": "reduce_parts", "duration_s": 2e-6, "occupancy_percent": 50.0},
                    ],
                    "took_s": 9,
                },
                "ncu narrow": {"error": "ERR_NVGPUCTRPERM", "took_s": 2},
            },
            "tests": {
                "tests": {
                    "commands": {
                        "tests": {
                            "exit_status": 1,
                            "last_lines": ["..F", "FAILED tests/test_x.py::test_y[a|b] - assert 1 == 2", "1 failed"],
                        }
                    }
                }
            },
            "sanitizer": {
                "sanitizer": {
                    "commands": {
                        "memcheck": {"exit_status": 0, "last_lines": ["====== ERROR SUMMARY: 0 errors"]},
                        "racecheck": {"exit_status": 124, "note": "ran out of time", "last_lines": []},
                    }
                }
            },
        },
    }


def section(text: str, heading: str) -> list[str]:
    """The lines below a heading."""
    (found,) = [part for part in text.split("\n## ")[1:] if part.startswith(f"{heading}\n")]
    return found.rstrip("\n").splitlines()[2:]


def cells(line: str) -> list[str]:
    return line.strip("| ").split(" | ")


def test_the_page_says_what_was_measured_where_and_how() -> None:
    lines = page.render(everything()).splitlines()
    assert lines[:3] == [
        "# A GPU",
        "",
        "charlm 1.0, commit abc, torch 2.13.0, Python 3.12.3, CUDA 13.0, driver 580.65; A processor, 16 cores; Linux; "
        "2026-01-01; `python -m benchmarks.gpu --minutes 9`",
    ]
    assert [line for line in lines if line.startswith("## ")] == [
        f"## {name}" for name in ("Summary", "Correctness", "Ceilings", "Figures", *OPS, "Profile", "Machine")
    ]


def test_what_matters_comes_first() -> None:
    heading, rule, *rows = section(page.render(everything()), "Summary")
    assert cells(heading) == [
        *("workload", "charlm", "x eager", "of the ceiling", "quack, published", "best peer", "x best peer")
    ]
    assert set(rule) == set("| -")
    assert [row.strip("| ").split(" | ", 1) for row in rows] == [
        ["cross_entropy N=4 C=65,536, forward", "600 µs | 2.00 | 83% of copy | 50% | liger, 900 µs | 1.50"],
        ["cross_entropy N=8 C=27, forward", "1 ms | 2.00 | 50% of copy | - | not measured | not measured"],
        ["cross_entropy N=4 C=1,024, forward", "800 µs | eager failed | 62% of copy | 50% | liger, 700 µs | 0.88"],
        [
            "cross_entropy N=4 C=1,024, forward + backward",
            "625 µs | not measured | 80% of copy | - | not measured | not measured",
        ],
        [
            "linear_cross_entropy N=2 D=3 C=4, forward + backward",
            "12.5 ms | eager failed | 80% of bf16 product | - | cce, 20 ms | 1.60",
        ],
        ["embedding_linear N=2 T=3 float32, forward", "500 µs | 2.00 | 50% of write | - | not measured | not measured"],
        [
            "embedding_linear N=2 T=3 float32, forward + backward",
            "failed | not measured | not measured | - | not measured | not measured",
        ],
        ["mlp_cross_entropy N=2, forward + backward", "50 µs | 2.00 | not measured | - | compile, 80 µs | 1.60"],
        ["training steps of makemore: batches of 32, sgd", "1 ms | 4.00 | - | - | not measured | not measured"],
    ]


def test_what_failed_is_said_exactly_and_escaped() -> None:
    text = page.render(everything())
    assert section(text, "Correctness") == [
        "- smoke: 1 of 2 passed",
        r"  - mlp &#124; float16: AssertionError: &lt;Tensor&gt; \`x\`\[0\] &#124; \*nan\*",
        "- risky: 1 of 2 passed",
        "  - 2^31 elements: too little memory",
        "- tests: FAILED; 1 failed",
        r"  - FAILED tests/test_x.py::test_y\[a&#124;b\] - assert 1 == 2",
        "- memcheck: passed; ERROR SUMMARY: 0 errors",
        "- racecheck: FAILED; ran out of time",
        "- charlm in embedding_linear N=2 T=3 float32, forward + backward: RuntimeError: wrong &#124; worse",
        "- charlm's relative difference from eager: at most 1.5e-03, in cross_entropy N=4 C=65,536, forward",
    ]
    assert section(text, "Ceilings") == [
        "- copy: 2,000 GB/s",
        "- write: 4,000 GB/s",
        "- bf16 product: 1,200 TFLOP/s",
        "- float32 product: RuntimeError: too little memory",
    ]


def test_many_failed_tests_are_counted() -> None:
    failed = [f"FAILED tests/test_x.py::test_{number}" for number in range(13)]
    run = {"exit_status": 1, "last_lines": [*failed, "13 failed"]}
    text = page.render({**FACTS, "parts": {"tests": {"tests": {"commands": {"tests": run}}}}})
    lines = section(text, "Correctness")
    start = lines.index("- tests: FAILED; 13 failed") + 1
    assert lines[start : start + 11] == [*(f"  - {line}" for line in failed[:10]), "  - and 3 more"]


def test_tables_have_every_measurement() -> None:
    text = page.render(everything())
    heading, _, *rows = section(text, "cross_entropy")
    assert cells(heading) == [
        *("workload", "implementation", "GPU time", "a call", "x eager", "rate", "of the ceiling", "quack, published"),
        *("memory", "difference"),
    ]
    assert len(rows) == 10
    name = "cross_entropy N=4 C=65,536, forward"
    rest = ["3 MB", "1.5e-03"]
    assert [cells(row) for row in rows[:3]] == [
        [name, "charlm", "600 µs", "1.2 ms", "2.00", "1,667 GB/s", "83% of copy", "50%", *rest],
        [name, "eager", "1.2 ms", "2.4 ms", "1.00", "833 GB/s", "42% of copy", "50%", *rest],
        [name, "liger", "900 µs", "1.8 ms", "1.33", "1,111 GB/s", "56% of copy", "50%", *rest],
    ]
    assert cells(rows[5])[1:] == ["quack", "not installed: No module named 'quack'", *"-------"]
    assert cells(rows[7])[1:] == ["eager", "OutOfMemoryError: CUDA out of memory.", *"----", "50%", "-", "-"]
    # Without a column of speedups, as eager failed.
    rest = ["12.5 ms", "25 ms", "960 TFLOP/s", "80% of bf16 product", "3 MB", "1.5e-03"]
    assert cells(section(text, "linear_cross_entropy")[3])[1:] == ["charlm", *rest]
    assert section(text, "training") == [
        "| workload | implementation | a call | x eager | examples/s | difference |",
        "| --- | --- | --- | --- | --- | --- |",
        "| training steps of makemore: batches of 32, sgd | eager | 4 ms | 1.00 | 8,000 | - |",
        "| training steps of makemore: batches of 32, sgd | ops | 1 ms | 4.00 | 32,000 | 0.0e+00 |",
    ]
    assert section(text, "Profile") == [
        "| call | kernel | duration | dram percent | occupancy percent |",
        "| --- | --- | --- | --- | --- |",
        "| ncu wide | wide_rows&lt;float&gt; | 700 µs | 91.4 | - |",
        "| ncu wide | reduce_parts | 2 µs | - | 50 |",
        "",
        "- ncu narrow: ERR_NVGPUCTRPERM",
    ]
    assert section(text, "Machine") == ["- nvidia-smi: power limit 700 W, clock mhz 1980"]


def test_figures_are_named_by_their_files() -> None:
    assert section(page.render({**everything(), "gpu": "NVIDIA H100 (80 GB)"}), "Figures") == [
        "![cross_entropy](nvidia-h100-80-gb-cross_entropy.png)",
        "",
        "![linear_cross_entropy](nvidia-h100-80-gb-linear_cross_entropy.png)",
        "",
        "![embedding_linear](nvidia-h100-80-gb-embedding_linear.png)",
        "",
        "![mlp_cross_entropy](nvidia-h100-80-gb-mlp_cross_entropy.png)",
        "",
        "![training](nvidia-h100-80-gb-training.png)",
    ]


def test_only_ceilings(tmp_path: Path) -> None:
    results = {"gpu": "A GPU", "commit": None, "parts": {"ceilings": {"copy": {"bytes_per_s": 2e12}}}}
    text = page.render(results)
    assert section(text, "Ceilings") == [
        "- copy: 2,000 GB/s",
        "- write: not measured",
        "- bf16 product: not measured",
        "- float32 product: not measured",
    ]
    assert section(text, "Correctness") == [
        f"- {name}: not measured"
        for name in ("smoke", "risky", "tests", "sanitizer", "charlm's relative difference from eager")
    ]
    for heading in ("Summary", "Figures", *OPS, "Profile", "Machine"):
        assert section(text, heading) == ["not measured"]
    assert text.startswith("# A GPU\n")
    assert "commit" not in text
    assert figures.draw(results, tmp_path) == list(tmp_path.iterdir()) == []


def test_parts_that_were_not_reached_are_named() -> None:
    results = everything()
    for part in ("embedding_linear", "training"):
        del results["parts"][part]
    assert section(page.render(results), "Summary")[-2:] == ["", "Not measured: embedding_linear, training."]


def test_an_op_that_is_new_is_on_the_page() -> None:
    results = everything()
    counts = {"bytes": 10**9, "ceiling": "copy"}
    results["parts"]["other"] = compared("other N=2, forward", counts, {"charlm": timed(1000)})
    text = page.render(results)
    assert "| other N=2, forward | charlm | 1 ms | 2 ms | 1,000 GB/s | 50% of copy | 3 MB | 1.5e-03 |" in text
    assert "![other](a-gpu-other.png)" in section(text, "Figures")
    (axes,) = figures.bars(results, "other").axes
    assert bars_of(axes) == {"charlm": (1000.0, "1,000")}


def damaged(entries_of_each: int | None = None) -> Iterator[dict[str, Any]]:
    """Results that lack one thing each: a fact, a part, an entry, a number in one; or whose clock stood still."""
    for name in FACTS.keys() - {"gpu"}:
        yield {key: value for key, value in everything().items() if key != name}
    for part, found in everything()["parts"].items():
        results = everything()
        del results["parts"][part]
        yield results
        for task, entry in islice(found.items(), entries_of_each):
            results = everything()
            del results["parts"][part][task]
            yield results
            for key in entry:
                results = everything()
                del results["parts"][part][task][key]
                yield results
            for key in {"median_s", "call_s", "bytes_per_s"} & entry.keys():
                results = everything()
                results["parts"][part][task][key] = 0.0
                yield results
            results = everything()
            results["parts"][part][task] = {"error": "the run ended while this ran"}
            yield results


def test_no_page_breaks_for_what_is_missing() -> None:
    found = list(damaged())
    assert len(found) > 200
    for results in found:
        drawn = figures.files(results)
        assert section(page.render(results), "Figures")[::2] == [f"![{op}]({name})" for op, name in drawn.items()]


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
    assert bars_of(axes) == {"charlm": (1.0, "1"), "eager": (4.0, "4")}
    assert axes.get_title(loc="left") == "makemore: batches of 32, sgd"


def test_an_implementation_has_one_colour() -> None:
    assert len({style.colour for style in figures.STYLES.values()} | {figures.PUBLISHED.colour}) == 8
    drawn: dict[str, set[Any]] = {}
    for axes in figures.curves(everything()).axes:
        for line in axes.get_lines():
            drawn.setdefault(str(line.get_label()), set()).add(to_rgba(line.get_color()))
    for op in OPS[1:]:
        for axes in figures.bars(everything(), op).axes:
            for label, bar in zip(axes.get_yticklabels(), axes.patches, strict=True):
                drawn.setdefault(label.get_text(), set()).add(bar.get_facecolor())
    assert drawn["charlm"] == {to_rgba(figures.STYLES["charlm"].colour)}
    assert drawn.keys() == {"charlm", "Liger", "CCE", "torch.compile", "eager", "copy", figures.PUBLISHED.label}
    assert all(len(colours) == 1 for colours in drawn.values())


def test_an_implementation_without_a_style_is_drawn_last() -> None:
    results = everything()
    found = results["parts"]["training"]
    name = "training steps of makemore: batches of 32, sgd"
    results["parts"]["training"] = compared(name, {}, {"new": {"call_s": 2e-3}}) | found
    (axes,) = figures.bars(results, "training").axes
    assert list(bars_of(axes)) == ["charlm", "eager", "new"]


def test_the_command_writes_the_page_and_the_same_figures_each_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a-gpu.json"
    path.write_text(json.dumps(everything()))
    pictures = []
    for _ in range(2):
        page.main([str(path)])
        pictures.append({found.name: found.read_bytes() for found in tmp_path.glob("*.png")})
    assert capsys.readouterr().out == f"{tmp_path / 'a-gpu.md'}\n" * 2
    assert path.with_suffix(".md").read_text() == page.render(everything())
    assert pictures[0] == pictures[1]
    assert pictures[0].keys() == {f"a-gpu-{op}.png" for op in OPS}
    for picture in pictures[0].values():
        assert picture.startswith(b"\x89PNG")
        # Neither a date nor a version.
        assert b"tEXt" not in picture[:200]


def test_without_matplotlib_the_page_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    path = tmp_path / "a-gpu.json"
    path.write_text(json.dumps(everything()))
    with pytest.raises(ImportError):
        page.write(path)
    assert path.with_suffix(".md").read_text() == page.render(everything())


def test_a_wrong_result_is_called_so_and_is_no_peer() -> None:
    timed = {"workload": "w", "bytes": 900, "ceiling": "copy"}
    part = {
        "a": {**timed, "implementation": "charlm", "median_s": 2e-6, "difference": 0.03},
        "b": {**timed, "implementation": "liger", "median_s": 1e-6, "difference": 0.5},
        "c": {**timed, "implementation": "quack", "median_s": 4e-6, "difference": 0.001},
    }
    text = page.render({**FACTS, "parts": {"cross_entropy": part}})
    assert cells(section(text, "Summary")[2])[-2:] == ["quack, 4 µs", "2.00"]
    assert cells(section(text, "cross_entropy")[2])[-1] == "3.0e-02, WRONG"
    assert "- charlm's relative difference from eager: at most 3.0e-02, WRONG, in w" in section(text, "Correctness")
