"""`python -m benchmarks ops`: every op of `grid.py` beside PyTorch, which none of them may be slower than."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from benchmarks.ceilings import best_product_rate, copy_seconds
from benchmarks.grid import ROWS, TRAINING_STEP, Row
from benchmarks.markdown import table
from benchmarks.options import add_options, dtype_name, one_of, one_or_more
from benchmarks.provenance import machine_line, origin_line
from benchmarks.timing import alternate, ratio, threads_shown
from charlm.benchmark import torch_threads
from charlm.cli.bench import duration

# Who takes part when it is asked for, where it can.
_OPPONENTS = {"eager": ("eager", "torch_linear"), "compile": ("compile",)}
# Those that charlm may take longer than by this share at most.
JUDGES = ("eager", "torch_linear")
MOST_SLOWER = 0.05

_ROUND_SECONDS = 0.03
_COPIED_BYTES = 1 << 28  # far beyond any cache


@dataclass(frozen=True)
class Result:
    """What a row took in one dtype, on a number of threads.

    Attributes:
        op, row: names in the grid.
        dtype: without "torch.".
        threads: of torch and charlm.
        floor: in words.
        floor_s: in seconds.
        rounds_s: seconds of a step in each round, by contestant; "charlm" is one of them.
    """

    op: str
    row: str
    dtype: str
    threads: int
    floor: str
    floor_s: float
    rounds_s: Mapping[str, Sequence[float]]

    @property
    def seconds(self) -> float:
        return median(self.rounds_s["charlm"])

    @property
    def share(self) -> float:
        """Of the floor in the time: 1 is as fast as can be."""
        return self.floor_s / self.seconds

    @property
    def ratios(self) -> dict[str, float]:
        """By opponent: how many times as long it takes."""
        own = self.rounds_s["charlm"]
        return {name: ratio(rounds, own) for name, rounds in self.rounds_s.items() if name != "charlm"}

    def to_dict(self) -> dict[str, Any]:
        """All of it in JSON types."""
        return {
            "op": self.op,
            "row": self.row,
            "dtype": self.dtype,
            "threads": self.threads,
            "floor": self.floor,
            "floor_s": self.floor_s,
            "rounds_s": {name: list(rounds) for name, rounds in self.rounds_s.items()},
            "median_s": {name: median(rounds) for name, rounds in self.rounds_s.items()},
            "ratios": self.ratios,
            "share_of_floor": self.share,
            "too_slow": is_too_slow(self),
        }


def is_too_slow(result: Result) -> bool:
    """Whether charlm takes more than 5 % longer than the best that PyTorch has without compiling."""
    return any(result.ratios[name] * (1 + MOST_SLOWER) < 1 for name in JUDGES if name in result.ratios)


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "ops",
        help="time every op beside PyTorch, in a table",
        description="Times forward and backward of every op, side by side with PyTorch, and shows the ratios and what "
        "the machine could do at best. The exit status is 1 if one takes more than 5 % longer than eager PyTorch, or "
        "than F.linear_cross_entropy, which takes part where eager does.",
    )
    parser.add_argument(
        "--against",
        type=one_or_more(one_of({name: name for name in _OPPONENTS})),
        default="eager",
        metavar="O1,O2",
        help="of eager and compile (default: eager)",
    )
    add_options(parser, {row.name: row for row in (*ROWS, TRAINING_STEP)})
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, results: dict[str, Any]) -> int:
    """Prints the table; returns the exit status. `results` has where they come from."""
    opponents = [name for asked in options.against for name in _OPPONENTS[asked]]
    measured: list[Result] = []
    ceilings = []
    for threads in options.threads:
        with torch_threads(threads):
            rates: dict[torch.dtype, float] = {}
            measured += _measure(options.rows, options.dtypes, threads, opponents, options.rounds, rates)
            ceilings.append(
                {
                    "threads": threads,
                    "copy_bytes_per_s": 2 * _COPIED_BYTES / copy_seconds(_COPIED_BYTES),
                    "product_flops_per_s": {dtype_name(dtype): rate for dtype, rate in rates.items()},
                }
            )
    results |= {"ceilings": ceilings, "rows": [result.to_dict() for result in measured]}
    print(render(results))
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    return int(any(map(is_too_slow, measured)))


def _measure(
    rows: Sequence[Row],
    dtypes: Sequence[torch.dtype],
    threads: int,
    opponents: Sequence[str],
    rounds: int,
    rates: dict[torch.dtype, float],
) -> Iterator[Result]:
    """`rates` gets the best product of matrices between the rows, by dtype."""
    for row in rows:
        for dtype in dtypes:
            if dtype not in row.dtypes:
                continue
            print(f"{row.name}, {dtype_name(dtype)}, {threads_shown(threads)}", file=sys.stderr)
            torch.manual_seed(0)
            case = row.create(dtype)
            taking_part = [name for name in ("charlm", *opponents) if name in case.contestants]
            times = alternate({name: case.contestants[name]() for name in taking_part}, rounds, _ROUND_SECONDS)
            for used in (torch.float32, dtype):
                rates[used] = max(rates.get(used, 0.0), best_product_rate(used))
            # Where the processor has no instructions for a dtype, its numbers are multiplied as float32.
            floor_s = case.floor.seconds(max(rates[torch.float32], rates[dtype]))
            yield Result(row.op, row.name, dtype_name(dtype), threads, case.floor.words, floor_s, times)


def render(results: Mapping[str, Any]) -> str:
    """The results as text, which is Markdown."""
    rows = results["rows"]
    opponents = list(dict.fromkeys(name for row in rows for name in row["ratios"]))
    lines = [
        [
            row["row"],
            row["dtype"],
            str(row["threads"]),
            duration(row["median_s"]["charlm"]),
            *(f"{row['ratios'][name]:.2f}" if name in row["ratios"] else "-" for name in opponents),
            duration(row["floor_s"]),
            f"{row['share_of_floor']:.1%}",
            "too slow" if row["too_slow"] else "",
        ]
        for row in rows
    ]
    columns = ["forward and backward", "dtype", "threads", "charlm", *(f"x {name}" for name in opponents)]
    slow = sum(row["too_slow"] for row in rows)
    floors = dict.fromkeys(f"- {row['op']}: {row['floor']}" for row in rows)
    return "\n".join(
        [
            f"{machine_line(results)}; {origin_line(results)}\n",
            *(_ceilings(entry) for entry in results["ceilings"]),
            "",
            table([*columns, "floor", "share", ""], lines, aligned=True),
            f"{slow} of {len(rows)} too slow: more than {MOST_SLOWER:.0%} behind {' or '.join(JUDGES)}. "
            '"x eager" is how many times as long eager takes, "share" the floor over charlm\'s time. Floors:\n',
            *floors,
        ]
    )


def _ceilings(entry: Mapping[str, Any]) -> str:
    products = ", ".join(f"{rate / 1e9:.3g} GFLOP/s in {name}" for name, rate in entry["product_flops_per_s"].items())
    return (
        f"- {threads_shown(entry['threads'])}: {entry['copy_bytes_per_s'] / 1e9:.3g} GB/s read and written by a copy; "
        f"products of matrices {products}"
    )
