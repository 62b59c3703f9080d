"""What `python -m benchmarks.gpu` asks of the ops before it measures them, on small shapes, where `--device` says.

Only a GPU has streams and graphs: elsewhere stand-ins are in their place.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any

import cases
import out_of_range
import pytest
import torch
from cuda_ways import RecordedGraph
from torch import Tensor

from benchmarks.gpu import checks, engine_checks, measure, risky, smoke
from benchmarks.gpu.task import Task, attempt
from charlm import _C, engine, ops


class Stream:
    def wait_stream(self, other: Stream) -> None:
        assert isinstance(other, Stream)


@pytest.fixture(autouse=True)
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tasks run where the tests' tensors are, those that take long on small shapes."""
    smoke._make.cache_clear()
    smoke._truth.cache_clear()
    monkeypatch.setattr(measure, "DEVICE", cases.device.type)
    monkeypatch.setattr(risky, "TILES", {torch.float32: ((65, 200),), torch.float64: ((27, 128),)})
    monkeypatch.setattr(risky, "TILE_ROWS", (17,))
    monkeypatch.setattr(risky, "SPLIT", ((2, 40_000),))
    monkeypatch.setattr(risky, "OFFSETS", (1, 3))
    monkeypatch.setattr(risky, "VAST_LOGITS", (9, 1000))
    monkeypatch.setattr(risky, "VAST_OUTPUT", (50, 3, 27, 10, 20))
    monkeypatch.setattr(risky, "_CHUNK_ROWS", 16)
    if cases.device.type != "cuda":
        for name, stand_in in {
            "Stream": Stream,
            "stream": lambda stream: nullcontext(),
            "current_stream": Stream,
            "_sleep": lambda cycles: None,
            "CUDAGraph": RecordedGraph,
            "graph": RecordedGraph.recording,
        }.items():
            monkeypatch.setattr(torch.cuda, name, stand_in)
        monkeypatch.setattr(checks, "_POISONED_BYTES", (512, 4096))
        if cases.on_cuda:
            monkeypatch.setattr(smoke, "CASES", FEW_ROWS)
    yield
    smoke._make.cache_clear()
    smoke._truth.cache_clear()


# For a simulator, with the names of those that take their place on a GPU.
FEW_ROWS: dict[str, Any] = {
    "cross_entropy": {
        "C=27": partial(checks.cross_entropy, 37, 27),
        "C=5,003 all options": partial(checks.cross_entropy, 3, 1003, **smoke._ALL_OPTIONS),
    },
    "embedding_linear": {"V=27": partial(checks.embedding_linear, (37, 3, 27, 10, 20))},
    "linear_cross_entropy": {"C=5,003": partial(checks.linear_cross_entropy, 7, 9, 503)},
    "linear_log_probs": {
        "C=5,003 all options": partial(checks.linear_log_probs, 7, 9, 503, **smoke._LOG_PROBS_OPTIONS)
    },
    "log_probs": {
        "C=27": partial(checks.log_probs, 37, 27),
        "C=5,003 all options": partial(checks.log_probs, 3, 1003, **smoke._LOG_PROBS_OPTIONS),
    },
    "mlp_cross_entropy": {"V=27": partial(checks.mlp_cross_entropy, (37, 3, 27, 10, 20))},
}
OPS = ops.reference.__all__
SMOKE = {task.name: task for part, task in smoke.tasks() if part == "smoke"}
RISKY = {task.name: task for part, task in risky.tasks() if part == "risky"}


def done(task: Task) -> float:
    entry = attempt(task)
    assert "error" not in entry, entry["error"]
    return float(entry["largest_difference"])


def test_every_op_is_asked_in_every_dtype_and_way() -> None:
    dtypes = ("float32", "bfloat16", "float16", "float64")
    ways = ("values", "repeated", "side stream", "graph")
    engine = [f"engine {dtype}: {way}" for dtype in ("float32", "float64") for way in ("values", "repeated")]
    assert sorted(SMOKE) == sorted([f"{op} {dtype}: {way}" for op in OPS for dtype in dtypes for way in ways] + engine)
    assert SMOKE["cross_entropy float16: graph"].facts == {"op": "cross_entropy", "dtype": "float16"}


@pytest.mark.parametrize("name", SMOKE)
def test_smoke(name: str) -> None:
    difference = done(SMOKE[name])
    dtype = getattr(torch, str(SMOKE[name].facts["dtype"]))
    assert difference == 0.0 if name.endswith("repeated") else 0.0 < difference <= checks.TOLERANCES[dtype]


@pytest.mark.parametrize("name", [name for name in RISKY if not name.startswith(("bad numbers", "largest model"))])
def test_risky(name: str) -> None:
    assert 0.0 < done(RISKY[name]) <= checks.TOLERANCES[torch.bfloat16]


@pytest.mark.parametrize("op", OPS)
def test_bad_numbers(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if not cases.on_cuda:  # where such a number is an error
        assert "IndexError" in attempt(RISKY[f"bad numbers in {op}"])["error"]
        monkeypatch.setattr(ops, op, getattr(out_of_range, op))
    assert 0.0 < done(RISKY[f"bad numbers in {op}"]) <= checks.TOLERANCES[torch.bfloat16]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_largest_model(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By halving; and that the next model is refused is looked at."""
    task = RISKY[f"largest model of {dtype}"]
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    if not cases.on_cuda:
        monkeypatch.setattr(_C, "trains_in_one_launch", lambda *shape: shape[4] <= 21, raising=False)
        error = attempt(task)["error"]
        assert error == "ValueError: H=22 trains, but is said not to fit"
        right = engine.train_steps

        def limited(parameters: list[Tensor], *others: Any, **options: Any) -> Tensor:
            if len(parameters[2]) > 21:
                raise ValueError("too large")
            return right(parameters, *others, **options)

        monkeypatch.setattr(engine, "train_steps", limited)
    entry = attempt(task)
    assert "error" not in entry, entry["error"]
    assert entry["largest_difference"] <= checks.TOLERANCES[getattr(torch, dtype)]
    assert entry["hidden_dim"] == 21 or cases.on_cuda


def test_bad_numbers_in_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    task = RISKY["bad numbers in the engine"]
    if cases.on_cuda:
        assert attempt(task)["largest_difference"] == 0.0
        return
    assert "IndexError" in attempt(task)["error"]
    right = engine.train_steps
    # As the step that meets a bad id would be on a GPU, but for the losses that follow.
    first = int((engine_checks.BATCHES[2, 0] == engine_checks.BATCHES).any(1).nonzero()[0])

    def spoiled(
        parameters: list[Tensor], state: list[Tensor], contexts: Tensor, *others: Any, **options: Any
    ) -> Tensor:
        is_bad = bool(((contexts < 0) | (contexts >= 27)).any())
        losses = right(parameters, state, contexts.clamp(0, 26), *others, **options)
        if is_bad:
            losses[first:] = torch.nan
            parameters[3].fill_(torch.nan if spoils else 0.0)
        return losses

    monkeypatch.setattr(engine, "train_steps", spoiled)
    for spoils in (True, False):
        entry = attempt(task)
        assert ("error" in entry) != spoils
    assert entry["error"].startswith(f"ValueError: id -1 in step {first}: losses [")


def test_a_wrong_engine_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right, calls = engine.train_steps, []

    def wrong(parameters: list[Tensor], *others: Any, **options: Any) -> Tensor:
        losses = right(parameters, *others, **options)
        calls.append(None)
        parameters[-1].add_(0.001 * len(calls))
        return losses

    monkeypatch.setattr(engine, "train_steps", wrong)
    for way in ("values", "repeated"):
        error = attempt(SMOKE[f"engine float64: {way}"])["error"]
        assert error.startswith("sgd: ValueError: parameter 4: ")
        assert "all examples" not in error  # which is another op


@pytest.mark.parametrize("way", smoke.WAYS)
def test_a_wrong_op_is_found(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = ops.cross_entropy
    calls = []

    def wrong(*arguments: Any, **options: Any) -> Tensor:
        calls.append(None)
        # A thousandth too large, and otherwise in every call.
        return right(*arguments, **options) * (1.001 + 0.001 * len(calls))

    monkeypatch.setattr(ops, "cross_entropy", wrong)
    error = attempt(SMOKE[f"cross_entropy float32: {way}"])["error"]
    assert error.startswith("C=27: ValueError: result: ")
    assert "; C=5,003 all options: ValueError: " in error
    assert ("bytes differ in a second call" if way == "repeated" else "allowed 2.0e-05") in error


def test_what_is_not_written_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgotten(*arguments: Any, **options: Any) -> Tensor:
        return ops.reference.cross_entropy(*arguments, **options) * torch.nan

    monkeypatch.setattr(ops, "cross_entropy", forgotten)
    assert "result: nan instead of" in attempt(SMOKE["cross_entropy float32: values"])["error"]


def test_a_graph_that_does_not_read_its_inputs_again_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right, kept = ops.embedding_linear, dict[Any, Tensor]()

    def stale(*arguments: Any, embedding: Tensor, **options: Any) -> Tensor:
        old = kept.setdefault((embedding.shape, embedding.dtype), embedding.detach().clone())
        return right(*arguments, embedding=embedding + (old - embedding).detach(), **options)

    monkeypatch.setattr(ops, "embedding_linear", stale)
    assert "V=27: ValueError: result: " in attempt(SMOKE["embedding_linear float32: graph"])["error"]


def test_an_index_that_wraps_around_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = ops.cross_entropy

    def wrapped(input: Tensor, target: Tensor, **options: Any) -> Tensor:
        return right(torch.cat([input[:-1], input[:1]]), target, **options)

    monkeypatch.setattr(ops, "cross_entropy", wrapped)
    assert "ValueError: result: " in attempt(RISKY["more than 2^31 logits"])["error"]


def test_bad_numbers_must_be_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    def clamped(input: Tensor, target: Tensor, **options: Any) -> Tensor:
        inside = (target >= 0) & (target < input.shape[1]) | (target == -100)
        return ops.reference.cross_entropy(input, target.where(inside, 0), **options)

    monkeypatch.setattr(ops, "cross_entropy", clamped)
    error = attempt(RISKY["bad numbers in cross_entropy"])["error"]
    assert error.startswith("ValueError: target -1, float32: row 5 is ")
    assert error.endswith("and not NaN")


def test_comparisons() -> None:
    one = {"x": torch.tensor([1.0, 2.0])}
    assert checks.compare({"x": torch.tensor([1.0, 2.00002])}, one, torch.float32) == pytest.approx(1e-5, rel=0.02)
    with pytest.raises(ValueError, match=r"x: 2.5 instead of 2 at 1 of 2, allowed 2.0e-05"):
        checks.compare({"x": torch.tensor([1.0, 2.5])}, one, torch.float32)
    with pytest.raises(ValueError, match=r"x is torch.float32 \(3,\), expected torch.float32 \(2,\)"):
        checks.compare({"x": torch.ones(3)}, one, torch.float32)
    with pytest.raises(ValueError, match=r"x is torch.float32 \(2,\), expected torch.float16 \(2,\)"):
        checks.compare(one, one, torch.float16)
    with pytest.raises(ValueError, match="x: 1 of 8 bytes differ in a second call"):
        checks.same_bits({"x": torch.tensor([0.0, 1.0])}, {"x": torch.tensor([-0.0, 1.0])})


def test_memory_is_full_of_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    filled: list[Tensor] = []
    full = torch.full

    def watched(*arguments: Any, **options: Any) -> Tensor:
        filled.append(full(*arguments, **options))
        return filled[-1]

    monkeypatch.setattr(torch, "full", watched)
    checks.poison([torch.zeros(3, 5, dtype=torch.bfloat16)])
    assert sum(len(block) == 30 for block in filled) == 4
    for dtype in checks.DTYPES:
        assert all(block[: len(block) // 8 * 8].view(dtype).isnan().all() for block in filled)
