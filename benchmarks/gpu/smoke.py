"""Whether the ops work on this GPU at all: each in each dtype, against float64, in every way in which it is called.

values        result and gradients, in memory that was full of NaN before
repeated      the same bits in a second call
side stream   on another stream than the default one, whose inputs come late
graph         captured after one call to warm up, and replayed on these numbers and on others
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu import checks, engine_checks, measure
from benchmarks.gpu.checks import Call
from benchmarks.gpu.results import Entry
from benchmarks.gpu.task import Task, in_a_line
from benchmarks.options import dtype_name

# Both losses' options at once; what "weighted" and "token_weighted" are, checks.py knows.
_ALL_OPTIONS: dict[str, Any] = {
    "token_weighted": True,
    "weighted": True,
    "label_smoothing": 0.1,
    "softcap": 5.0,
    "z_loss": 0.01,
    "reduction": "none",
}
_LATE_CYCLES = 20_000_000  # some 10 ms

_LOG_PROBS_OPTIONS: dict[str, Any] = {"ids_per_row": 3, "temperature": 0.7, "softcap": 5.0}

# By op, what makes its calls, from a dtype and a seed: shapes and options that different kernels serve.
CASES: dict[str, dict[str, Callable[[torch.dtype, int], Call]]] = {
    "cross_entropy": {
        "C=27": partial(checks.cross_entropy, 1031, 27),
        "C=27 all options": partial(checks.cross_entropy, 1031, 27, **_ALL_OPTIONS),
        "C=27 token weights": partial(checks.cross_entropy, 1031, 27, token_weighted=True),
        "C=1,024": partial(checks.cross_entropy, 67, 1024),
        "C=5,003 all options": partial(checks.cross_entropy, 67, 5003, **_ALL_OPTIONS),
        "C=40,000": partial(checks.cross_entropy, 5, 40_000, reduction="sum"),
    },
    "embedding_linear": {
        "V=27": partial(checks.embedding_linear, (2053, 3, 27, 10, 200)),
        "V=5,003 gelu": partial(checks.embedding_linear, (515, 8, 5003, 16, 65), activation="gelu"),
    },
    "linear_cross_entropy": {
        "C=27": partial(checks.linear_cross_entropy, 515, 33, 27),
        "C=5,003": partial(checks.linear_cross_entropy, 67, 64, 5003),
        "C=5,003 token weights": partial(checks.linear_cross_entropy, 67, 64, 5003, token_weighted=True),
        "C=5,003 all options": partial(checks.linear_cross_entropy, 67, 64, 5003, **_ALL_OPTIONS),
    },
    "linear_log_probs": {
        "C=27": partial(checks.linear_log_probs, 515, 33, 27),
        "C=5,003": partial(checks.linear_log_probs, 67, 64, 5003),
        "C=5,003 all options": partial(checks.linear_log_probs, 67, 64, 5003, **_LOG_PROBS_OPTIONS),
    },
    "log_probs": {
        "C=27": partial(checks.log_probs, 1031, 27),
        "C=1,024": partial(checks.log_probs, 67, 1024),
        "C=5,003 all options": partial(checks.log_probs, 67, 5003, **_LOG_PROBS_OPTIONS),
        "C=40,000": partial(checks.log_probs, 5, 40_000),
    },
    "mlp_cross_entropy": {
        "V=27": partial(checks.mlp_cross_entropy, (2053, 3, 27, 10, 200)),
        "V=65": partial(checks.mlp_cross_entropy, (515, 4, 65, 16, 100), reduction="sum"),
        "V=300": partial(checks.mlp_cross_entropy, (67, 3, 300, 10, 64)),
    },
}
_make = cache(lambda op, case, dtype, seed=0: CASES[op][case](dtype, seed))
_truth = cache(lambda op, case, dtype, seed=0: checks.truth(_make(op, case, dtype, seed)))


def tasks() -> Iterator[tuple[str, Task]]:
    for way, check in WAYS.items():
        for dtype in checks.DTYPES:
            for op in CASES:
                word = dtype_name(dtype)
                yield (
                    "smoke",
                    Task(f"{op} {word}: {way}", partial(_every_case, check, op, dtype), {"op": op, "dtype": word}),
                )
    yield from engine_checks.smoke()


def _every_case(check: Callable[[str, str, torch.dtype], float], op: str, dtype: torch.dtype) -> Entry:
    """The largest difference; all cases that failed are named."""
    errors, largest = [], 0.0
    for case in CASES[op]:
        try:
            largest = max(largest, check(op, case, dtype))
        except Exception as error:
            errors.append(f"{case}: {in_a_line(error)}")
            if measure.is_broken():
                break
    return {"error": "; ".join(errors)} if errors else {"largest_difference": largest}


def _values(op: str, case: str, dtype: torch.dtype) -> float:
    expected = _truth(op, case, dtype)
    checks.poison(value.to(dtype) for value in expected.values())
    return checks.compare(checks.evaluate(_make(op, case, dtype)), expected, dtype)


def _repeated(op: str, case: str, dtype: torch.dtype) -> float:
    call = _make(op, case, dtype)
    found = checks.evaluate(call)
    checks.poison(found.values())
    checks.same_bits(found, checks.evaluate(call))
    return 0.0


def _side_stream(op: str, case: str, dtype: torch.dtype) -> float:
    call, expected = _make(op, case, dtype), _truth(op, case, dtype)
    late = call.changed(torch.zeros_like)
    checks.poison(value.to(dtype) for value in expected.values())
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        # What is launched on another stream than this one reads zeros.
        torch.cuda._sleep(_LATE_CYCLES)
        _copy(call, late)
        found = checks.evaluate(late)
    torch.cuda.current_stream().wait_stream(stream)
    return checks.compare(found, expected, dtype)


def _graph(op: str, case: str, dtype: torch.dtype) -> float:
    static = _make(op, case, dtype).changed(Tensor.clone)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        checks.evaluate(static)  # loads what is loaded at the first call
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = checks.evaluate(static)
    largest = 0.0
    for seed in (0, 100):
        _copy(_make(op, case, dtype, seed), static)
        for value in found.values():
            value.fill_(torch.nan)
        graph.replay()
        largest = max(largest, checks.compare(found, _truth(op, case, dtype, seed), dtype))
    return largest


def _copy(source: Call, target: Call) -> None:
    for name, value in source.tensors():
        target.arguments[name].copy_(value)


WAYS: dict[str, Callable[[str, str, torch.dtype], float]] = {
    "values": _values,
    "repeated": _repeated,
    "side stream": _side_stream,
    "graph": _graph,
}
