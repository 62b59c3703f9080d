"""What a run would do, step by step, with the seconds that each may take: what `--dry-run` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.gpu.jobs import Name
from benchmarks.gpu.steps import Step
from benchmarks.markdown import table


def describe(steps: Sequence[Step], tasks: Mapping[str, Sequence[Name]], seconds: float) -> str:
    """A table of the steps, their sum, and the names of what each does."""
    rows, begins = [], 0.0
    for step in steps:
        limit = max(0.0, min(step.seconds, seconds - begins))
        rows.append([step.name, f"{begins:g}", f"{begins + limit:g}", f"{limit:g}", str(len(tasks[step.name]))])
        begins += limit
    head = ["step", "from s", "to s", "seconds at most", "tasks"]
    lines = [table(head, rows, aligned=True).rstrip()]
    lines.append(f"{begins:g} s of {seconds:g} s; a step that ends early leaves its time to the last one")
    for step in steps:
        lines += ["", f"{step.name}:"]
        lines += [f"  {name if part == step.name else f'{part}: {name}'}" for part, name in tasks[step.name]]
    return "\n".join(lines)
