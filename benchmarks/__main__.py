"""`python -m benchmarks`: runs everything and writes `results/<machine>.json` and `results/README.md`.

`python -m benchmarks ops` measures the ops alone, `python -m benchmarks models` training steps of other models that use
them, `python -m benchmarks populations` many models that are trained together; each prints a table.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import growth, models, ops, populations, texts
from benchmarks.growth import SWEEPS
from benchmarks.page import render
from benchmarks.provenance import provenance
from charlm.backends import BACKENDS
from charlm.benchmark import WORKLOADS

FOLDER = Path(__file__).resolve().parent
_CONTESTANTS = (*BACKENDS, *(["jax"] if find_spec("jax") else []))


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Runs everything and writes results/, or one of the commands."
    )
    parser.add_argument("--presets", nargs="*", default=list(WORKLOADS), help="of charlm bench (default: all)")
    parser.add_argument("--seconds", type=float, default=5.0, help="of measuring for each backend in a race")
    parser.add_argument("--passes", type=int, default=3, help="runs of each op's benchmarks; the median counts")
    parser.add_argument(
        "--files", nargs="*", type=Path, default=sorted(FOLDER.glob("bench_*.py")), help="benchmarks of ops (all)"
    )
    parser.add_argument("--sweeps", nargs="*", default=list(SWEEPS), help="of how cost grows (default: all)")
    parser.add_argument("--out", type=Path, default=FOLDER / "results", help="folder of the results")
    parser.set_defaults(run=_run_everything)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for command in (ops, models, texts, populations):
        command.add_parser(commands)
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = parser.parse_args(given)
    status: int = options.run(options, provenance(given))
    return status


def _run_everything(options: argparse.Namespace, results: dict[str, Any]) -> int:
    results |= {
        "races": [_race(preset, options.seconds) for preset in options.presets],
        "ops": time_ops(options.files, options.passes),
        "growth": growth.measure({name: SWEEPS[name] for name in options.sweeps}, options.seconds / 100),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    machine = results["machine"]
    slug = re.sub(r"[^a-z0-9]+", "-", f"{machine['processor']} {machine['cores']} cores".lower()).strip("-")
    if results["growth"]:
        results["growth_picture"] = f"{slug}-growth.png"
        growth.draw(results["growth"], options.out / results["growth_picture"])
    (options.out / f"{slug}.json").write_text(json.dumps(results, indent=1) + "\n")
    everything = [json.loads(path.read_text()) for path in sorted(options.out.glob("*.json"))]
    # Those of GPUs have a table of their own: benchmarks/gpu.
    (options.out / "README.md").write_text(render(results for results in everything if "races" in results))
    return 0


def time_ops(files: Sequence[Path], passes: int, seconds: float = 1.0) -> list[dict[str, Any]]:
    """The medians of the benchmarks in `files`: each pass is a process that gives each of them some seconds."""
    if not files:
        return []
    timed: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for _ in range(passes):
        for benchmark in _run_pytest(files, seconds):
            timed.setdefault((benchmark["group"], benchmark["params"]["implementation"]), []).append(benchmark)
    return [
        {
            "workload": workload,
            "implementation": implementation,
            "median_s": median(run["stats"]["median"] for run in runs),
            "passes_s": [run["stats"]["median"] for run in runs],
            "floor": runs[0]["extra_info"]["floor"],
            "floor_s": median(run["extra_info"]["floor_s"] for run in runs),
        }
        for (workload, implementation), runs in timed.items()
    ]


def _race(preset: str, seconds: float) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.with_jax", "bench", "--preset", preset, "--seconds", f"{seconds:g}"]
    command += ["--backends", ",".join(_CONTESTANTS), "--json"]
    finished = subprocess.run(command, check=True, cwd=FOLDER.parent, stdout=subprocess.PIPE)
    result: dict[str, Any] = json.loads(finished.stdout)
    return result


def _run_pytest(files: Sequence[Path], seconds: float) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "pytest-benchmark.json")
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--benchmark-json={output}"]
        command += [f"--benchmark-max-time={seconds:g}", *map(str, files)]
        subprocess.run(command, check=True, cwd=FOLDER.parent)
        benchmarks: list[dict[str, Any]] = json.loads(output.read_text())["benchmarks"]
        return benchmarks


if __name__ == "__main__":
    sys.exit(main())
