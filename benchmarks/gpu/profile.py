"""What Nsight Compute says of six kernels: their time, how busy memory and multiprocessors are, and what warps wait
for. Its whole text is among the logs, some numbers of it in the results."""

from __future__ import annotations

import re
import sys

from benchmarks.gpu.processes import Command
from benchmarks.gpu.results import Entry

# What is run for each, in benchmarks/gpu/profiled.py.
CALLS = (
    "narrow cross_entropy forward",
    "wide cross_entropy forward",
    "wide cross_entropy backward",
    "sum_table_rows",
    "scatter_into_tables",
    "train_steps",
)
_SECTIONS = ("SpeedOfLight", "WarpStateStats", "MemoryWorkloadAnalysis", "Occupancy")
_MOST_LAUNCHES = 6

_SECONDS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0}
_SECONDS |= {"nsecond": 1e-9, "usecond": 1e-6, "msecond": 1e-3, "second": 1.0}
# Nsight Compute's name of a metric, by ours; that of the time says its unit.
_METRICS = {
    "memory_percent": "Memory Throughput",
    "dram_percent": "DRAM Throughput",
    "compute_percent": "Compute (SM) Throughput",
    "occupancy_percent": "Achieved Occupancy",
}


def commands() -> dict[str, Command]:
    """Only kernels of charlm, in what is between cudaProfilerStart and cudaProfilerStop; at the clocks as they are."""
    options = ["--clock-control", "none", "--target-processes", "all", "--profile-from-start", "off"]
    options += ["--kernel-name-base", "demangled", "--kernel-name", "regex:.*charlm::.*"]
    options += ["--launch-count", str(_MOST_LAUNCHES)]
    for section in _SECTIONS:
        options += ["--section", section]
    python = [sys.executable, "-m", "benchmarks.gpu.profiled"]
    return {f"ncu {call}": Command(["ncu", *options, *python, call]) for call in CALLS}


def read(name: str, status: int, text: str) -> Entry:
    """The kernels with their numbers; where there are none, but a reason of Nsight Compute, that it was skipped."""
    kernels = parse(text)
    if kernels:
        return {"kernels": kernels}
    refusals = [line.removeprefix("==ERROR== ") for line in text.splitlines() if line.startswith("==ERROR== ")]
    # The program's own failure is told as one of its target too, and is none of the profiler's.
    if refusals and "Traceback" not in text:
        return {"skipped": f"Nsight Compute: {refusals[0]}"}
    return {"error": "no kernel of charlm was profiled"} if status == 0 else {}


def parse(text: str) -> list[dict[str, float | str]]:
    """Of each kernel: "kernel", "duration_s", and in percent what `_METRICS` names, as far as the text has it."""
    kernels: list[dict[str, float | str]] = []
    for line in text.splitlines():
        head = re.match(r"  (\S.*?) \(\d+, \d+, \d+\)x\(\d+, \d+, \d+\), Context \d+", line)
        if head:
            kernels.append({"kernel": head[1]})
            continue
        cells = re.split(r"\s{2,}", line.strip())
        if not kernels or len(cells) != 3:
            continue
        metric, unit, value = cells
        number = value.replace(",", "")
        if not re.fullmatch(r"\d+(\.\d+)?", number):
            continue
        if metric == "Duration" and unit in _SECONDS:
            kernels[-1]["duration_s"] = float(number) * _SECONDS[unit]
        for key, name in _METRICS.items():
            if metric == name and unit == "%":
                kernels[-1].setdefault(key, float(number))
    return kernels
