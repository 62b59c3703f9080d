"""What the entries of results say: the page and the figures read them by the same rules.

Anything may be missing, of a run that was cut off; what cannot be told is None.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from benchmarks.gpu.results import OURS, is_wrong

Row = Mapping[str, Any]

# The parts whose tasks are workloads by several implementations, in the order of the page.
_COMPARED = (
    "cross_entropy",
    "linear_cross_entropy",
    "linear_log_probs",
    "embedding_linear",
    "mlp_cross_entropy",
    "training",
)


def slug(gpu: str) -> str:
    """A GPU's name as that of files."""
    return re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")


def part(results: Mapping[str, Any], name: str) -> Mapping[str, Row]:
    found: Mapping[str, Row] = results.get("parts", {}).get(name, {})
    return found


def ops(results: Mapping[str, Any]) -> list[str]:
    """The parts of ops, and that of training: all that there should be, and any other that has workloads."""
    others = [name for name, found in results.get("parts", {}).items() if any(map(is_compared, found.values()))]
    return list(dict.fromkeys([*_COMPARED, *others]))


def workloads(results: Mapping[str, Any], name: str) -> dict[str, dict[str, Row]]:
    """The entries of a part by workload and implementation, in the order in which they were measured."""
    found: dict[str, dict[str, Row]] = {}
    for entry in part(results, name).values():
        if is_compared(entry):
            found.setdefault(entry["workload"], {})[entry["implementation"]] = entry
    return found


def is_compared(entry: Row) -> bool:
    return "workload" in entry and "implementation" in entry


def ours(implementations: Mapping[str, Row]) -> Row:
    """What was measured of charlm, which may be nothing."""
    return next((implementations[name] for name in OURS if name in implementations), {})


def fastest_peer(implementations: Mapping[str, Row]) -> Row:
    """Of those that are neither charlm nor eager PyTorch, and right; nothing where none was measured."""
    times = {
        name: elapsed
        for name, row in implementations.items()
        if name not in (*OURS, "eager") and not is_wrong(row) and (elapsed := seconds(row)) is not None
    }
    return implementations[min(times, key=lambda name: times[name])] if times else {}


def numbers(entry: Row) -> dict[str, float]:
    """What an entry that is no measurement of ours has counted, without how long it took to do so."""
    return {
        name: value
        for name, value in entry.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and name != "took_s"
    }


def is_installed(row: Row) -> bool:
    return not str(row.get("error", "")).startswith("not installed")


def size(workload: str, op: str) -> str:
    """What tells a workload from others of its part."""
    return workload.removeprefix("training steps of ").removeprefix(f"{op} ")


def seconds(row: Row) -> float | None:
    """What a measurement is judged by: GPU time; whole training steps have only the time of a call."""
    return _positive(row.get("median_s", row.get("call_s")))


def gb_per_s(row: Row) -> float | None:
    """Bytes that must be moved, over the GPU time."""
    rate = per_second(row) if "bytes" in row else None
    return None if rate is None else rate / 1e9


def milliseconds(row: Row) -> float | None:
    elapsed = seconds(row)
    return None if elapsed is None else elapsed * 1e3


def per_second(row: Row) -> float | None:
    """Bytes or FLOPs that must be moved or computed, over the GPU time."""
    amount, elapsed = _positive(row.get("bytes", row.get("flops"))), _positive(row.get("median_s"))
    return None if amount is None or elapsed is None else amount / elapsed


def ceiling(results: Mapping[str, Any], name: str | None) -> float | None:
    """What this GPU does at best, in bytes or FLOPs a second."""
    entry = part(results, "ceilings").get(name or "", {})
    return _positive(entry.get("bytes_per_s", entry.get("flops_per_s")))


def share(results: Mapping[str, Any], row: Row) -> float | None:
    """Of the ceiling that the row names."""
    reached, best = per_second(row), ceiling(results, row.get("ceiling"))
    return None if reached is None or best is None else reached / best


def speedup(row: Row, other: Row) -> float | None:
    """How many times as long the other takes."""
    own, others = seconds(row), seconds(other)
    return None if own is None or others is None else others / own


def three_digits(number: float) -> str:
    """Of small numbers, and all those before the point of large ones."""
    return f"{number:,.0f}" if number >= 1000.0 else f"{number:.3g}"


def _positive(number: float | None) -> float | None:
    """Nothing takes no time: a clock that says so has measured nothing."""
    return number if number is not None and number > 0 else None
