"""`python -m benchmarks models`: what the losses of charlm are worth in whole training steps of other models."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from statistics import median
from typing import Any

import torch

from benchmarks.markdown import table
from benchmarks.options import add_options, dtype_name
from benchmarks.peak_memory import peak_bytes
from benchmarks.provenance import machine_line, origin_line
from benchmarks.timing import alternate, ratio, repeated, threads_shown
from benchmarks.transformer import LOSSES, Sizes, Transformer, training_step
from charlm.benchmark import torch_threads
from charlm.cli.bench import duration

# A small GPT with the tokens of GPT-2; karpathy/makemore, the defaults of makemore.py, for names.
MODELS = {
    "GPT": Sizes(vocab_size=50257, layers=6, width=256, heads=4, length=128, batch_size=8),
    "makemore's transformer": Sizes(vocab_size=27, layers=4, width=64, heads=4, length=16, batch_size=32),
}
_EAGER = next(iter(LOSSES))
_ROUND_SECONDS = 0.05


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "models",
        help="time training steps of transformers with charlm's losses and PyTorch's",
        description="Trains a GPT and makemore's transformer, in plain PyTorch but for the loss, and shows what a step "
        "takes with each loss: the time of forward, backward and AdamW, side by side, and the peak memory.",
    )
    add_options(parser, {name: name for name in MODELS})
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, results: dict[str, Any]) -> int:
    """Prints the table; returns the exit status. `results` has where they come from."""
    results["models"] = {name: _facts(MODELS[name]) for name in options.rows}
    results["rows"] = [
        row
        for name in options.rows
        for dtype in options.dtypes
        for threads in options.threads
        for row in _measure(name, dtype, threads, options.rounds)
    ]
    print(render(results))
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    return 0


def _facts(sizes: Sizes) -> dict[str, int]:
    with torch.device("meta"):
        model = Transformer(sizes)
    return asdict(sizes) | {"parameters": sum(parameter.numel() for parameter in model.parameters())}


def _measure(name: str, dtype: torch.dtype, threads: int, rounds: int) -> list[dict[str, Any]]:
    """A row for each loss."""
    print(f"{name}, {dtype_name(dtype)}, {threads_shown(threads)}", file=sys.stderr)
    prepare = {loss: partial(training_step, MODELS[name], loss, dtype) for loss in LOSSES}
    with torch_threads(threads):
        times = alternate({loss: repeated(prepare[loss]()) for loss in LOSSES}, rounds, _ROUND_SECONDS)
    return [
        {
            "model": name,
            "dtype": dtype_name(dtype),
            "threads": threads,
            "loss": loss,
            "rounds_s": seconds,
            "median_s": median(seconds),
            "ratio": ratio(times[_EAGER], seconds),
            "peak_bytes": peak_bytes(prepare[loss], threads),
        }
        for loss, seconds in times.items()
    ]


def render(results: Mapping[str, Any]) -> str:
    """The results as text, which is Markdown."""
    lines = [
        [
            row["model"],
            row["dtype"],
            str(row["threads"]),
            row["loss"],
            duration(row["median_s"]),
            f"{row['ratio']:.2f}",
            "-" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:,.0f} MB",
        ]
        for row in results["rows"]
    ]
    heading = ["training step", "dtype", "threads", "loss", "time", f"x {_EAGER}", "peak memory"]
    return "\n".join(
        [
            f"{machine_line(results)}; {origin_line(results)}\n",
            *(
                f"- {name}: {facts['parameters']:,} parameters, {facts['vocab_size']:,} different tokens, "
                f"{facts['layers']} layers of width {facts['width']} with {facts['heads']} heads; batches of "
                f"{facts['batch_size']} texts of {facts['length']} tokens"
                for name, facts in results["models"].items()
            ),
            "",
            table(heading, lines, aligned=True),
            f'"x {_EAGER}" is how many times as long the step takes with that. Peak memory is the most that a process '
            "holds beyond the parameters: activations, logits, gradients, the state of AdamW, and a few MB that torch "
            "sets up at first use.",
        ]
    )
