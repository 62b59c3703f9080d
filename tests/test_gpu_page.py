"""The page of a GPU's results, on results that are made up."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from gpu_results import FACTS, OPS, compared, damaged, everything, timed

from benchmarks.gpu import figures, page


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
        [
            "linear_log_probs N=2 D=3 C=4, forward",
            "4 ms | 5.00 | 83% of bf16 product | - | not measured | not measured",
        ],
        ["embedding_linear N=2 T=3 float32, forward", "500 µs | 2.00 | 50% of write | - | not measured | not measured"],
        [
            "embedding_linear N=2 T=3 float32, forward + backward",
            "failed | not measured | not measured | - | not measured | not measured",
        ],
        ["mlp_cross_entropy N=2, forward + backward", "50 µs | 2.00 | not measured | - | compile, 80 µs | 1.60"],
        ["training steps of makemore: batches of 32, sgd", "500 µs | 8.00 | - | - | eager graph, 2 ms | 4.00"],
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
        "| workload | implementation | a call | x eager | asked | examples/s | difference |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        "| training steps of makemore: batches of 32, sgd | eager | 4 ms | 1.00 | - | 8,000 | - |",
        "| training steps of makemore: batches of 32, sgd | eager graph | 2 ms | 2.00 | - | 16,000 | - |",
        "| training steps of makemore: batches of 32, sgd | ops | 1 ms | 4.00 | - | 32,000 | 0.0e+00 |",
        "| training steps of makemore: batches of 32, sgd | fused | 500 µs | 8.00 | at most 10 µs | 64,000 | 0.0e+00 |",
        "",
        "- makemore: 132 models: models 132, steps per s 12500000.0, call s 1e-05",
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
        "![linear_log_probs](nvidia-h100-80-gb-linear_log_probs.png)",
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
    assert [label.get_text() for label in axes.get_yticklabels()] == ["charlm"]
    assert [bar.get_width() for bar in axes.patches] == [pytest.approx(1000.0)]


def test_no_page_breaks_for_what_is_missing() -> None:
    found = list(damaged())
    assert len(found) > 200
    for results in found:
        drawn = figures.files(results)
        assert section(page.render(results), "Figures")[::2] == [f"![{op}]({name})" for op, name in drawn.items()]


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
