"""`python -m benchmarks.gpu` without a GPU: what hangs, aborts or loses the device costs itself and nothing else."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import jobs, measure, plan, processes
from benchmarks.gpu.logs import Logs
from benchmarks.gpu.processes import Command
from benchmarks.gpu.results import Results, failures
from benchmarks.gpu.steps import STEPS, CommandStep, Step, TaskStep

FACTS = {
    "gpu": "A GPU",
    "driver": "1.2",
    "commit": "abc",
    "date": "2026-01-01",
    "versions": {"charlm": "1.0", "torch": "2.13.0", "python": "3.12.3"},
    "cuda": "13.0",
    "machine": {"processor": "p", "cores": 2, "platform": "l"},
    "command": "python -m benchmarks.gpu",
}
LATER = math.inf


def python(program: str, **environment: str) -> Command:
    return Command([sys.executable, "-c", program], environment)


def names_of(source: Callable[[], Any]) -> list[jobs.Name]:
    return [(part, task.name) for part, task in source()]


@pytest.fixture
def rehearsal(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The tasks that workers find, too."""
    here = str(Path(__file__).parent)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")])))
    monkeypatch.setattr(measure, "DEVICE", "cpu")  # which it changes for workers
    import gpu_rehearsal

    return gpu_rehearsal


def measured(
    steps: Sequence[Step], tasks: dict[str, list[jobs.Name]], out: Path, **changed_facts: Any
) -> tuple[dict[str, Any], list[jobs.Name]]:
    facts = {**FACTS, **changed_facts}
    left = gpu.measure(steps, tasks, out / "a-gpu.json", facts, time.monotonic() + 600.0, retry=False)
    return json.loads((out / "a-gpu.json").read_text()), left


def logs_of(out: Path) -> dict[str, str]:
    with tarfile.open(out / "logs.tar.gz") as archive:
        return {name: archive.extractfile(name).read().decode() for name in archive.getnames()}  # type: ignore[union-attr]


def test_a_step_that_hangs_or_aborts_loses_nothing_else(rehearsal: Any, tmp_path: Path) -> None:
    steps = (
        TaskStep("worst", 200, "gpu_rehearsal:all_kinds", task_seconds=3.0),
        TaskStep("broken", 100, "gpu_rehearsal:broken", task_seconds=3.0),
        CommandStep(
            "commands",
            4.0,
            lambda: {"hangs": python("import time; print('began', flush=True); time.sleep(600)"), "fine": python("")},
            lambda name, status, text: {},
            task_seconds=60.0,
            at_once=2,
        ),
        TaskStep("last", 100, "gpu_rehearsal:fine", task_seconds=50.0),
    )
    tasks = {
        "worst": names_of(rehearsal.all_kinds),
        "broken": [("broken", "a")],
        "commands": steps[2].names(),  # type: ignore[union-attr]
        "last": names_of(rehearsal.fine),
    }
    results, left = measured(steps, tasks, tmp_path)
    parts = results["parts"]
    worst = parts["rehearsal"]
    assert list(worst) == ["one", "hangs", "two", "aborts", "three", "loses", "four"]
    assert worst["hangs"]["error"] == "did not end within 3 s"
    assert any("in _hang" in line for line in worst["hangs"]["last_lines"])  # it says where
    assert worst["aborts"]["error"] == "the process ended: SIGABRT"
    assert worst["loses"]["error"] == "RuntimeError: CUDA error: an illegal memory access was encountered"
    assert all(entry["implementation"] == "charlm" for entry in worst.values())
    # Each that ruined its process took no other with it; the next process went on.
    assert len({worst[name]["process"] for name in ("one", "two", "three", "four")}) == 4
    assert parts["broken"]["broken: start"]["error"] == "no task began: exit status 1"
    assert "nothing of this can be imported" in parts["broken"]["broken: start"]["last_lines"][-1]
    hanging = parts["commands"]["hangs"]["commands"]["hangs"]
    assert hanging["exit_status"] == 124
    assert hanging["note"].startswith("ran out of time after ")
    assert hanging["last_lines"] == ["began"]
    assert parts["commands"]["fine"]["commands"]["fine"]["exit_status"] == 0
    assert {name: entry["bytes_per_s"] for name, entry in parts["ceilings"].items()} == {"copy": 1e9, "write": 2e9}
    assert left == [("broken", "a")]
    assert failures(results) == [
        "rehearsal: hangs",
        "rehearsal: aborts",
        "rehearsal: loses",
        "broken: broken: start",
        "commands: hangs",
    ]
    assert {key: results[key] for key in FACTS} == FACTS
    logs = logs_of(tmp_path)
    assert "in _hang" in logs["1/worst.1.log"]
    assert "Fatal Python error: Aborted" in logs["1/worst.2.log"]
    assert logs["1/hangs.1.log"] == "began\n"
    assert " s  rehearsal: aborts: the process ended: SIGABRT\n" in logs["1/run.log"]

    # The same command does what is left, and not again what failed.
    again, _ = measured(steps, tasks, tmp_path)
    assert again["parts"] == parts | {"broken": again["parts"]["broken"]}
    assert {"2/broken.1.log", "1/worst.1.log"} <= set(logs_of(tmp_path))
    assert "2/worst.1.log" not in logs_of(tmp_path)
    # Of another commit nothing is kept.
    other, _ = measured([], {}, tmp_path, commit="def")
    assert other["parts"] == {}
    assert set(logs_of(tmp_path)) == set()


def test_tasks_side_by_side_each_in_a_process_of_its_own(rehearsal: Any, tmp_path: Path) -> None:
    step = TaskStep("risky", 200, "gpu_rehearsal:alone", task_seconds=50.0, is_alone=True, at_once=3)
    results, left = measured([step], {"risky": names_of(rehearsal.alone)}, tmp_path)
    entries = results["parts"]["risky"]
    assert left == []
    assert entries["aborts"]["error"] == "the process ended: SIGABRT"
    assert entries["a"]["process"] != entries["b"]["process"]


def test_what_the_limit_of_a_step_cuts_off_is_done_once_more(rehearsal: Any, tmp_path: Path) -> None:
    """The limit came before that of the task, so the task may not be to blame."""
    name = ("rehearsal", "hangs")

    def cut(record: jobs.Record) -> dict[str, Any]:
        job = jobs.WorkerJob("worst", "gpu_rehearsal:all_kinds", [name], record, task_seconds=60.0)
        job.start()
        while not record.results.has(*name):
            assert not job.poll()
        job.stop()
        entry = record.results.data["parts"]["rehearsal"]["hangs"]
        assert entry["error"].endswith(" s that were left to its step")
        return dict(entry)

    record = jobs.Record(Results(tmp_path / "a.json", FACTS), tmp_path, print)
    assert cut(record)["cut"] is True
    assert record.cut == {name}
    assert not Results(tmp_path / "a.json", FACTS).has(*name)  # a later run does it
    record.once_more([name])
    record.results.forget(*name)
    assert "cut" not in cut(record)  # for the second time, which is recorded for good
    assert record.cut == set()
    assert Results(tmp_path / "a.json", FACTS).has(*name)
    assert len(list(tmp_path.glob("worst.*.log"))) == 2


def test_a_process_that_is_interrupted_leaves_nothing_behind(
    rehearsal: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = Results.put

    def interrupt(self: Results, part: str, name: str, entry: Any) -> None:
        put(self, part, name, entry)
        if name == "two":
            raise KeyboardInterrupt

    step = TaskStep("worst", 200, "gpu_rehearsal:all_kinds", task_seconds=50.0)
    monkeypatch.setattr(Results, "put", interrupt)
    with pytest.raises(KeyboardInterrupt):
        measured([step], {"worst": [("rehearsal", "one"), ("rehearsal", "two")]}, tmp_path)
    assert "1/worst.1.log" in logs_of(tmp_path)
    results = json.loads((tmp_path / "a-gpu.json").read_text())
    assert results["parts"]["rehearsal"]["one"]["process"] > 0


def test_the_seconds_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that moves only as steps take their time."""
    now = 1000.0
    monkeypatch.setattr(gpu.time, "monotonic", lambda: now)
    steps = [TaskStep(name, seconds, "", 1.0) for name, seconds in (("a", 10), ("b", 20), ("c", 30), ("d", math.inf))]
    left = {"a": 1, "b": 2, "c": 1, "d": 1}
    ran: list[tuple[str, float, float]] = []

    def run_step(step: Step, seconds: float) -> None:
        nonlocal now
        ran.append((step.name, now - 1000.0, seconds))
        now += {"a": 4.0, "b": seconds, "c": 6.0, "d": seconds}[step.name]
        left[step.name] -= 1

    def run(seconds: float) -> list[tuple[str, float, float]]:
        gpu.run_steps(steps, lambda step: [("p", "t")] * left[step.name], run_step, now + seconds)
        return ran

    # What b could not do in its time comes before the one without a limit, and that gets the rest.
    assert run(60.0) == [("a", 0, 10), ("b", 4, 20), ("c", 24, 30), ("b", 30, 20), ("d", 50, 10)]
    ran.clear()
    now, left = 1000.0, {"a": 1, "b": 1, "c": 1, "d": 1}
    assert run(25.0) == [("a", 0, 10), ("b", 4, 20), ("c", 24, 1)]  # and c took more than it had: the run is over
    assert left["d"] == 1


def test_a_job_ends_at_the_time_of_its_step() -> None:
    """Whatever is running then is stopped, and what has not begun is returned."""

    class Endless:
        def __init__(self, log: list[str], name: str) -> None:
            self.log, self.name = log, name

        def start(self) -> None:
            self.log.append(f"start {self.name}")

        def poll(self) -> bool:
            return False

        def rest(self) -> None:
            return None

        def stop(self) -> None:
            self.log.append(f"stop {self.name}")

        def drop(self) -> None:
            self.log.append(f"drop {self.name}")

    log: list[str] = []
    given = [Endless(log, name) for name in "abc"]
    assert processes.run(given, time.monotonic() + 0.5, at_once=2) == given[2:]
    assert sorted(log) == ["start a", "start b", "stop a", "stop b"]
    log.clear()
    given[0].poll = lambda: sys.exit("stopped")  # type: ignore[method-assign]
    with pytest.raises(SystemExit):
        processes.run(given[:1], LATER)
    assert log == ["start a", "drop a"]


def test_a_process_ends_with_all_that_it_started(tmp_path: Path) -> None:
    child = "import time; time.sleep(600)"
    program = f"import subprocess, sys\nprint(subprocess.Popen([sys.executable, '-c', {child!r}]).pid, flush=True)\n"
    ends, hangs = python(program), python(f"{program}import time\ntime.sleep(600)")
    for number, command in enumerate((ends, hangs)):
        process = processes.Process(command, tmp_path / f"{number}.log")
        while not process.text():
            time.sleep(0.01)
        process.kill()
        assert process.exit_status() is not None
        pid = int(process.text().split()[0])
        deadline = time.monotonic() + 10.0
        while time.monotonic() < deadline and _is_running(pid):
            time.sleep(0.01)
        assert not _is_running(pid)


def _is_running(pid: int) -> bool:
    """Not so where it has ended and nobody has asked how."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_what_is_not_installed_is_skipped(tmp_path: Path) -> None:
    step = CommandStep("ncu", 5, lambda: {"ncu x": Command(["no-such-program"])}, lambda *_: {}, 5)
    results, _ = measured([step], {"ncu": step.names()}, tmp_path)
    assert results["parts"] == {"ncu": {"ncu x": {"skipped": "no-such-program is not installed"}}}


def test_logs_are_packed_and_shortened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.gpu.logs._KEPT_BYTES", 10)
    logs = Logs(tmp_path / "logs.tar.gz", keeps=False)
    (logs.folder / "long.log").write_text("0123456789" * 5)
    (logs.folder / "short.log").write_text("all of it")
    logs.pack()
    content = {"1/long.log": "0123456789\n... 30 bytes are left out ...\n0123456789", "1/short.log": "all of it"}
    assert logs_of(tmp_path) == content  # also before it is closed
    logs.close()
    assert not logs.folder.exists()
    later = Logs(tmp_path / "logs.tar.gz", keeps=True)
    (later.folder / "short.log").write_text("more")
    later.close()
    assert logs_of(tmp_path) == {**content, "2/short.log": "more"}


def test_the_plan_is_that_of_one_call() -> None:
    assert [(step.name, step.seconds) for step in STEPS] == [
        ("machine", 15),
        ("smoke", 30),
        ("risky", 30),
        ("ceilings", 10),
        ("training", 60),
        ("charlm", 70),
        ("ncu", 55),
        ("tests", 130),
        ("sanitizer", 85),
        ("peers", 45),
        ("compile", math.inf),
    ]
    text = plan.describe(STEPS, {step.name: [(step.name, "a"), ("other", "b")] for step in STEPS}, 555.0)
    lines = text.splitlines()
    assert lines[2:4] == [
        "| machine   | 0      | 15   | 15              | 2     |",
        "| smoke     | 15     | 45   | 30              | 2     |",
    ]
    assert lines[12] == "| compile   | 530    | 555  | 25              | 2     |"
    assert lines[13].startswith("555 s of 555 s; ")
    assert lines[15:18] == ["machine:", "  a", "  other: b"]
    short = plan.describe(STEPS[:3], {step.name: [] for step in STEPS}, 40.0).splitlines()
    assert [line.split("|")[2:5] for line in short[2:5]] == [
        [" 0      ", " 15   ", " 15              "],
        [" 15     ", " 40   ", " 25              "],
        [" 40     ", " 40   ", " 0               "],
    ]


def test_the_process_that_starts_all_others_has_no_torch(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom benchmarks.gpu import __main__ as gpu\n"
        "gpu.main(['--dry-run', '--steps', 'smoke', 'ncu', 'tests', 'compile'])\nassert 'torch' not in sys.modules\n"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=processes.ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert [line.split()[1] for line in lines[2:6]] == ["smoke", "ncu", "tests", "compile"]
    assert lines[5] == "| compile | 215    | 555  | 340             | 35    |"
    assert "  embedding_linear bfloat16: graph" in lines
    assert "  ncu wide cross_entropy backward" in lines
    assert "  training: makemore: compile" in lines


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a program of that name first on the path, which runs a line of shell."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def install(line: str) -> None:
        (folder / "nvidia-smi").write_text(f"#!/bin/sh\n{line}\n")
        (folder / "nvidia-smi").chmod(0o755)

    return install


def test_without_a_gpu_it_says_so(
    nvidia_smi: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nvidia_smi("echo No devices were found; exit 6")
    with pytest.raises(SystemExit, match="there is no GPU: No devices were found"):
        gpu.main(["--out", str(tmp_path / "out")])
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SystemExit, match="there is no GPU: nvidia-smi is not installed"):
        gpu.main(["--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_a_whole_run(
    nvidia_smi: Callable[[str], None], rehearsal: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvidia_smi("echo 'NVIDIA H100 80GB HBM3, 580.1'")
    monkeypatch.setattr(gpu.signal, "signal", lambda *_: None)
    steps = (TaskStep("ceilings", 200, "gpu_rehearsal:fine", 50), TaskStep("risky", 200, "gpu_rehearsal:alone", 50))
    tasks = {"ceilings": names_of(rehearsal.fine), "risky": names_of(rehearsal.alone)}
    monkeypatch.setattr(gpu, "STEPS", steps)
    listed = {"versions": FACTS["versions"], "cuda": "13.0", "tasks": tasks}
    monkeypatch.setattr(gpu, "list_tasks", lambda steps: listed)
    out = tmp_path / "out"
    with pytest.raises(SystemExit, match=r"failed: risky: aborts\nsee .*; the same command goes on where this ended"):
        gpu.main(["--out", str(out), "--commit", "abc"])
    name = "nvidia-h100-80gb-hbm3"
    # What brings them back takes at most eight files, and no folders.
    assert {path.name for path in out.iterdir() if path.suffix != ".png"} == {
        f"{name}.json",
        f"{name}.md",
        "logs.tar.gz",
    }
    assert len(list(out.iterdir())) <= 8
    results = json.loads((out / f"{name}.json").read_text())
    assert list(results) == [*FACTS, "parts"]
    assert (results["gpu"], results["driver"]) == ("NVIDIA H100 80GB HBM3", "580.1")
    assert results["command"] == f"python -m benchmarks.gpu --out {out} --commit abc"
    assert "- copy: 1 GB/s\n- write: 2 GB/s\n" in (out / f"{name}.md").read_text()
    # A run that is told to stop has its page, too.
    (out / f"{name}.md").unlink()

    def stop(*_: Any) -> None:
        sys.exit("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(gpu, "run_steps", stop)
        with pytest.raises(SystemExit, match="stopped"):
            gpu.main(["--out", str(out), "--commit", "abc"])
    assert (out / f"{name}.md").exists()
    # There is nothing left to do.
    before = results["parts"]
    with pytest.raises(SystemExit, match="failed: risky: aborts"):
        gpu.main(["--out", str(out), "--commit", "abc"])
    assert json.loads((out / f"{name}.json").read_text())["parts"] == before


def test_a_run_that_was_killed_says_so(tmp_path: Path) -> None:
    Results(tmp_path / "a.json", FACTS).begin("p", "a", {"implementation": "quack"})
    after = Results(tmp_path / "a.json", FACTS)
    assert after.has("p", "a")
    assert after.data["parts"]["p"]["a"] == {"implementation": "quack", "error": "the run ended while this ran"}
    assert not Results(tmp_path / "a.json", FACTS, retry=True).has("p", "a")
    assert Results(tmp_path / "none.json", {**FACTS, "commit": None}).data["parts"] == {}


def test_a_page_that_cannot_be_written_costs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gpu.write_report(tmp_path / "none.json")
    assert "not all of the page and its figures could be written" in capsys.readouterr().err
