"""What may ruin the device: launches at its limits, storage and numbers that are off, and more than 2^31 elements.

Each task has a process of its own, as CUDA refuses everything in one that has once read out of bounds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import product

import torch
from torch import Tensor

from benchmarks.gpu import checks, engine_checks, measure
from benchmarks.gpu.checks import Call
from benchmarks.gpu.results import Entry
from benchmarks.gpu.task import Task
from benchmarks.options import dtype_name
from charlm import ops
from charlm.ops import reference

# (V, H) of the lecture's model whose tiles take from 147 KB to all the 227 KB of shared memory that a block can have
# there; beyond them the kernel is another.
TILES = {
    torch.float32: ((65, 200), (65, 203), (65, 204), (65, 256), (27, 256), (27, 320), (27, 322), (27, 448), (27, 512)),
    torch.float64: ((27, 128), (27, 200), (27, 256)),
}
TILE_ROWS = (128, 20_000)

# Rows that several blocks share, as there are few and they are long.
SPLIT = ((1, 40_000), (3, 70_001), (8, 262_144))

OFFSETS = (1, 2, 3, 5, 7)  # in elements

# (N, C), bfloat16: a logit has an offset beyond 2^31 from row 65,536 on.
VAST_LOGITS = (70_000, 32_768)
# (N, T, V, D, H), bfloat16: so has an output of the last 262,582 rows.
VAST_OUTPUT = (11_000_000, 3, 27, 10, 200)
_CHUNK_ROWS = 1 << 20


def tasks() -> Iterator[tuple[str, Task]]:
    runs: dict[str, Callable[[], Entry]] = {
        "more than 2^31 logits": _vast_logits,
        "more than 2^31 outputs": _vast_output,
        **{f"tiles of {dtype_name(dtype)}": partial(_tiles, dtype) for dtype in TILES},
        "split rows": _split_rows,
        **{f"misaligned {op}": partial(_misaligned, op) for op in SMALL},
        **{f"bad numbers in {op}": partial(_bad_numbers, op) for op in SMALL},
    }
    for name, run in runs.items():
        yield "risky", Task(name, run)
    yield from engine_checks.risky()


def _check(calls: Mapping[str, Call]) -> Entry:
    """The largest difference from the truth; the first call that fails is named."""
    largest = 0.0
    for name, call in calls.items():
        try:
            largest = max(largest, checks.compare(checks.evaluate(call), checks.truth(call), call.dtype))
        except (RuntimeError, ValueError) as error:
            raise RuntimeError(f"{name}: {error}") from error
    return {"largest_difference": largest}


def _tiles(dtype: torch.dtype) -> Entry:
    return _check(
        {
            f"V={vocab_size} H={hidden_dim} N={rows}": checks.mlp_cross_entropy(
                (rows, 3, vocab_size, 10, hidden_dim), dtype
            )
            for vocab_size, hidden_dim in TILES[dtype]
            for rows in TILE_ROWS
        }
    )


def _split_rows() -> Entry:
    return _check(
        {
            f"N={rows} C={classes} {dtype_name(dtype)} {options}": checks.cross_entropy(rows, classes, dtype, **options)
            for (rows, classes), dtype in product(SPLIT, checks.DTYPES)
            for options in ({"reduction": "sum"}, {"weighted": True, "label_smoothing": 0.1, "z_loss": 0.01})
        }
    )


SMALL: dict[str, Callable[[torch.dtype], Call]] = {
    "cross_entropy": lambda dtype: checks.cross_entropy(67, 1001, dtype, reduction="none"),
    "embedding_linear": lambda dtype: checks.embedding_linear((67, 3, 27, 10, 200), dtype),
    "linear_cross_entropy": lambda dtype: checks.linear_cross_entropy(67, 33, 1001, dtype, reduction="none"),
    "linear_log_probs": lambda dtype: checks.linear_log_probs(67, 33, 1001, dtype),
    "log_probs": lambda dtype: checks.log_probs(67, 1001, dtype),
    "mlp_cross_entropy": lambda dtype: checks.mlp_cross_entropy((67, 3, 27, 10, 200), dtype, reduction="none"),
}


def _misaligned(op: str) -> Entry:
    """Every tensor begins in the middle of what a vector load would read."""
    return _check(
        {
            f"{dtype_name(dtype)} at {offset}": SMALL[op](dtype).changed(partial(_moved, offset=offset))
            for dtype, offset in product(checks.DTYPES, OFFSETS)
        }
    )


def _moved(tensor: Tensor, *, offset: int) -> Tensor:
    memory = torch.empty(tensor.numel() + offset, dtype=tensor.dtype, device=tensor.device)
    return memory[offset:].view(tensor.shape).copy_(tensor)


def _bad_numbers(op: str) -> Entry:
    """Rows that have an id or a target out of range are NaN, all others as if those were not there."""
    largest = 0.0
    for dtype in checks.DTYPES:
        call = SMALL[op](dtype)
        expected = _first_result(getattr(reference, op)(**call.in_float64().arguments))
        for name in {"ids", "target"} & set(call.arguments):
            tokens = call.arguments[name].clone()
            bad = (-1, 1001, 5000, 2**31, 2**40, -(2**40), 2**63 - 1)
            rows = torch.arange(5, len(tokens), 5, device=tokens.device)[: len(bad)]  # none of which is ignored
            tokens.view(len(tokens), -1)[rows, -1] = torch.tensor(bad, device=tokens.device)
            found = _forward_and_backward(replace(call, arguments={**call.arguments, name: tokens}))
            for row, number in zip(rows.tolist(), bad, strict=True):
                if not found[row].isnan().all():
                    raise ValueError(f"{name} {number}, {dtype_name(dtype)}: row {row} is {found[row]} and not NaN")
            others = torch.ones(len(tokens), dtype=torch.bool, device=tokens.device)
            others[rows] = False
            largest = max(largest, checks.compare({name: found[others]}, {name: expected[others]}, dtype))
    return {"largest_difference": largest}


def _forward_and_backward(call: Call) -> Tensor:
    leaves = call.leaves()
    result = _first_result(getattr(ops, call.op)(**{**call.arguments, **leaves}))
    torch.autograd.grad(result, list(leaves.values()), torch.ones_like(result))
    return result.detach()


def _first_result(result: Tensor | ops.LogProbs) -> Tensor:
    return next(iter(checks.differentiable_results(result).values()))


def _vast_logits() -> Entry:
    """Rows around offset 2^31 and at both ends; no other is NaN."""
    rows, classes = VAST_LOGITS
    logits = torch.randn(rows, classes, dtype=torch.bfloat16, device=measure.DEVICE)
    target = torch.randint(classes, (rows,), device=measure.DEVICE)
    checked = sorted({0, 1, *(range(65_534, 65_539) if rows > 65_538 else ()), rows - 2, rows - 1})
    found = checks.evaluate(Call("cross_entropy", {"input": logits, "target": target, "reduction": "none"}, ("input",)))
    if not found["result"].isfinite().all():
        raise ValueError("a loss is infinite or NaN")
    some = Call("cross_entropy", {"input": logits[checked], "target": target[checked], "reduction": "sum"}, ("input",))
    own = torch.nn.functional.cross_entropy(some.arguments["input"].double(), target[checked], reduction="none")
    # The upstream gradient is 1 for even rows and 0.5 for odd ones.
    weights = torch.where(torch.tensor(checked, device=measure.DEVICE) % 2 == 0, 1.0, 0.5)[:, None]
    expected = {"result": own, "gradient of input": checks.truth(some)["gradient of input"] * weights}
    return {
        "largest_difference": checks.compare(
            {name: value[checked] for name, value in found.items()}, expected, torch.bfloat16
        )
    }


def _vast_output() -> Entry:
    """All outputs, and the gradients of the parameters, which are sums over all rows."""
    call = checks.embedding_linear(VAST_OUTPUT, torch.bfloat16)
    found = checks.evaluate(call)
    output, expected, largest = found.pop("result"), dict[str, Tensor](), 0.0
    for begin in range(0, len(output), _CHUNK_ROWS):  # an even number: the upstream gradient begins with 1
        rows = slice(begin, begin + _CHUNK_ROWS)
        of_rows = checks.truth(replace(call, arguments={**call.arguments, "ids": call.arguments["ids"][rows]}))
        wanted = of_rows.pop("result")
        largest = max(largest, checks.compare({"result": output[rows]}, {"result": wanted}, torch.bfloat16))
        for name, gradient in of_rows.items():
            expected[name] = expected.get(name, 0.0) + gradient
    return {"largest_difference": max(largest, checks.compare(found, expected, torch.bfloat16))}
