"""`python -m benchmarks.gpu` without a GPU: everything it runs, on small shapes on the CPU, with a clock in place."""

from __future__ import annotations

import json
import sys
import time
import types
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu import (
    __main__ as gpu,
)
from benchmarks.gpu import (
    ceilings,
    cross_entropy,
    embedding_linear,
    linear_cross_entropy,
    measure,
    mlp_cross_entropy,
    training,
)
from benchmarks.gpu.measure import Task
from benchmarks.gpu.results import Entry, Results
from benchmarks.opponents import EAGER
from charlm import data
from charlm.benchmark import WORKLOADS

FACTS = {
    "gpu": "A GPU",
    "commit": "abc",
    "date": "2026-01-01",
    "versions": {"charlm": "1.0", "torch": "2.13.0", "python": "3.12.3"},
    "cuda": "13.0",
}
LATER = float("inf")


class Event:
    def __init__(self, *, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.time = time.perf_counter()

    def elapsed_time(self, end: Event) -> float:
        return 1e3 * (end.time - self.time)


@pytest.fixture
def cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is measured on a GPU runs on the CPU, a few times only."""
    monkeypatch.setattr(measure, "DEVICE", "cpu")
    monkeypatch.setattr(measure, "_SECONDS", 0.0)
    monkeypatch.setattr(measure, "_FLUSH_BYTES", 16)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    for name in ("synchronize", "empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 1000)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 1234)

    def compile(function: Callable[..., Tensor], *, dynamic: bool, fullgraph: bool) -> Callable[..., Tensor]:
        assert fullgraph
        assert not dynamic
        return function

    monkeypatch.setattr(torch, "compile", compile)


@pytest.fixture
def opponents(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins with the signatures of liger-kernel 0.8.5, cut-cross-entropy 25.1.1 and quack-kernels 0.6.5."""

    def module(name: str, **content: Any) -> None:
        made = types.ModuleType(name)
        vars(made).update(content)
        monkeypatch.setitem(sys.modules, name, made)

    class LigerCrossEntropyLoss:
        def __init__(self, *, reduction: str = "mean") -> None:
            self.reduction = reduction

        def __call__(self, _input: Tensor, target: Tensor) -> Tensor:
            return F.cross_entropy(_input, target, reduction=self.reduction)

    class LigerFusedLinearCrossEntropyLoss:
        def __call__(self, lin_weight: Tensor, _input: Tensor, target: Tensor, bias: None = None) -> Tensor:
            return F.cross_entropy(F.linear(_input, lin_weight), target)

    def linear_loss(
        e: Tensor, c: Tensor, targets: Tensor, *, filter_eps: str | None = "high", chunk_size: int = 4096
    ) -> Tensor:
        return F.cross_entropy(F.linear(e, c), targets)

    def quack(x: Tensor, target: Tensor, *, reduction: str) -> Tensor:
        return F.cross_entropy(x, target, reduction=reduction)

    module("liger_kernel")
    module(
        "liger_kernel.transformers",
        LigerCrossEntropyLoss=LigerCrossEntropyLoss,
        LigerFusedLinearCrossEntropyLoss=LigerFusedLinearCrossEntropyLoss,
    )
    module("cut_cross_entropy", linear_cross_entropy=linear_loss)
    module("quack")
    module("quack.cross_entropy", cross_entropy=quack)
    module("quack.linear_cross_entropy", chunked_linear_cross_entropy=linear_loss)


def done(tasks: Iterator[Task]) -> dict[str, Entry]:
    """The entries of tasks, each of which is to do what it should."""
    entries = {task.name: gpu.attempt(task) for task in tasks}
    for entry in entries.values():
        assert "error" not in entry, entry
        assert entry.get("difference", 0.0) <= gpu.MOST_DIFFERENCE
        assert all(entry[name] > 0.0 for name in ("median_s", "call_s") if name in entry)
    return entries


def one(entries: dict[str, Entry], implementation: str) -> Entry:
    (entry,) = [entry for entry in entries.values() if entry["implementation"] == implementation]
    return entry


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="there is no CUDA device: run this where torch finds a GPU"):
        gpu.main([])


def test_ceilings(cpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "COPIED_BYTES", 1000)
    monkeypatch.setattr(ceilings, "SIZE", 10)

    def one_second(step: measure.Step) -> float:
        step()
        return 1.0

    monkeypatch.setattr(measure, "gpu_seconds", one_second)
    entries = done(ceilings.tasks())
    assert [{**entry, "took_s": 0} for entry in entries.values()] == [
        {"bytes_per_s": 2000.0, "took_s": 0},
        {"bytes_per_s": 1000.0, "took_s": 0},
        {"flops_per_s": 2000.0, "took_s": 0},
        {"flops_per_s": 2000.0, "took_s": 0},
    ]
    assert list(entries) == ["copy", "write", "bf16 product", "float32 product"]


@pytest.mark.parametrize("backward", [False, True])
def test_cross_entropy(cpu: None, opponents: None, backward: bool) -> None:
    entries = done(measure.tasks([cross_entropy.workload(10, 256, backward=backward)]))
    assert [entry["implementation"] for entry in entries.values()] == ["eager", "charlm", "compile", "quack", "liger"]
    entry = one(entries, "charlm")
    # 10 rows of 256 bfloat16 logits, a target of 8 bytes and a loss of 2 each.
    assert entry["bytes"] == (3 * 5120 + 2 * 100 if backward else 5120 + 100)
    assert entry["ceiling"] == "copy"
    assert entry["memory_bytes"] == 234
    assert entry["workload"] == f"cross_entropy N=10 C=256, forward{' + backward' * backward}"
    assert entry.get("published_share") == (None if backward else 1113 / 3350)


def test_linear_cross_entropy(cpu: None, opponents: None) -> None:
    entries = done(measure.tasks([linear_cross_entropy.workload(8, 16, 40)]))
    names = ["eager", "charlm", "compile", "liger", "cce", "cce unfiltered", "quack"]
    assert [entry["implementation"] for entry in entries.values()] == names
    # Three products of 2 * 8 * 16 * 40 operations.
    assert all((entry["flops"], entry["ceiling"]) == (30_720, "bf16 product") for entry in entries.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backward", [False, True])
def test_embedding_linear(cpu: None, backward: bool, dtype: torch.dtype) -> None:
    shape = embedding_linear.Shape(6, 3, 5, 4, 7, dtype)
    entries = done(measure.tasks([embedding_linear.workload(shape, backward=backward)]))
    assert [entry["implementation"] for entry in entries.values()] == ["eager", "charlm", "compile"]
    counted = (42 * dtype.itemsize * (3 if backward else 1), "copy" if backward else "write")
    assert all((entry["bytes"], entry["ceiling"]) == counted for entry in entries.values())


def test_mlp_cross_entropy(cpu: None) -> None:
    entries = done(measure.tasks([mlp_cross_entropy.workload(data.load(context_length=3), 10, 4, 8)]))
    assert [entry["implementation"] for entry in entries.values()] == ["eager", "charlm", "compile"]
    # Three products of 2 * 10 * 8 * 27 operations.
    assert all((entry["flops"], entry["examples"]) == (12_960, 10) for entry in entries.values())


def test_training(cpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    small = replace(WORKLOADS["makemore"], hidden_dim=4, batch_size=8)
    monkeypatch.setattr(training, "WORKLOADS", dict.fromkeys(training.PRESETS, small))
    monkeypatch.setattr(training, "PRESETS", ("makemore",))
    monkeypatch.setattr(training, "_ROUND_SECONDS", 1e-4)
    entries = done(training.tasks())
    assert list(entries) == ["makemore: eager", "makemore: ops", "makemore: compile"]
    assert entries["makemore: ops"]["examples"] == 8


@pytest.mark.parametrize("part", ["cross_entropy", "linear_cross_entropy", "embedding_linear", "mlp_cross_entropy"])
def test_every_task_of_an_op_has_a_name_of_its_own(part: str) -> None:
    names = [task.name for task in gpu.create_parts(Path())[part]()]
    assert len(set(names)) == len(names) > 0


def test_shapes_are_those_that_others_publish() -> None:
    assert [classes for _, classes in cross_entropy.SHAPES[1:]] == list(cross_entropy.QUACK_GB_PER_S)
    assert cross_entropy.SHAPES[0] == (2**20, 27)
    assert [rows for rows, _ in cross_entropy.SHAPES[1:]] == [2**15] * 6 + [2**14, 2**13]
    assert linear_cross_entropy.SHAPES == ((8192, 4096, 128256), (8192, 2304, 256000))


def test_what_is_not_installed_or_fails_is_recorded(cpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_memory(*arguments: Any, **options: Any) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

    monkeypatch.setitem(sys.modules, "quack", None)
    monkeypatch.setitem(EAGER, "cross_entropy", out_of_memory)
    tasks = measure.tasks([cross_entropy.workload(10, 256, backward=True)])
    entries = {entry["implementation"]: entry for entry in map(gpu.attempt, tasks)}
    assert entries["quack"]["error"].startswith("not installed: ")
    assert entries["quack"]["bytes"] == 15_560
    assert entries["eager"]["error"] == "OutOfMemoryError: CUDA out of memory."
    # Nothing to compare with is no failure of the others.
    assert entries["charlm"]["median_s"] > 0.0
    assert "difference" not in entries["charlm"]


def test_a_wrong_result_is_a_failure(cpu: None) -> None:
    wrong = measure.Workload(
        "w", ("eager", "charlm"), lambda: lambda name: lambda: [torch.tensor([3.0, 4.0 + (name == "charlm")])], {}
    )
    entries = {task.name: gpu.attempt(task) for task in measure.tasks([wrong])}
    assert entries["w: charlm"]["difference"] == pytest.approx(0.2)
    assert gpu.failures({"parts": {"p": entries}}) == ["p: w: charlm"]


def test_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    assert measure.relative_difference([torch.tensor([3.0, 5.0])], [torch.tensor([3.0, 4.0])]) == pytest.approx(0.2)
    assert measure.relative_difference([torch.tensor(8.0)], [torch.tensor([3.0, 5.0])]) == 0.0
    assert measure.relative_difference([torch.tensor([0.5])], [torch.tensor([0.0])]) == 0.5
    with pytest.raises(ValueError, match=r"a result has shape \(3,\), expected \(2,\)"):
        measure.relative_difference([torch.ones(3)], [torch.ones(2)])
    monkeypatch.setattr(measure, "_COMPARED_AT_ONCE", 2)
    assert measure.relative_difference([torch.full((5,), 1.5)], [torch.ones(5)]) == pytest.approx(0.5)
    for value in ("nan", "inf"):
        with pytest.raises(ValueError, match="a result is infinite or NaN"):
            measure.relative_difference([torch.tensor([float(value)])], [torch.tensor([1.0])])


def test_a_slow_step_is_called_a_few_times(cpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "_SECONDS", 0.01)
    calls = []

    def step() -> list[Tensor]:
        calls.append(None)
        time.sleep(0.02)
        return []

    assert measure.gpu_seconds(step) >= 0.02
    assert len(calls) == 4  # one to warm up
    assert measure.call_seconds(step) >= 0.02
    assert len(calls) == 8


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Results]:
    monkeypatch.setattr(measure, "is_broken", lambda: False)
    monkeypatch.setattr(measure, "release_memory", lambda: None)
    return lambda facts=FACTS, **options: Results(tmp_path / "results" / "a-gpu.json", facts, **options)


def test_what_was_done_is_not_done_again(results: Callable[..., Results], tmp_path: Path) -> None:
    ran: list[str] = []

    def task(name: str, error: type[BaseException] | None = None) -> Task:
        def run() -> Entry:
            ran.append(name)
            if error is not None:
                raise error("why\nwhere")
            return {"value": 1}

        return Task(name, run, {"implementation": "eager"})

    def run(given: Results, tasks: list[Task], deadline: float = LATER) -> list[str]:
        return gpu.run_parts(given, ["p"], {"p": lambda: iter(tasks)}, deadline)

    def entries() -> dict[str, Any]:
        parts = json.loads((tmp_path / "results" / "a-gpu.json").read_text())["parts"]
        return {name: entry | {"took_s": 0} for name, entry in parts["p"].items()}

    value = {"implementation": "eager", "value": 1, "took_s": 0}
    failed = {"implementation": "eager", "error": "RuntimeError: why", "took_s": 0}
    with pytest.raises(KeyboardInterrupt):
        run(results(), [task("a"), task("b", RuntimeError), task("c", KeyboardInterrupt)])
    assert entries() == {"a": value, "b": failed}
    assert run(results(), [task("a"), task("b"), task("c")]) == []
    assert ran == ["a", "b", "c", "c"]
    assert entries() == {"a": value, "b": failed, "c": value}
    assert run(results(retry=True), [task("a"), task("b"), task("c")]) == []
    assert ran == ["a", "b", "c", "c", "b"]
    assert entries()["b"] == value
    # Of another commit nothing is kept; what there is no time for is named.
    assert run(results({**FACTS, "commit": "def"}), [task("a"), task("b")], time.monotonic() - 1) == ["p: a", "p: b"]
    assert run(results({**FACTS, "commit": "def"}), [task("b")]) == []
    assert entries() == {"b": value}


def test_a_crash_is_not_met_again(results: Callable[..., Results]) -> None:
    results().begin("p", "a", {"implementation": "quack"})
    after = results()
    assert after.has("p", "a")
    assert after.data["parts"]["p"]["a"] == {
        "implementation": "quack",
        "error": "the process ended while this ran",
    }


def test_a_device_that_cannot_be_used_any_more_takes_a_new_process(
    results: Callable[..., Results], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def illegal() -> Entry:
        monkeypatch.setattr(measure, "is_broken", lambda: True)
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "A GPU")
    monkeypatch.setattr(gpu.signal, "signal", lambda *_: None)
    parts = {"ceilings": lambda: iter([Task("copy", illegal), Task("write", lambda: {"bytes_per_s": 1e9})])}
    monkeypatch.setattr(gpu, "create_parts", lambda logs: parts)
    started: list[list[str]] = []

    def execv(program: str, arguments: list[str]) -> None:
        started.append(arguments)
        raise SystemExit

    monkeypatch.setattr(gpu.os, "execv", execv)
    given = ["--retry", "--out", str(tmp_path / "results"), "--commit", "abc"]
    with pytest.raises(SystemExit):
        gpu.main(given)
    (arguments,) = started
    assert arguments[:3] == [sys.executable, "-m", "benchmarks.gpu"]
    assert arguments[3:-1] == given[1:]
    assert 8.0 < float(arguments[-1].removeprefix("--minutes=")) <= 9.0

    monkeypatch.setattr(measure, "is_broken", lambda: False)
    with pytest.raises(SystemExit, match="failed: ceilings: copy"):
        gpu.main(arguments[3:])
    page = (tmp_path / "results" / "a-gpu.md").read_text()
    assert "- copy: RuntimeError: CUDA error: an illegal memory access was encountered\n- write: 1 GB/s\n" in page


def test_a_failed_command_is_a_failure() -> None:
    commands = {"memcheck": {"exit_status": 0}, "racecheck": {"exit_status": 9}}
    parts = {"sanitizer": {"sanitizer": {"commands": commands}}, "tests": {"tests": {"commands": {}}}}
    assert gpu.failures({"parts": parts}) == ["sanitizer: sanitizer"]
