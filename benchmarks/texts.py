"""`python -m benchmarks texts`: what reading large texts takes in time and memory, by their size."""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.markdown import table
from benchmarks.options import one_or_more, positive
from benchmarks.provenance import machine_line, origin_line
from charlm.cli.bench import duration
from charlm.data import EMBEDDED_NAMES

# Of generated text, which a large file has again and again.
_BLOCK_BYTES = 1 << 20

# What is read, and how: arguments of `charlm.data.load`.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "stream": ("sentences", {"mode": "stream"}),
    "lines": ("names", {"mode": "lines"}),
    "bytes, stream": ("sentences", {"mode": "stream", "tokens": "bytes"}),
    "words, stream": ("sentences", {"mode": "stream", "tokens": "words", "limit_vocab": 10_000}),
}

# Runs in a process of its own. Peak memory is beyond what the interpreter and torch hold before, and Linux is told to
# forget what they have held.
_CHILD = r"""
import json, pathlib, re, sys, time
from charlm import data, fingerprint
import charlm.configuration, charlm.trainer
step, path, tokens, options = sys.argv[1], sys.argv[2], sys.argv[3], json.loads(sys.argv[4])
def memory(field):
    return 1024 * int(re.search(field + r":\s+(\d+)", pathlib.Path("/proc/self/status").read_text())[1])
pathlib.Path("/proc/self/clear_refs").write_text("5")
before, start = memory("VmRSS"), time.perf_counter()
if step == "load":
    dataset = data.load(path, **options)
    dataset.train.contexts if dataset.mode == "stream" else None
elif step == "encode":
    dataset = data.encode(path, tokens, **options)
else:
    dataset = data.load(tokens)
    fingerprint.Fingerprint.of(dataset)
    dataset.train.batch(charlm.trainer.torch.randint(len(dataset.train), (3200,)))
print(json.dumps({"seconds": time.perf_counter() - start, "peak_bytes": memory("VmHWM") - before,
                  "examples": len(dataset.all), "symbols": len(dataset.vocabulary)}))
"""
STEPS = {"load": "read the text", "encode": "encode it into a file", "map": "map the file, 3,200 random examples"}


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "texts",
        help="time reading and encoding of large texts, and measure the memory it takes",
        description="Makes texts of some sizes out of the embedded names, reads each in a process of its own, and "
        "shows the time and the peak memory beyond that of the interpreter.",
    )
    parser.add_argument(
        "--sizes",
        type=one_or_more(positive),
        default="10,100,1000",
        metavar="MB1,MB2",
        help="of the texts in MB (default: 10,100,1000)",
    )
    parser.add_argument("--rounds", type=positive, default=3, metavar="N", help="of each row (default: 3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="with every round of every row")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, results: dict[str, Any]) -> int:
    """Prints the table; returns the exit status. `results` has where they come from."""
    with tempfile.TemporaryDirectory() as folder:
        results["rows"] = [
            row for size in options.sizes for row in _measure(Path(folder), size * 1_000_000, options.rounds)
        ]
    print(render(results))
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    return 0


def write_text(path: Path, kind: str, size: int) -> None:
    """A text of at least `size` bytes: names, one a line, or sentences of them in paragraphs; the same each time."""
    chosen = random.Random(1)
    names = EMBEDDED_NAMES.read_text(encoding="utf-8").split()
    pieces, length = [], 0
    while length < min(_BLOCK_BYTES, size):
        if kind == "names":
            pieces.append(f"{chosen.choice(names)}\n")
        else:
            words = " ".join(chosen.choices(names, k=chosen.randint(3, 20)))
            pieces.append(f"{words.capitalize()}{chosen.choice('.?!')}{chosen.choice([' ', ' ', ' ', chr(10) * 2])}")
        length += len(pieces[-1])
    block = "".join(pieces).encode()
    with path.open("wb") as file:
        for _ in range(-(-size // len(block))):
            file.write(block)


def _measure(folder: Path, size: int, rounds: int) -> list[dict[str, Any]]:
    rows = []
    texts = {kind: folder / f"{kind}.txt" for kind, _ in KINDS.values()}
    for kind, path in texts.items():
        write_text(path, kind, size)
    for name, (kind, arguments) in KINDS.items():
        for step in STEPS:
            runs = [_run(step, texts[kind], folder / "encoded.tokens", arguments) for _ in range(rounds)]
            rows.append(
                {
                    "kind": name,
                    "step": step,
                    "text_bytes": texts[kind].stat().st_size,
                    **{key: runs[0][key] for key in ("examples", "symbols")},
                    "median_s": median(run["seconds"] for run in runs),
                    "peak_bytes": max(run["peak_bytes"] for run in runs),
                    "runs": runs,
                }
            )
    return rows


def _run(step: str, path: Path, tokens: Path, arguments: Mapping[str, Any]) -> dict[str, Any]:
    command = [sys.executable, "-c", _CHILD, step, str(path), str(tokens), json.dumps(arguments)]
    result: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return result


def render(results: Mapping[str, Any]) -> str:
    """The results as text, which is Markdown."""
    lines = [
        [
            f"{row['text_bytes'] / 1e6:,.0f} MB",
            row["kind"],
            STEPS[row["step"]],
            f"{row['examples']:,}",
            f"{row['symbols']:,}",
            duration(row["median_s"]),
            f"{row['peak_bytes'] / 1e6:,.0f} MB",
            f"{row['peak_bytes'] / row['text_bytes']:.2f}",
        ]
        for row in results["rows"]
    ]
    heading = ["text", "read as", "what is done", "examples", "symbols", "time", "peak memory", "x text"]
    return "\n".join(
        [
            f"{machine_line(results)}; {origin_line(results)}\n",
            table(heading, lines, aligned=True),
            "The median time of some runs, each in a process of its own, with the text in the system's cache of "
            "files; peak memory is the most that the process holds beyond the interpreter and torch. What is encoded "
            "or mapped is part of a file: the system takes such memory back.",
        ]
    )
