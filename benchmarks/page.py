"""The results of all machines as a page of tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

from benchmarks.markdown import table
from benchmarks.provenance import machine_line, origin_line
from charlm.cli.bench import duration, rate

_HEAD = """# Results

Written by `python -m benchmarks`, from the JSON files beside this one; not by hand. Every time is a median of runs that
alternate with those it is compared with; a ratio is eager's median over that of its row.
"""


def render(machines: Iterable[dict[str, Any]]) -> str:
    """The page, in Markdown."""
    return "\n".join([_HEAD, *(_machine(results) for results in machines)])


def _machine(results: dict[str, Any]) -> str:
    parts = [
        f"## {machine_line(results)}\n",
        f"{origin_line(results)}\n",
        *map(_race, results["races"]),
    ]
    if results["ops"]:
        parts += ["### Ops, one thread\n", _ops(results["ops"])]
    if results["growth"]:
        parts += ["### How the cost of a step grows\n", _growth(results)]
    return "\n".join(parts)


def _race(race: dict[str, Any]) -> str:
    workload = race["workload"]
    rows = [
        [
            row["name"],
            row["examples"],
            duration(row["median_s"]),
            rate(row["steps_per_second"]),
            _ratio(row["ratio_to_eager"]),
            f"{row['gflops']:.1f}",
            f"{row['share_of_sgemm']:.0%}",
        ]
        for row in race["results"]
    ]
    return (
        f"### Training: {workload['name']}\n\n"
        f"{workload['parameters']:,} parameters, {workload['examples_per_step']:,} examples a step, "
        f"{workload['optimizer']}; {race['threads']} thread{'s' * (race['threads'] > 1)}; sgemm "
        f"{race['sgemm_gflops']:.1f} GFLOP/s; `{race['command']}`\n\n"
        + table(["backend", "a step computes", "time/step", "steps/s", "x eager", "GFLOP/s", "of sgemm"], rows)
    )


def _ops(timings: Sequence[dict[str, Any]]) -> str:
    rows = []
    for workload, group in groupby(sorted(timings, key=lambda row: row["workload"]), key=lambda row: row["workload"]):
        implementations = {row["implementation"]: row for row in group}
        eager = implementations.get("eager")
        for name, row in implementations.items():
            ratio = None if eager is None else eager["median_s"] / row["median_s"]
            floor = f"{duration(row['floor_s'])}: {row['floor']}"
            rows.append([workload, name, duration(row["median_s"]), _ratio(ratio), floor])
    return table(["workload", "implementation", "time", "x eager", "floor"], rows)


def _growth(results: dict[str, Any]) -> str:
    names = list(results["growth"][0]["points"][0]["median_s"])
    rows = [
        [
            f"B={point['batch_size']:,} T={point['context_length']} V={point['vocab_size']:,} "
            f"D={point['embedding_dim']} H={point['hidden_dim']:,}",
            *(duration(point["median_s"][name]) for name in names),
            _ratio(point["median_s"]["eager"] / point["median_s"]["fused"]),
        ]
        for sweep in results["growth"]
        for point in sweep["points"]
    ]
    return (
        "Whole steps of SGD, one thread unless stated. Batches of one tile (up to 128 distinct contexts) stay on one "
        "thread.\n\n"
        + table(["step", *names, "fused x eager"], rows)
        + f"\n![time per step]({results['growth_picture']})\n"
    )


def _ratio(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}"
