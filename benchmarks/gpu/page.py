"""The results of one GPU as a page, in Markdown: what matters first, then figures, then every measurement.

python -m benchmarks.gpu.page benchmarks/results/<gpu>.json    the page and its figures anew; this takes no GPU
"""

from __future__ import annotations

import argparse
import html
import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.gpu import entries, figures
from benchmarks.gpu.entries import Row
from benchmarks.gpu.results import is_wrong
from benchmarks.markdown import table
from charlm.cli.bench import duration

Results = Mapping[str, Any]

_NONE = "-"
_NOT_MEASURED = "not measured"
_CEILINGS = ("copy", "write", "bf16 product", "float32 product")
# Of the lines that pytest says of tests that failed.
_MOST_FAILED_TESTS = 10
_HOW_TO_READ = (
    "Written by `python -m benchmarks.gpu`; not by hand. GPU time is the median between two events, with launches "
    "queued and nothing in the cache; a call is one of many in a row, Python included, and so is a training step. A "
    "share is what an op must at least move or compute, as counted in the source of its benchmark, over its time and "
    "over what this GPU did at best. quack's published share is over the 3.35 TB/s of its H100, and drawn as that "
    "share of a copy here. The columns with an x say how many times as long the other takes as charlm, or as the row: "
    "above 1, the other is slower."
)


def render(results: Results) -> str:
    """The page; what it lacks, as the run was cut off, is called not measured."""
    sections = {
        "Summary": _summary(results),
        "Correctness": _correctness(results),
        "Ceilings": _ceilings(results),
        "Figures": [f"![{op}]({name})\n" for op, name in figures.files(results).items()],
        **{op: _measurements(results, op) for op in entries.ops(results)},
        "Profile": _profile(results),
        "Machine": _statuses(entries.part(results, "machine")),
    }
    lines = [f"# {_escaped(results['gpu'])}", "", _origin(results), "", _HOW_TO_READ]
    for heading, body in sections.items():
        lines += ["", f"## {heading}", "", "\n".join(body or [_NOT_MEASURED]).strip("\n")]
    return "\n".join(lines) + "\n"


def write(path: Path) -> str:
    """Writes the page and the figures of results beside their file; returns the page.

    Raises:
        ImportError: matplotlib is not installed; the page is written.
    """
    results = json.loads(path.read_text())
    page = render(results)
    path.with_suffix(".md").write_text(page)
    figures.draw(results, path.parent)
    return page


def _origin(results: Results) -> str:
    """Of what, with what, where, when and by which command."""
    versions, machine = results.get("versions", {}), results.get("machine", {})
    software = {
        "charlm": versions.get("charlm"),
        "commit": results.get("commit"),
        "torch": versions.get("torch"),
        "Python": versions.get("python"),
        "CUDA": results.get("cuda"),
        "driver": results.get("driver"),
    }
    cores = f", {machine['cores']} cores" if "cores" in machine else ""
    parts = [
        ", ".join(f"{name} {_escaped(version)}" for name, version in software.items() if version),
        _escaped(f"{machine.get('processor', '')}{cores}".strip(", ")),
        _escaped(machine.get("platform", "")),
        _escaped(results.get("date", "")),
        "`{}`".format(results["command"].replace("`", "'")) if results.get("command") else "",
    ]
    return "; ".join(part for part in parts if part)


def _summary(results: Results) -> list[str]:
    """charlm at every size against the ceiling, eager, and the fastest of the others."""
    rows = []
    for op in entries.ops(results):
        for workload, implementations in entries.workloads(results, op).items():
            own, eager = entries.ours(implementations), implementations.get("eager", {})
            peer = entries.fastest_peer(implementations)
            counts = next(iter(implementations.values()))
            rows.append(
                {
                    "workload": _escaped(workload),
                    "charlm": _time(own),
                    "x eager": _ratio(own, eager),
                    "of the ceiling": _share(results, own) or (_NOT_MEASURED if "ceiling" in counts else _NONE),
                    "quack, published": _published(counts) or _NONE,
                    "best peer": f"{_escaped(peer['implementation'])}, {_time(peer)}" if peer else _NOT_MEASURED,
                    "x best peer": _ratio(own, peer),
                }
            )
    if not rows:
        return []
    absent = [op for op in entries.ops(results) if not entries.workloads(results, op)]
    lines = table(list(rows[0]), [list(row.values()) for row in rows]).splitlines()
    return _blocks(lines, [f"Not measured: {', '.join(absent)}."] if absent else [])


def _correctness(results: Results) -> list[str]:
    """What was checked, and what exactly failed."""
    lines = []
    for name in ("smoke", "risky"):
        checks = entries.part(results, name)
        others = {check: _status(entry) for check, entry in checks.items() if {"error", "skipped"} & entry.keys()}
        passed = f"{len(checks) - len(others)} of {len(checks)} passed" if checks else _NOT_MEASURED
        lines += [f"- {name}: {passed}", *(f"  - {_escaped(check)}: {said}" for check, said in others.items())]
    for name in ("tests", "sanitizer"):
        lines += _statuses(entries.part(results, name)) or [f"- {name}: {_NOT_MEASURED}"]
    own = [
        (workload, entries.ours(implementations))
        for op in entries.ops(results)
        for workload, implementations in entries.workloads(results, op).items()
    ]
    lines += [f"- charlm in {_escaped(workload)}: {_status(row)}" for workload, row in own if "error" in row]
    if compared := {workload: row for workload, row in own if "difference" in row}:
        worst = max(compared, key=lambda workload: compared[workload]["difference"])
        said = f"at most {_difference(compared[worst])}, in {_escaped(worst)}"
    else:
        said = _NOT_MEASURED
    return [*lines, f"- charlm's relative difference from eager: {said}"]


def _ceilings(results: Results) -> list[str]:
    found = entries.part(results, "ceilings")
    lines = []
    for name in dict.fromkeys([*_CEILINGS, *found]):
        best, entry = entries.ceiling(results, name), found.get(name, {})
        if best is None:
            said = _status(entry) if {"error", "skipped"} & entry.keys() else _NOT_MEASURED
        else:
            said = _gigabytes(best) if "bytes_per_s" in entry else _teraflops(best)
        lines.append(f"- {_escaped(name)}: {said}")
    return lines


def _measurements(results: Results, op: str) -> list[str]:
    """Everything that was measured of an op, and what could not be."""
    compared = entries.workloads(results, op)
    columns: dict[str, Callable[[Row], str | None]] = {
        "workload": lambda row: _escaped(row["workload"]),
        "implementation": lambda row: _escaped(row["implementation"]),
        "GPU time": lambda row: duration(row["median_s"]) if "median_s" in row else _problem(row),
        "a call": lambda row: duration(row["call_s"]) if "call_s" in row else None,
        "x eager": lambda row: _times(entries.speedup(row, compared[row["workload"]].get("eager", {}))),
        "rate": _rate,
        "of the ceiling": lambda row: _share(results, row),
        "quack, published": _published,
        "asked": lambda row: f"at most {duration(row['asked_s'])}" if "asked_s" in row else None,
        "examples/s": _examples,
        "memory": lambda row: f"{row['memory_bytes'] / 1e6:,.0f} MB" if "memory_bytes" in row else None,
        "difference": _difference,
    }
    rows = [row for implementations in compared.values() for row in implementations.values()]
    others = {name: entry for name, entry in entries.part(results, op).items() if not entries.is_compared(entry)}
    return _blocks(_table(columns, rows), _statuses(others))


def _profile(results: Results) -> list[str]:
    """What ncu says of each kernel."""
    found = entries.part(results, "ncu")
    rows = [{"call": name, **kernel} for name, entry in found.items() for kernel in entry.get("kernels", [])]
    columns: dict[str, Callable[[Row], str | None]] = {}
    for name in dict.fromkeys(key for row in rows for key in row):
        columns[_escaped(name.removesuffix("_s").replace("_", " "))] = partial(_metric, name)
    return _blocks(_table(columns, rows), _statuses({name: entry for name, entry in found.items() if _problem(entry)}))


def _blocks(*blocks: Sequence[str]) -> list[str]:
    """Lines with an empty one between blocks that have any."""
    return "\n\n".join("\n".join(block) for block in blocks if block).splitlines()


def _table(columns: Mapping[str, Callable[[Row], str | None]], rows: Sequence[Row]) -> list[str]:
    """Lines of a table, without the columns in which no row has anything."""
    cells = {head: [column(row) for row in rows] for head, column in columns.items()}
    shown = {head: column for head, column in cells.items() if any(column)}
    lines = [[cell or _NONE for cell in line] for line in zip(*shown.values(), strict=True)]
    return table(list(shown), lines).splitlines() if rows else []


def _statuses(found: Mapping[str, Row]) -> list[str]:
    """A line for each entry, or for each command of one that ran some."""
    lines = []
    for name, entry in found.items():
        for command, run in entry.get("commands", {}).items():
            lines += [f"- {_escaped(command)}: {_command(run)}", *_failed_tests(run)]
        if "commands" not in entry or "error" in entry:
            lines.append(f"- {_escaped(name)}: {_status(entry)}")
    return lines


def _status(entry: Row) -> str:
    """What came of an entry that is no measurement."""
    numbers = entries.numbers(entry)
    facts = {**{name: value for name, value in entry.items() if isinstance(value, str)}, **numbers}
    return (
        _problem(entry)
        or ", ".join(f"{_escaped(name.replace('_', ' '))} {_escaped(value)}" for name, value in facts.items())
        or "done"
    )


def _command(run: Row) -> str:
    said = [_escaped(run["note"])] if "note" in run else []
    said += [_escaped(line.strip("= ")) for line in run.get("last_lines", [])[-1:]]
    return "; ".join(["passed" if run.get("exit_status") == 0 else "FAILED", *said])


def _failed_tests(run: Row) -> list[str]:
    """What pytest says in short of each test that failed."""
    failed = [line for line in run.get("last_lines", []) if line.startswith(("FAILED ", "ERROR "))]
    more = [f"  - and {len(failed) - _MOST_FAILED_TESTS} more"] if len(failed) > _MOST_FAILED_TESTS else []
    return [f"  - {_escaped(line)}" for line in failed[:_MOST_FAILED_TESTS]] + more


def _problem(entry: Row) -> str | None:
    said = entry.get("error", entry.get("skipped"))
    return None if said is None else _escaped(said)


def _time(row: Row) -> str:
    elapsed = entries.seconds(row)
    if elapsed is None:
        return "failed" if "error" in row else _NOT_MEASURED
    return duration(elapsed)


def _ratio(row: Row, other: Row) -> str:
    if "error" in other:
        return f"{_escaped(other['implementation'])} failed"
    return _times(entries.speedup(row, other)) or _NOT_MEASURED


def _times(ratio: float | None) -> str | None:
    return None if ratio is None else f"{ratio:.2f}"


def _rate(row: Row) -> str | None:
    rate = entries.per_second(row)
    if rate is None or "ceiling" not in row:
        return None
    return _gigabytes(rate) if "bytes" in row else _teraflops(rate)


def _gigabytes(per_second: float) -> str:
    return f"{per_second / 1e9:,.0f} GB/s"


def _teraflops(per_second: float) -> str:
    return f"{entries.three_digits(per_second / 1e12)} TFLOP/s"


def _share(results: Results, row: Row) -> str | None:
    share = entries.share(results, row)
    return None if share is None else f"{share:.0%} of {_escaped(row['ceiling'])}"


def _published(row: Row) -> str | None:
    return f"{row['published_share']:.0%}" if "published_share" in row else None


def _difference(row: Row) -> str | None:
    if "difference" not in row:
        return None
    return f"{row['difference']:.1e}" + (", WRONG" if is_wrong(row) else "")


def _examples(row: Row) -> str | None:
    elapsed = entries.seconds(row)
    return None if elapsed is None or "examples" not in row else f"{row['examples'] / elapsed:,.0f}"


def _metric(name: str, row: Row) -> str | None:
    value = row.get(name)
    if value is None or isinstance(value, str):
        return None if value is None else _escaped(value)
    return duration(value) if name.endswith("_s") else entries.three_digits(value)


def _escaped(text: object) -> str:
    """On one line, and as it is where Markdown, HTML or a table would take a character as theirs."""
    line = html.escape(" ".join(str(text).split()), quote=False).replace("|", "&#124;")
    return re.sub(r"[\\`*\[\]~$]|(?<!\w)_|_(?!\w)", r"\\\g<0>", line)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.page", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, nargs="+", help="<gpu>.json")
    for path in parser.parse_args(arguments).results:
        write(path)
        print(path.with_suffix(".md"))


if __name__ == "__main__":
    main()
