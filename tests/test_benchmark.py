"""Races and the page of results: what is measured, and that every figure shown follows from the medians."""

from __future__ import annotations

import json
import os
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import charlm
from benchmarks import growth
from benchmarks.__main__ import main as run_benchmarks
from benchmarks.__main__ import time_ops
from benchmarks.page import render
from benchmarks.with_jax import create_run
from charlm import benchmark
from charlm.backends import BACKENDS, EagerBackend
from charlm.benchmark import WORKLOADS, race
from charlm.cli import main
from charlm.cli.bench import duration, rate

TINY = {"seconds": 1e-3}


class SecondBackend(EagerBackend):
    """A backend of autograd beside eager, without what compiling would take."""


class WholeStepBackend:
    """A backend that is none of autograd's: it takes the whole split as it likes."""

    def __init__(self, *arguments: Any) -> None:
        self._eager = EagerBackend(*arguments)

    def run(self, batch_indices: Tensor | None, learning_rates: Tensor) -> Tensor:
        return self._eager.run(batch_indices, learning_rates)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Three backends that need no compiler, few names, and matrices that multiply at once."""
    monkeypatch.setitem(BACKENDS, "second", SecondBackend)
    monkeypatch.setitem(BACKENDS, "whole", WholeStepBackend)
    monkeypatch.setattr(benchmark, "_PRODUCT_SIZE", 64)
    names = charlm.data.EMBEDDED_NAMES.read_text().splitlines()
    path = tmp_path / "few.txt"
    path.write_text("\n".join(names[::200]))
    threads = torch.get_num_threads()
    yield path
    assert torch.get_num_threads() == threads


def bench(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    assert main(["bench", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def test_the_workloads_are_those_of_the_published_runs() -> None:
    def facts(name: str) -> tuple[object, ...]:
        config = WORKLOADS[name]
        return config.embedding_dim, config.hidden_dim, config.batch_size, config.optimizer, config.model

    assert facts("makemore") == (10, 200, 32, "sgd", "mlp")
    assert facts("eureka") == (48, 512, 128, "adamw", "mlp")
    assert facts("large") == (10, 200, 4096, "sgd", "mlp")
    assert facts("full") == (10, 200, "full", "sgd", "mlp")


def test_operations_are_those_of_the_products() -> None:
    # Forward (32, 30) (30, 200) and (32, 200) (200, 27), two operations each; backward both of their gradients.
    assert benchmark.naive_flops(WORKLOADS["makemore"], 27, 32) == 3 * 2 * 32 * (30 * 200 + 200 * 27)


@pytest.mark.parametrize("workload", WORKLOADS)
def test_json_has_the_rounds_and_what_follows_from_their_medians(
    small: Path, capsys: pytest.CaptureFixture[str], workload: str
) -> None:
    options = [small, "--preset", workload, "--backends", "eager,second", "--seconds", 1e-3]
    report = json.loads(bench(capsys, *options, "--json"))
    assert (
        report["command"]
        == f"charlm bench {small} --preset {workload} --backends eager,second --threads 1 --seconds 0.001"
    )
    assert report["versions"]["torch"] == torch.__version__
    assert report["machine"]["cores"] >= 1
    assert report["threads"] == 1
    assert report["sgemm_gflops"] > 0
    facts = report["workload"]
    config = WORKLOADS[workload]
    vocab_size = facts["vocab_size"]
    assert facts["flops_per_step"] == benchmark.naive_flops(config, vocab_size, facts["examples_per_step"])
    assert facts["parameters"] == sum(p.numel() for p in config.create_model(vocab_size).parameters())
    if workload == "full":
        assert facts["examples_per_step"] == len(charlm.data.load(small).train)
    else:
        assert facts["examples_per_step"] == config.batch_size

    results = report["results"]
    eager = results[0]["median_s"]
    for result in results:
        median = statistics.median(result["rounds_s"])
        assert 3 <= len(result["rounds_s"]) <= 9
        assert result["median_s"] == median > 0
        assert result["steps_per_second"] == pytest.approx(1 / median)
        assert result["examples_per_second"] == pytest.approx(facts["examples_per_step"] / median)
        assert result["ratio_to_eager"] == pytest.approx(eager / median)
        assert result["gflops"] == pytest.approx(facts["flops_per_step"] / median / 1e9)
        assert result["share_of_sgemm"] == pytest.approx(result["gflops"] / report["sgemm_gflops"])
    shown = [(result["name"], result["examples"]) for result in results]
    if workload == "full":
        assert shown == [
            ("eager", "every example"),
            ("eager (distinct)", "distinct contexts"),
            ("second", "every example"),
        ]
    else:
        assert shown == [("eager", "batch"), ("second", "batch")]


def test_a_backend_of_whole_steps_takes_the_full_batch_its_own_way(small: Path) -> None:
    finished = race("full", path=str(small), backends=["whole", "second"], **TINY)
    assert [(timing.name, timing.examples) for timing in finished.timings] == [
        ("whole", "distinct contexts"),
        ("second", "every example"),
    ]
    # Nobody to compare with.
    assert [result["ratio_to_eager"] for result in finished.to_dict()["results"]] == [None, None]


def test_rounds_alternate_and_slow_backends_get_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: now)
    order = []

    def contestant(name: str, seconds: float) -> benchmark._Contestant:
        def run(steps: int) -> Tensor:
            nonlocal now
            now += steps * seconds
            order.append((name, steps))
            return torch.tensor([3.0])

        return benchmark._Contestant(name, name, "batch", run)

    monkeypatch.setattr(benchmark, "product_rate", lambda: 1e9)
    stages: list[str] = []
    timings, sgemm = benchmark._time([contestant("fast", 0.001), contestant("slow", 0.25)], 0.9, stages.append)
    assert sgemm == 1e9
    # 2 * 0.9 s are 7 slow steps; a round is a ninth of 0.9 s.
    assert stages == ["warming up fast", "warming up slow", *(f"round {i} of 7" for i in range(1, 8))]
    assert order[-14:] == [("fast", 100), ("slow", 1), ("slow", 1), ("fast", 100)] * 3 + [("fast", 100), ("slow", 1)]
    assert [timing.seconds for timing in timings] == pytest.approx([0.001, 0.25])
    assert [len(timing.rounds) for timing in timings] == [7, 7]


def test_backends_that_compute_something_else_are_not_compared(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(EagerBackend):
        def run(self, batch_indices: Tensor | None, learning_rates: Tensor) -> Tensor:
            return super().run(batch_indices, learning_rates) * 1.01

    monkeypatch.setitem(BACKENDS, "wrong", Wrong)
    with pytest.raises(RuntimeError, match=r"wrong has the losses \[3\.3\d+, .*\] in its first steps, eager \[3\."):
        race("makemore", path=str(small), backends=["eager", "wrong"], **TINY)


def test_jax_is_asked_for_by_who_wants_to_race_it(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jax", None)  # as if it were not installed
    cores = os.sched_getaffinity(0)
    with pytest.raises(ValueError, match="the backend 'jax' needs JAX: pip install jax"):
        race("makemore", path=str(small), backends=["jax"], **TINY)
    assert os.sched_getaffinity(0) == cores
    with pytest.raises(ValueError, match="the loop in JAX trains an MLP without direct connections"):
        create_run(replace(WORKLOADS["makemore"], direct=True), charlm.data.load(small), threads=1)


@pytest.mark.parametrize(("workload", "examples"), [("makemore", "batch"), ("full", "every example")])
def test_an_opponent_races_as_a_backend_does(
    small: Path, monkeypatch: pytest.MonkeyPatch, workload: str, examples: str
) -> None:
    given = []

    def create(config: charlm.TrainingConfig, dataset: charlm.data.Dataset, threads: int) -> Callable[[int], Tensor]:
        given.append((config.batch_size, dataset.name, threads))
        return config.create_trainer(config.create_model(len(dataset.vocabulary)), dataset).run

    monkeypatch.setitem(benchmark.OPPONENTS, "other", create)
    finished = race(workload, path=str(small), backends=["second", "other"], **TINY)
    assert given == [(WORKLOADS[workload].batch_size, "few", 1)]
    assert [timing.examples for timing in finished.timings] == [finished.timings[0].examples, examples]
    with pytest.raises(ValueError, match=r"backends must be among eager, .*, jax, other, got 'none'$"):
        race(workload, backends=["none"])


def test_the_command_that_measures_again_is_the_one_that_was_run(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [str(small), "--backends", "eager", "--seconds", "0.001"]
    capsys.readouterr()
    assert main(["bench", *options, "--json"], program="python -m benchmarks.with_jax") == 0
    command = f"python -m benchmarks.with_jax bench {small} --preset makemore --backends eager --threads 1"
    assert json.loads(capsys.readouterr().out)["command"] == f"{command} --seconds 0.001"


def test_threads_are_set_for_the_race_only(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set()

    class Watching(EagerBackend):
        def run(self, batch_indices: Tensor | None, learning_rates: Tensor) -> Tensor:
            seen.add(torch.get_num_threads())
            return super().run(batch_indices, learning_rates)

    monkeypatch.setitem(BACKENDS, "watching", Watching)
    race("makemore", path=str(small), backends=["watching"], threads=3, **TINY)
    assert seen == {3}


def test_the_table_shows_the_medians(small: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    picture = tmp_path / "speed.png"
    options = ["--preset", "full", "--backends", "eager,second,whole", "--seconds", 1e-3, "--plot", picture]
    lines = bench(capsys, small, *options).splitlines()
    config = charlm.PRESETS["makemore"]
    examples = len(charlm.data.load(small, context_length=config.context_length).train)
    assert lines[0].startswith("full: ")
    assert lines[0].endswith(f" parameters, sgd, {examples:,} examples a step, few")
    assert f"; torch {torch.__version__}, charlm {charlm.__version__}" in lines[1]
    heading = next(line for line in lines if line.lstrip().startswith("backend"))
    assert heading.split() == ["backend", "time/step", "steps/s", "x", "eager", "examples/s", "GFLOP/s", "of", "sgemm"]
    rows = {line.split("  ")[0].strip(): line.split() for line in lines if line.strip().endswith("%")}
    assert list(rows) == ["eager", "eager (distinct)", "second", "whole"]
    assert rows["eager"][-4] == "1.00"
    assert lines[-1] == (
        "Computed in a step: every example (eager, second); each distinct context once (eager (distinct), whole)."
    )
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("seconds", "shown"), [(1.234, "1.23 s"), (0.0123, "12.3 ms"), (0.000456, "456 µs"), (2.5e-6, "2.5 µs")]
)
def test_durations_have_the_unit_that_fits(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


@pytest.mark.parametrize(("per_second", "shown"), [(0.76123, "0.7612"), (987.65, "987.6"), (19178.4, "19,178")])
def test_rates_are_no_powers_of_ten(per_second: float, shown: str) -> None:
    assert rate(per_second) == shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "lecture"], "--preset must be one of makemore, eureka, large, full, got 'lecture'"),
        (["--backends", "eager,magic"], "--backends must be among eager, "),
        (["--backends", "eager,eager"], "--backends must be one or more different ones, got eager, eager"),
        (["--backends", ","], "--backends must be one or more different ones, got none"),
        (["--threads", "0"], "Invalid value for '--threads': 0 is not a positive integer"),
        (["--seconds", "0"], "Invalid value for '--seconds': 0.0 is not a positive number"),
        (["missing.txt"], "missing.txt: No such file or directory"),
    ],
)
def test_bad_input_is_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert main(["bench", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith(f"error: {message}")


# benchmarks/

OP_BENCHMARK = """
import torch
from benchmarks.common import implementations, measure

@implementations
def test_sum(benchmark, implementation):
    values = torch.ones(10 if implementation == "charlm" else 100)
    measure(benchmark, "sum of some", lambda: values.sum(), floor="reading 40 bytes", floor_seconds=1e-9)
"""


def test_ops_are_timed_by_pass_and_implementation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(charlm.__file__).parent.parent))
    # Where these tests run in parallel, the pytest inside would take itself for one of the workers and time nothing.
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    file = tmp_path / "bench_sum.py"
    file.write_text(OP_BENCHMARK)
    timed = time_ops([file], passes=1, seconds=0.01)
    assert [row["implementation"] for row in timed] == ["charlm", "eager", "compile"]
    for row in timed:
        assert row["workload"] == "sum of some"
        assert row["floor"] == "reading 40 bytes"
        assert row["floor_s"] == 1e-9
        assert row["passes_s"] == [row["median_s"]]
        assert 0 < row["median_s"] < 1


def test_results_are_kept_by_machine_and_shown_on_one_page(small: Path, tmp_path: Path) -> None:
    other = {
        "command": "python -m benchmarks",
        "date": "2026-01-02",
        "commit": "abc",
        "machine": {"processor": "Other 3000", "cores": 64, "platform": "Linux"},
        "versions": charlm.environment.versions(),
        "races": [
            race("makemore", path=str(small), backends=["eager"], **TINY).to_dict() | {"command": "charlm bench"}
        ],
        "ops": [
            {"workload": "w", "implementation": name, "median_s": time, "floor": "one read", "floor_s": 1e-6}
            for name, time in (("charlm", 2e-6), ("eager", 5e-6))
        ],
        "growth": [
            {
                "sweep": "batch_size",
                "label": "batch size B",
                "points": [
                    {"batch_size": size, "context_length": 3, "vocab_size": 27, "embedding_dim": 10, "hidden_dim": 200}
                    | {"median_s": {"eager": 8e-6, "fused": 2e-6}}
                    for size in (1, 4096)
                ],
            }
        ],
        "growth_picture": "other-growth.png",
    }
    results = tmp_path / "results"
    results.mkdir()
    (results / "other.json").write_text(json.dumps(other))
    run_benchmarks(["--presets", "--files", "--sweeps", "--out", str(results)])
    (written,) = set(results.glob("*.json")) - {results / "other.json"}
    report = json.loads(written.read_text())
    assert report["races"] == report["ops"] == report["growth"] == []
    assert report["command"] == f"python -m benchmarks --presets --files --sweeps --out {results}"
    assert report["commit"] == charlm.environment.commit()
    assert set(written.stem) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    page = (results / "README.md").read_text()
    assert "## Other 3000, 64 cores\n" in page
    assert f"## {report['machine']['processor']}, {report['machine']['cores']} cores\n" in page
    assert "| w | charlm | 2 µs | 2.50 | 1 µs: one read |\n| w | eager | 5 µs | 1.00 | 1 µs: one read |\n" in page
    assert "| B=4,096 T=3 V=27 D=10 H=200 | 8 µs | 2 µs | 4.00 |\n" in page
    assert "![time per step](other-growth.png)\n" in page
    (eager,) = other["races"][0]["results"]
    assert f"| eager | batch | {duration(eager['median_s'])} | {rate(eager['steps_per_second'])} | 1.00 | " in page
    assert page == render([json.loads(path.read_text()) for path in sorted(results.glob("*.json"))])


def test_growth_is_measured_at_every_point_and_drawn(tmp_path: Path) -> None:
    base = growth.Sizes(batch_size=3, context_length=2, vocab_size=5, embedding_dim=2, hidden_dim=4)
    sweeps = {
        "batch_size": growth.Sweep("batch size B", (base, replace(base, batch_size=6))),
        "word_model": growth.Sweep("word model", (replace(base, vocab_size=300),)),
    }
    measured = growth.measure(sweeps, 1e-4)
    assert [len(sweep["points"]) for sweep in measured] == [2, 1]
    for sweep in measured:
        for point in sweep["points"]:
            assert set(point["median_s"]) == {"eager", "ops", "fused", "fused, 2 threads"}
            assert all(0 < seconds < 10 for seconds in point["median_s"].values())
    growth.draw(measured, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")


def test_tokens_of_the_sweeps_repeat_their_contexts() -> None:
    split = growth.token_stream(27, 20_000, 3)
    assert len(split) == 20_000
    assert split.targets.unique().tolist() == list(range(27))
    assert len(split.distinct()) < 10_000
