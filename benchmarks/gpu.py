"""`python -m benchmarks.gpu`: everything that takes a GPU, in parts, into `results/<gpu>.json`.

    ceilings   the bandwidth of a copy and the rate of a bf16 matrix product: what the kernels are measured by
    tests      the tests of the ops that have CUDA kernels, on the GPU
    sanitizer  some of them under compute-sanitizer's memcheck and racecheck, if that is installed
    ops        the ops against eager PyTorch, torch.compile, and what else is importable

A part that the file already has for this commit is not run again, so that a run that was cut short can be continued.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from charlm import environment, ops

ROOT = Path(__file__).resolve().parent.parent
# Tests of ops with CUDA kernels, and those of them that a sanitizer, which is slow, gets through.
TEST_FILES = ("tests/test_cross_entropy.py",)
SANITIZED = "any_trailing_dimensions or every_combination_of_options"

# (N, C): quack publishes from 256 classes on, with fewer rows of more than 65,536; 27 are the symbols of names.
CROSS_ENTROPY_SHAPES = (
    (1 << 20, 27),
    *((32768, classes) for classes in (256, 1024, 4096, 16384, 32768, 65536)),
    (16384, 131072),
    (8192, 262144),
)
_FLUSH_BYTES = 256 << 20  # several times the L2 cache of any GPU
_SECONDS = 0.3  # of measuring for each number

Part = Callable[[], Any]


def cross_entropy_bytes(rows: int, classes: int, *, backward: bool, element_size: int = 2) -> int:
    """What must be moved: logits and targets read and a loss a row written; backward, logits again and gradients."""
    logits = rows * classes * element_size
    return logits + rows * (8 + element_size) + (2 * logits + rows * (8 + element_size) if backward else 0)


def seconds(call: Callable[[], object]) -> float:
    """The median time of a call on the GPU, which finds nothing of its own in the cache."""
    flush = torch.empty(_FLUSH_BYTES, dtype=torch.uint8, device="cuda")
    for _ in range(3):
        call()
    times: list[float] = []
    started = time.perf_counter()
    while len(times) < 5 or time.perf_counter() - started < _SECONDS:
        events = []
        for _ in range(10):
            flush.zero_()
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            call()
            end.record()
            events.append((begin, end))
        torch.cuda.synchronize()
        times += [begin.elapsed_time(end) / 1e3 for begin, end in events]
    return median(times)


def captured(call: Callable[[], object]) -> Callable[[], object]:
    """The call as a CUDA graph, so that its kernels are timed and not Python."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def measure_ceilings() -> dict[str, float]:
    source = torch.ones(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    copy = seconds(lambda: target.copy_(source))
    size = 8192
    a, b = (torch.randn(size, size, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    product = seconds(lambda: a @ b)
    return {"copy_bytes_per_s": 2 * source.numel() / copy, "bf16_flops": 2 * size**3 / product}


def run_tests() -> dict[str, Any]:
    return _run([sys.executable, "-m", "pytest", "-q", "-x", "--device", "cuda", *TEST_FILES])


def run_sanitizer() -> dict[str, Any]:
    if shutil.which("compute-sanitizer") is None:
        return {"skipped": "compute-sanitizer is not installed"}
    pytest = [sys.executable, "-m", "pytest", "-q", "-x", "--device", "cuda", "-k", SANITIZED, *TEST_FILES]
    command = ["compute-sanitizer", "--error-exitcode=9", "--target-processes=all", "--kernel-regex", "kns=charlm"]
    return {tool: _run([*command, "--tool", tool, *pytest]) for tool in ("memcheck", "racecheck")}


def _run(command: Sequence[str]) -> dict[str, Any]:
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    lines = (result.stdout + result.stderr).strip().splitlines()
    return {"exit_status": result.returncode, "last_lines": lines[-1:] if result.returncode == 0 else lines[-40:]}


def cross_entropy_implementations() -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """Losses of a row, the mean of them where an implementation has nothing else; what is not installed is left out."""
    found: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "charlm": lambda x, y: ops.cross_entropy(x, y, reduction="none"),
        "eager": lambda x, y: F.cross_entropy(x, y, reduction="none"),
        "compile": torch.compile(lambda x, y: F.cross_entropy(x, y, reduction="none"), dynamic=False),
    }
    if find_spec("quack") is not None:
        from quack.cross_entropy import cross_entropy as quack  # type: ignore[import-not-found, unused-ignore]

        found["quack"] = lambda x, y: quack(x, y, reduction="none")
    if find_spec("liger_kernel") is not None:
        from liger_kernel.transformers import (  # type: ignore[import-not-found, unused-ignore]
            LigerCrossEntropyLoss,
        )

        # It writes the gradient over the logits, so that a second run would see others.
        liger = LigerCrossEntropyLoss(reduction="none")
        found["liger"] = lambda x, y: liger(x.clone() if x.requires_grad else x, y)
    return found


def measure_ops() -> list[dict[str, Any]]:
    results = []
    for rows, classes in CROSS_ENTROPY_SHAPES:
        logits = torch.randn(rows, classes, dtype=torch.bfloat16, device="cuda", requires_grad=True)
        target = torch.randint(classes, (rows,), device="cuda")
        upstream = torch.rand(rows, dtype=torch.bfloat16, device="cuda")
        for name, loss in cross_entropy_implementations().items():
            for backward in (False, True):
                results.append(
                    {
                        "workload": f"cross_entropy N={rows} C={classes}, forward{' + backward' * backward}",
                        "implementation": name,
                        "bytes": cross_entropy_bytes(rows, classes, backward=backward),
                        **_time(_step(loss, logits, target, upstream, backward=backward)),
                    }
                )
    return results


def _step(
    loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor, target: Tensor, upstream: Tensor, *, backward: bool
) -> Callable[[], object]:
    if backward:
        return lambda: torch.autograd.grad(loss(logits, target), logits, upstream)
    detached = logits.detach()
    return lambda: loss(detached, target)


def _time(step: Callable[[], object]) -> dict[str, Any]:
    """The time of a step, or why there is none: an opponent that fails must not end the run."""
    try:
        return {"median_s": seconds(captured(step))}
    except Exception as error:
        torch.cuda.synchronize()
        return {"error": f"{type(error).__name__}: {error}".splitlines()[0]}


PARTS: dict[str, Part] = {
    "ceilings": measure_ceilings,
    "tests": run_tests,
    "sanitizer": run_sanitizer,
    "ops": measure_ops,
}


def run_parts(path: Path, facts: dict[str, Any], parts: Sequence[str], table: dict[str, Part]) -> dict[str, Any]:
    """Runs the parts that the file lacks for this commit, and writes it after each."""
    results = json.loads(path.read_text()) if path.exists() else {}
    if results.get("commit") != facts["commit"]:
        results = {"parts": {}}
    results.update(facts)
    for name in parts:
        if name not in results["parts"]:
            print(f"{name} ...", flush=True)
            results["parts"][name] = table[name]()
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(results, indent=1) + "\n")
    return results


def render(results: dict[str, Any]) -> str:
    """The timings as a Markdown table, with shares of the measured copy bandwidth."""
    parts = results["parts"]
    ceiling = parts.get("ceilings", {}).get("copy_bytes_per_s")
    torch_version = results["versions"]["torch"]
    lines = [f"{results['gpu']}; torch {torch_version}; charlm at {results['commit']}; {results['date']}", ""]
    if ceiling:
        flops = parts["ceilings"]["bf16_flops"]
        lines += [f"Copy {ceiling / 1e9:,.0f} GB/s; bf16 product {flops / 1e12:,.0f} TFLOP/s", ""]
    lines += ["| workload | implementation | time | GB/s | of copy |", "| --- | --- | --- | --- | --- |"]
    for row in parts.get("ops", []):
        cells = [row["workload"], row["implementation"]]
        if "error" in row:
            cells += [row["error"].replace("|", "/"), "-", "-"]
        else:
            rate = row["bytes"] / row["median_s"]
            share = f"{rate / ceiling:.0%}" if ceiling else "-"
            cells += [f"{row['median_s'] * 1e6:,.1f} µs", f"{rate / 1e9:,.0f}", share]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def failures(results: dict[str, Any]) -> list[str]:
    """The names of the commands that failed."""
    parts = results["parts"]
    commands = {"tests": parts.get("tests"), **parts.get("sanitizer", {})}
    return [name for name, run in commands.items() if isinstance(run, dict) and run["exit_status"] != 0]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.partition("\n")[0])
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS), help="which to run (all)")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the results")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        sys.exit("there is no CUDA device: run this where torch finds a GPU")
    gpu = torch.cuda.get_device_name()
    facts = {
        "gpu": gpu,
        "commit": environment.commit(),
        "date": datetime.now(timezone.utc).date().isoformat(),
        "versions": environment.versions(),
        "cuda": torch.version.cuda,
    }
    path = options.out / f"{re.sub(r'[^a-z0-9]+', '-', gpu.lower()).strip('-')}.json"
    results = run_parts(path, facts, options.parts, PARTS)
    table = render(results)
    path.with_suffix(".md").write_text(table)
    print(table)
    if failed := failures(results):
        sys.exit(f"failed: {', '.join(failed)}; see {path}")


if __name__ == "__main__":
    main()
