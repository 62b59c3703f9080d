"""Results of a GPU that are made up, for the tests of what is made of them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import islice
from typing import Any

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
OPS = ["cross_entropy", "linear_cross_entropy", "linear_log_probs", "embedding_linear", "mlp_cross_entropy", "training"]
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
            "linear_log_probs": compared(
                "linear_log_probs N=2 D=3 C=4, forward",
                {"flops": 4 * 10**12, "products": 1, "ceiling": "bf16 product", "rows": 2, "features": 3, "classes": 4},
                {"eager": timed(20_000), "charlm": timed(4_000)},
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
                {
                    "eager": {"call_s": 4e-3},
                    "eager graph": {"call_s": 2e-3},
                    "ops": {"call_s": 1e-3, "difference": 0.0},
                    "fused": {"call_s": 5e-4, "difference": 0.0, "asked_s": 1e-5},
                },
            )
            | {"makemore: 132 models": {"models": 132, "steps_per_s": 1.25e7, "call_s": 1e-5, "took_s": 3.0}},
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
