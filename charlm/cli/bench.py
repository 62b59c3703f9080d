"""`charlm bench`: how fast each backend trains on this machine."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from typer import Argument, Option

from charlm import environment
from charlm.cli import completion
from charlm.cli.options import file_name, one_of
from charlm.cli.training_options import BACKENDS

if TYPE_CHECKING:
    from charlm.benchmark import Race

# Of the table in a file or a pipe: nothing is cut.
_WIDTH = 100
# On a narrow terminal there are fewer columns; the first two always.
_FEWEST_COLUMNS, _ANY_WIDTH = 2, 1000


def bench(
    context: typer.Context,
    path: Annotated[
        str | None,
        Argument(metavar="FILE", parser=file_name, help="UTF-8 text, - for standard input (default: US given names)."),
    ] = None,
    preset: Annotated[
        str, one_of(("makemore", "eureka", "large", "full"), "Model, batch size and optimizer of the race")
    ] = "makemore",
    backends: Annotated[
        str | None,
        Option(
            metavar="B1,B2,...",
            help="Who takes part, such as eager,fused (default: all).",
            autocompletion=completion.word_list(BACKENDS),
        ),
    ] = None,
    threads: Annotated[int, Option(help="For every backend.")] = 1,
    seconds: Annotated[float, Option(help="Of measuring for each backend.")] = 5.0,
    as_json: Annotated[bool, Option("--json", help="Print JSON, with every round and where it was measured.")] = False,
    plot: Annotated[
        str | None,
        Option(
            parser=file_name,
            metavar="PICTURE",
            help="Draw the speeds, such as speed.png; needs charlm\\[plot].",
        ),
    ] = None,
) -> None:
    """Race the backends: the same training steps by each, side by side, in alternating rounds; medians.

    makemore and eureka are those of training, the lecture's run and a wider model with AdamW; large is makemore with
    batches of 4,096, full with the whole data set in every step.
    """
    from charlm.benchmark import race

    if plot is not None:
        from charlm.plots import check_picture

        # Before minutes of measuring.
        check_picture(plot)
    with Console(stderr=True).status("reading the data") as status:
        finished = race(
            preset,
            path=path,
            backends=None if backends is None else [name for name in backends.split(",") if name],
            threads=threads,
            seconds=seconds,
            on_round=status.update,
        )
    report = _provenance(context.command_path, path, preset, backends, threads, seconds) | finished.to_dict()
    if as_json:
        typer.echo(json.dumps(report))
    else:
        _print_report(report, finished)
    if plot is not None:
        from charlm.plots import speed_chart, write

        speeds = {row["name"]: row["steps_per_second"] for row in report["results"]}
        write(speed_chart(speeds, workload_line(report), note=machine_line(report)), plot)


def _provenance(
    command_path: str, path: str | None, preset: str, backends: str | None, threads: int, seconds: float
) -> dict[str, Any]:
    """Where the figures come from, and the command that measures them again."""
    command = [*command_path.split(), *([] if path is None else [path]), "--preset", preset]
    command += [] if backends is None else ["--backends", backends]
    command += ["--threads", str(threads), "--seconds", f"{seconds:g}"]
    return {
        "command": shlex.join(command),
        "commit": environment.commit(),
        "machine": environment.machine(),
        "versions": environment.versions(),
    }


def _print_report(report: dict[str, Any], finished: Race) -> None:
    rounds = len(report["results"][0]["rounds_s"])
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _WIDTH
    typer.echo(workload_line(report))
    typer.echo(machine_line(report))
    console.print(_table(report["results"], console))
    typer.echo(
        f"Medians of {rounds} rounds. GFLOP/s count the products of every example, also where a backend saves them;\n"
        f"an sgemm of 1024 x 1024 reached {report['sgemm_gflops']:.1f} in the same run."
    )
    by_examples = {
        kind: ", ".join(timing.name for timing in finished.timings if timing.examples == kind)
        for kind in ("every example", "distinct contexts")
    }
    if by_examples["every example"]:
        typer.echo(
            f"Computed in a step: every example ({by_examples['every example']}); "
            f"each distinct context once ({by_examples['distinct contexts'] or 'none'})."
        )


def _table(results: Sequence[Mapping[str, Any]], console: Console) -> Table:
    """The results with as many columns as there is room for."""
    rows = [
        {
            "backend": row["name"],
            "time/step": duration(row["median_s"]),
            "steps/s": rate(row["steps_per_second"]),
            "x eager": "-" if row["ratio_to_eager"] is None else f"{row['ratio_to_eager']:.2f}",
            "examples/s": f"{row['examples_per_second']:,.0f}",
            "GFLOP/s": f"{row['gflops']:.1f}",
            "of sgemm": f"{row['share_of_sgemm']:.0%}",
        }
        for row in results
    ]
    headings = list(rows[0])
    while True:
        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        for heading in headings:
            table.add_column(heading, justify="left" if heading == "backend" else "right", no_wrap=True)
        for row in rows:
            table.add_row(*(row[heading] for heading in headings))
        needed = console.measure(table, options=console.options.update_width(_ANY_WIDTH)).maximum
        if needed <= console.width or len(headings) <= _FEWEST_COLUMNS:
            return table
        headings.pop()


def workload_line(report: Mapping[str, Any]) -> str:
    """What was trained in a race, of which this is the JSON."""
    workload = report["workload"]
    return (
        f"{workload['name']}: {workload['parameters']:,} parameters, {workload['optimizer']}, "
        f"{workload['examples_per_step']:,} examples a step, {workload['data']}"
    )


def machine_line(report: Mapping[str, Any]) -> str:
    """Where it was measured, and with which versions."""
    machine, versions, commit = report["machine"], report["versions"], report["commit"]
    threads = f"{report['threads']} thread" + "s" * (report["threads"] > 1)
    return (
        f"{threads} of {machine['cores']} cores, {machine['processor']}; torch {versions['torch']}, "
        f"charlm {versions['charlm']}" + (f" at {commit}" if commit else "")
    )


def duration(seconds: float) -> str:
    """Three digits in the unit that fits."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def rate(per_second: float) -> str:
    """Four digits of small rates, all those before the point of large ones."""
    return f"{per_second:,.0f}" if per_second >= 1000.0 else f"{per_second:.4g}"
