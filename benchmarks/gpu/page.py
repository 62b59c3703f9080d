"""The results of one GPU as a page of tables, in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.markdown import table
from charlm.cli.bench import duration

Row = Mapping[str, Any]

_NONE = "-"


def render(results: Mapping[str, Any]) -> str:
    parts = results["parts"]
    ceilings = parts.get("ceilings", {})
    versions = results["versions"]
    lines = [
        f"# {results['gpu']}",
        "",
        "Written by `python -m benchmarks.gpu`; not by hand. GPU time is the median between two events, with launches "
        "queued and nothing in the cache; a call, that of one of many in a row, Python included. Shares are of what is "
        "counted in the source of each benchmark, over what this GPU did at best; what quack publishes, over "
        "the 3.35 TB/s of its H100.",
        "",
        f"charlm {versions['charlm']} at {results['commit']}; torch {versions['torch']}, Python {versions['python']}, "
        f"CUDA {results['cuda']}; {results['date']}",
        "",
        *(f"- {name}: {_ceiling(entry)}" for name, entry in ceilings.items()),
        *(f"- {name}: {_command(run)}" for name, run in commands(results).items()),
        *(
            f"- {name}: {entry['skipped']}"
            for part in parts.values()
            for name, entry in part.items()
            if "skipped" in entry
        ),
    ]
    for name, entries in parts.items():
        rows = [entry for entry in entries.values() if "workload" in entry]
        if rows:
            lines += ["", f"## {name}", "", *_table(rows, ceilings).splitlines()]
    return "\n".join(lines) + "\n"


def commands(results: Mapping[str, Any]) -> dict[str, Any]:
    """What was run as a command of its own, by name."""
    return {
        name: run
        for entries in results["parts"].values()
        for entry in entries.values()
        for name, run in entry.get("commands", {}).items()
    }


def _ceiling(entry: Row) -> str:
    if "error" in entry:
        return str(entry["error"])
    if "bytes_per_s" in entry:
        return f"{entry['bytes_per_s'] / 1e9:,.0f} GB/s"
    return f"{entry['flops_per_s'] / 1e12:,.1f} TFLOP/s"


def _command(run: Row) -> str:
    said = [run["note"]] if "note" in run else []
    said += [line.strip("= ") for line in run["last_lines"][-1:]]
    return "; ".join(["passed" if run["exit_status"] == 0 else "FAILED", *said])


def _table(rows: Sequence[Row], ceilings: Mapping[str, Any]) -> str:
    eager = {row["workload"]: row for row in rows if row["implementation"] == "eager"}
    columns: dict[str, Callable[[Row], str | None]] = {
        "workload": lambda row: str(row["workload"]),
        "implementation": lambda row: str(row["implementation"]),
        "GPU time": lambda row: duration(row["median_s"]) if "median_s" in row else row.get("error"),
        "a call": lambda row: duration(row["call_s"]) if "call_s" in row else None,
        "x eager": lambda row: _speedup(row, eager.get(row["workload"], {})),
        "rate": _rate,
        "of the ceiling": lambda row: _share(row, ceilings),
        "quack, H100": lambda row: f"{row['published_share']:.0%}" if "published_share" in row else None,
        "examples/s": lambda row: f"{row['examples'] / _seconds(row):,.0f}" if _examples(row) else None,
        "memory": lambda row: f"{row['memory_bytes'] / 1e6:,.0f} MB" if "memory_bytes" in row else None,
        "difference": lambda row: f"{row['difference']:.1e}" if "difference" in row else None,
    }
    cells = {head: [column(row) for row in rows] for head, column in columns.items()}
    shown = {head: column for head, column in cells.items() if any(column)}
    return table(list(shown), [[cell or _NONE for cell in line] for line in zip(*shown.values(), strict=True)])


def _seconds(row: Row) -> float:
    """What a measurement is judged by: whole training steps have only the time of a call."""
    return float(row.get("median_s", row["call_s"]))


def _examples(row: Row) -> bool:
    return "examples" in row and "call_s" in row


def _speedup(row: Row, eager: Row) -> str | None:
    return f"{_seconds(eager) / _seconds(row):.2f}" if "call_s" in row and "call_s" in eager else None


def _rate(row: Row) -> str | None:
    if "median_s" not in row or "ceiling" not in row:
        return None
    if "bytes" in row:
        return f"{row['bytes'] / row['median_s'] / 1e9:,.0f} GB/s"
    return f"{row['flops'] / row['median_s'] / 1e12:,.3g} TFLOP/s"


def _share(row: Row, ceilings: Mapping[str, Any]) -> str | None:
    if "median_s" not in row or "ceiling" not in row:
        return None
    kind = "bytes" if "bytes" in row else "flops"
    best = ceilings.get(row["ceiling"], {}).get(f"{kind}_per_s")
    return None if best is None else f"{row[kind] / row['median_s'] / best:.0%} of {row['ceiling']}"
