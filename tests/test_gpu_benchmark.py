"""What `python -m benchmarks.gpu` measures, without a GPU: on small shapes on the CPU, with a clock in place."""

from __future__ import annotations

import json
import sys
import time
import types
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cuda_ways import capture_step
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.gpu import (
    __main__ as gpu,
)
from benchmarks.gpu import (
    ceilings,
    cross_entropy,
    embedding_linear,
    linear_cross_entropy,
    linear_log_probs,
    measure,
    measurements,
    mlp_cross_entropy,
    one_op,
    populations,
    profiled,
    training,
)
from benchmarks.gpu.results import MOST_DIFFERENCE, Entry
from benchmarks.gpu.task import Task, attempt
from benchmarks.opponents import EAGER
from charlm import PRESETS, data, engine, ops
from charlm.backends import graphed
from charlm.benchmark import WORKLOADS


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

    def compile(
        function: Callable[..., Tensor], *, dynamic: bool, fullgraph: bool, mode: str | None = None
    ) -> Callable[..., Tensor]:
        assert fullgraph
        assert not dynamic
        assert mode in (None, "reduce-overhead")
        return function

    monkeypatch.setattr(torch, "compile", compile)


@pytest.fixture
def opponents(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins with the signatures of liger-kernel 0.8.5, cut-cross-entropy 25.1.1 and quack-kernels 0.6.5."""

    def module(name: str, **content: Any) -> None:
        made = types.ModuleType(name)
        vars(made).update(content)
        monkeypatch.setitem(sys.modules, name, made)

    # What `apply` of these autograd functions takes: arguments by position, and those with a default may be left out.
    # Beside the loss there are three results that nobody asked for.
    class LigerCrossEntropyFunction:
        @staticmethod
        def apply(
            _input: Tensor,
            target: Tensor,
            weight: Tensor | None,
            ignore_index: int = -100,
            lse_square_scale: float = 0.0,
            label_smoothing: float = 0.0,
            reduction: str = "mean",
            softcap: float | None = None,
            return_z_loss: bool = False,
            return_token_accuracy: bool = False,
            return_predicted_tokens: bool = False,
            /,
        ) -> tuple[Tensor, None, None, None]:
            assert lse_square_scale == label_smoothing == 0.0
            loss = F.cross_entropy(_input, target, weight, ignore_index=ignore_index, reduction=reduction)
            return loss, None, None, None

    class LigerFusedLinearCrossEntropyFunction:
        @staticmethod
        def apply(
            _input: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None = None, *options: Any
        ) -> tuple[Tensor, None, None, None]:
            assert not options
            return F.cross_entropy(F.linear(_input, weight, bias), target), None, None, None

    def linear_loss(
        e: Tensor, c: Tensor, targets: Tensor, *, filter_eps: str | None = "high", chunk_size: int = 4096
    ) -> Tensor:
        return F.cross_entropy(F.linear(e, c), targets)

    def quack(x: Tensor, target: Tensor, *, reduction: str) -> Tensor:
        return F.cross_entropy(x, target, reduction=reduction)

    module("liger_kernel")
    module(
        "liger_kernel.ops",
        LigerCrossEntropyFunction=LigerCrossEntropyFunction,
        LigerFusedLinearCrossEntropyFunction=LigerFusedLinearCrossEntropyFunction,
    )
    module("cut_cross_entropy", linear_cross_entropy=linear_loss)
    module("quack")
    module("quack.cross_entropy", cross_entropy=quack)
    module("quack.linear_cross_entropy", chunked_linear_cross_entropy=linear_loss)


def done(tasks: Iterable[Task]) -> dict[str, Entry]:
    """The entries of tasks, each of which is to do what it should."""
    entries = {task.name: attempt(task) for task in tasks}
    for entry in entries.values():
        assert "error" not in entry, entry
        assert entry.get("difference", 0.0) <= MOST_DIFFERENCE
        assert all(entry[name] > 0.0 for name in ("median_s", "call_s") if name in entry)
    return entries


def of(workload: measure.Workload) -> Iterator[Task]:
    return measure.tasks(workload, workload.implementations)


def one(entries: dict[str, Entry], implementation: str) -> Entry:
    (entry,) = [entry for entry in entries.values() if entry["implementation"] == implementation]
    return entry


def test_ceilings(cpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "COPIED_BYTES", 1000)
    monkeypatch.setattr(ceilings, "SIZE", 10)

    def one_second(step: measure.Step) -> float:
        step()
        return 1.0

    monkeypatch.setattr(measure, "gpu_seconds", one_second)
    entries = done(task for part, task in ceilings.tasks() if part == "ceilings")
    assert [{**entry, "took_s": 0} for entry in entries.values()] == [
        {"bytes_per_s": 2000.0, "took_s": 0},
        {"bytes_per_s": 1000.0, "took_s": 0},
        {"flops_per_s": 2000.0, "took_s": 0},
        {"flops_per_s": 2000.0, "took_s": 0},
    ]
    assert list(entries) == ["copy", "write", "bf16 product", "float32 product"]


@pytest.mark.parametrize("backward", [False, True])
def test_cross_entropy(cpu: None, opponents: None, backward: bool) -> None:
    entries = done(of(cross_entropy.workload(10, 256, backward=backward)))
    assert [entry["implementation"] for entry in entries.values()] == ["charlm", "eager", "compile", "quack", "liger"]
    entry = one(entries, "charlm")
    # 10 rows of 256 bfloat16 logits, a target of 8 bytes and a loss of 2 each.
    assert entry["bytes"] == (3 * 5120 + 2 * 100 if backward else 5120 + 100)
    assert entry["ceiling"] == "copy"
    assert (entry["rows"], entry["classes"]) == (10, 256)
    assert entry["memory_bytes"] == 234
    assert entry["workload"] == f"cross_entropy N=10 C=256, forward{' + backward' * backward}"
    assert entry.get("published_share") == (None if backward else 1113 / 3350)


def test_linear_cross_entropy(cpu: None, opponents: None) -> None:
    entries = done(of(linear_cross_entropy.workload(8, 16, 40)))
    names = ["charlm", "eager", "compile", "liger", "cce", "cce unfiltered", "quack"]
    assert [entry["implementation"] for entry in entries.values()] == names
    # Three products of 2 * 8 * 16 * 40 operations.
    assert all((entry["flops"], entry["ceiling"]) == (30_720, "bf16 product") for entry in entries.values())
    assert all((entry["rows"], entry["features"], entry["classes"]) == (8, 16, 40) for entry in entries.values())


@pytest.mark.parametrize(("backward", "products"), [(False, 1), (True, 4)])
def test_linear_log_probs(cpu: None, backward: bool, products: int) -> None:
    entries = done(of(linear_log_probs.workload(8, 16, 40, backward=backward)))
    assert [entry["implementation"] for entry in entries.values()] == ["charlm", "eager", "compile"]
    # Products of 2 * 8 * 16 * 40 operations.
    flops = products * 10_240
    assert all((entry["flops"], entry["products"]) == (flops, products) for entry in entries.values())
    assert all((entry["rows"], entry["features"], entry["classes"]) == (8, 16, 40) for entry in entries.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backward", [False, True])
def test_embedding_linear(cpu: None, backward: bool, dtype: torch.dtype) -> None:
    shape = embedding_linear.Shape(6, 3, 5, 4, 7, dtype)
    entries = done(of(embedding_linear.workload(shape, backward=backward)))
    assert [entry["implementation"] for entry in entries.values()] == ["charlm", "eager", "compile"]
    counted = (42 * dtype.itemsize * (3 if backward else 1), "copy" if backward else "write")
    assert all((entry["bytes"], entry["ceiling"]) == counted for entry in entries.values())
    sizes = ("rows", "context_length", "vocab_size", "embedding_dim", "hidden_dim")
    assert all([entry[size] for size in sizes] == [6, 3, 5, 4, 7] for entry in entries.values())


def test_mlp_cross_entropy(cpu: None) -> None:
    entries = done(of(mlp_cross_entropy.workload(data.load(context_length=3), 10, 4, 8)))
    assert [entry["implementation"] for entry in entries.values()] == ["charlm", "eager", "compile"]
    # Three products of 2 * 10 * 8 * 27 operations.
    assert all((entry["flops"], entry["examples"]) == (12_960, 10) for entry in entries.values())
    sizes = ("rows", "context_length", "vocab_size", "embedding_dim", "hidden_dim")
    assert all([entry[size] for size in sizes] == [10, 3, 27, 4, 8] for entry in entries.values())


def test_training(cpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    small = replace(WORKLOADS["makemore"], hidden_dim=4, batch_size=8)
    monkeypatch.setattr(training, "WORKLOADS", dict.fromkeys(training.PRESETS, small))
    monkeypatch.setattr(training, "_ROUND_SECONDS", 1e-4)
    monkeypatch.setattr(graphed, "capture", capture_step)
    entries = done(training.tasks("makemore", training.MAKERS))
    assert list(entries) == [f"makemore: {maker}" for maker in training.MAKERS]
    assert all(entry["examples"] == 8 for entry in entries.values())
    assert {name: entry["asked_s"] for name, entry in entries.items() if "asked_s" in entry} == {
        "makemore: fused": 1e-5
    }


def test_what_training_is_asked_first() -> None:
    names = [task.name for part, task in training.step() if part == "training"]
    soon = ["fused", "graph", "ops", "eager", "eager graph"]
    assert names == [
        *(f"makemore: {maker}" for maker in soon),
        *("makemore: 132 models", "makemore: 264 models", "fast: a whole run", "makemore: a whole run"),
        *(f"{preset}: {maker}" for preset in ("eureka", "large") for maker in soon),
        "makemore: compile, reduce-overhead",
    ]
    others = [task.name for part, task in measurements.compiled() if part == "training"]
    assert others == [f"{preset}: compile" for preset in training.PRESETS]


@pytest.fixture
def small_presets(cpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    presets = {"makemore": {"batch_size": 8, "steps": 50}, "fast": {"steps": 21}}
    small = {name: replace(PRESETS[name], hidden_dim=4, **options) for name, options in presets.items()}
    monkeypatch.setattr(populations, "PRESETS", small)
    monkeypatch.setattr(populations, "_ROUND_SECONDS", 1e-4)
    monkeypatch.setattr(populations, "_DRAWN_STEPS", 3)
    monkeypatch.setattr(populations, "MODELS", (3, 4))


def test_populations(small_presets: None) -> None:
    entries = done(task for task in populations.tasks() if "models" in task.name)
    assert list(entries) == ["makemore: 3 models", "makemore: 4 models"]
    first, second = entries.values()
    assert (first["models"], first["asked_steps_per_s"]) == (3, 12e6)
    assert first["steps_per_s"] == pytest.approx(3 / first["call_s"])
    assert second["steps_per_s_with_drawing"] > 0
    assert "asked_steps_per_s" not in second


@pytest.mark.parametrize(("asked", "is_reached"), [(1.0, False), (10.0, True)])
def test_whole_runs(small_presets: None, asked: float, is_reached: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CHARLM_MAKEMORE_NAMES", raising=False)
    monkeypatch.setattr(populations, "ASKED_DEV_LOSS", asked)
    entries = done(task for task in populations.tasks() if "run" in task.name)
    assert list(entries) == ["fast: a whole run", "makemore: a whole run"]
    for entry, steps in zip(entries.values(), (21, 50), strict=True):
        assert (entry["data"], entry["steps"], entry["asked_dev_loss"]) == ("the embedded names", steps, asked)
        assert 1.0 < entry["dev_loss"] < 3.5
        assert ("seconds_to_asked" in entry) == is_reached
        assert 0.0 < entry.get("seconds_to_asked", 1e-9) < entry["seconds_of_training"]


def test_whole_runs_are_of_the_lectures_names_where_they_are(
    small_presets: None, names: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHARLM_MAKEMORE_NAMES", str(names))
    entries = done(task for task in populations.tasks() if task.name == "makemore: a whole run")
    assert entries["makemore: a whole run"]["data"] == names.name


def test_what_runs_out_of_time_has_measured_something_of_everything() -> None:
    tasks = list(measurements.ours_and_eager())
    names = [(part, task.name) for part, task in tasks]
    assert len(set(names)) == len(names) == 2 * (18 + 2 + 4 + 4 + 4)
    assert {task.facts["implementation"] for _, task in tasks} == {"charlm", "eager"}
    # Each part has its turn, ours before what it is compared with; of the shapes the extremes come first.
    assert [part for part, _ in tasks[:10:2]] == list(measurements.OPS)
    assert [task.facts["implementation"] for _, task in tasks[:4]] == ["charlm", "eager"] * 2
    classes = [task.facts["classes"] for part, task in tasks if part == "cross_entropy"][::2]
    assert classes[:5] == [27, 262144, 16384, 1024, 65536]
    assert sorted(classes) == sorted(2 * [classes for _, classes in cross_entropy.SHAPES])
    assert {task.facts["implementation"] for _, task in measurements.peers()} == set(measurements.PEERS)
    assert {task.facts["implementation"] for _, task in measurements.compiled()} == {"compile"}


def test_spread() -> None:
    assert measurements.spread([0, 1, 2, 3, 4, 5, 6]) == [0, 6, 3, 1, 4, 2, 5]
    assert measurements.spread([1]) == [1]


@pytest.mark.parametrize("call", profiled.CALLS)
def test_what_is_profiled(call: str, cpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    for name in ("start", "stop"):
        monkeypatch.setattr(torch.cuda.profiler, name, lambda name=name: said.append(name))
    monkeypatch.setattr(profiled, "ROWS", 5)
    monkeypatch.setattr(profiled, "WIDE", (3, 300))
    monkeypatch.setattr(profiled, "SHAPE", replace(profiled.SHAPE, rows=7))
    op = "embedding_linear" if "table" in call else call if call == "train_steps" else "cross_entropy"
    module = engine if call == "train_steps" else ops
    right = getattr(module, op)

    def watched(*arguments: Any, **options: Any) -> Tensor:
        said.append("forward")
        result = right(*arguments, **options)
        if result.requires_grad:
            result.register_hook(lambda gradient: said.append("backward"))
        return result

    monkeypatch.setattr(module, op, watched)
    profiled.main(call)
    backward = call in ("wide cross_entropy backward", "scatter_into_tables")
    assert said == (["forward", "start", "backward", "stop"] if backward else ["start", "forward", "stop"])


def test_one_op(cpu: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    one_op.main()
    assert sorted(json.loads(capsys.readouterr().out)) == ["first_call_s", "import_s"]
    monkeypatch.setattr(ops, "cross_entropy", lambda logits, target: torch.tensor(3.0))
    with pytest.raises(SystemExit, match=r"cross_entropy of 27 equal logits is 3.0 and not log\(27\)"):
        one_op.main()


def test_shapes_are_those_that_others_publish() -> None:
    assert [classes for _, classes in cross_entropy.SHAPES[1:]] == list(cross_entropy.QUACK_GB_PER_S)
    assert cross_entropy.SHAPES[0] == (2**20, 27)
    assert [rows for rows, _ in cross_entropy.SHAPES[1:]] == [2**15] * 6 + [2**14, 2**13]
    assert linear_cross_entropy.SHAPES == ((8192, 4096, 128256), (8192, 2304, 256000))
    assert linear_log_probs.SHAPES[0] == linear_cross_entropy.SHAPES[0]


def test_what_is_not_installed_or_fails_is_recorded(cpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_memory(*arguments: Any, **options: Any) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

    monkeypatch.setitem(sys.modules, "quack", None)
    monkeypatch.setitem(EAGER, "cross_entropy", out_of_memory)
    tasks = of(cross_entropy.workload(10, 256, backward=True))
    entries = {entry["implementation"]: entry for entry in map(attempt, tasks)}
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
    entries = {task.name: attempt(task) for task in of(wrong)}
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


def test_the_cache_is_flushed_by_reading(cpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written there stays in the cache until the call that is measured makes room, in its own time."""
    monkeypatch.setattr(measure, "_FLUSH_BYTES", 4096)
    monkeypatch.setattr(measure, "_SECONDS", 1e-9)
    written: list[int] = []

    class Watched(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            written.append(result.numel())
            return result

    with Watched():
        measure.gpu_seconds(lambda: [])
    # Memory is allocated and cleared once; all else writes a number, as often as something is measured at least.
    assert sorted(written)[-1:] == [1024]
    assert sum(count > 1 for count in written) <= 2
    assert written.count(1) > measure._FEWEST_CALLS


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


def test_a_failed_command_is_a_failure() -> None:
    commands = {"memcheck": {"exit_status": 0}, "racecheck": {"exit_status": 9}}
    parts = {"sanitizer": {"sanitizer": {"commands": commands}}, "tests": {"tests": {"commands": {}}}}
    assert gpu.failures({"parts": parts}) == ["sanitizer: sanitizer"]
