"""`python -m benchmarks populations`: many models trained together, against the same ones one after another."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

import torch

from benchmarks.markdown import table
from benchmarks.options import containing, file_to_write, positive
from benchmarks.provenance import machine_line, origin_line
from benchmarks.timing import Run, alternate, ratio, threads_shown
from charlm.benchmark import WORKLOADS, torch_threads
from charlm.cli.bench import duration
from charlm.configuration import TrainingConfig
from charlm.data import Dataset
from charlm.population import Population
from charlm.presets import PRESETS
from charlm.trainer import Trainer

# How many models of which options. One step of the second, and of the third, is work for several threads itself.
SIDE_BY_SIDE: dict[str, tuple[TrainingConfig, int]] = {
    "64 of makemore": (WORKLOADS["makemore"], 64),
    "3 of large": (WORKLOADS["large"], 3),
    "8 of fast": (PRESETS["fast"], 8),
}
# From the first line of the data to the losses of dev.
WHOLE: dict[str, tuple[TrainingConfig, int]] = {"100 of fast, whole": (PRESETS["fast"], 100)}
_ROUND_SECONDS = 2.0
_COMPARED_STEPS = 3


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "populations",
        help="time models that are trained together against the same ones one after another",
        description="Trains models that differ in their seeds in one charlm.Population, and one after another by "
        "their own trainers, in turns; then 100 models from the data to the loss of dev.",
    )
    parser.add_argument(
        "--threads",
        type=positive,
        default=os.cpu_count() or 1,
        metavar="N",
        help="of a population (default: all)",
    )
    parser.add_argument(
        "--only",
        type=containing({name: name for name in (*SIDE_BY_SIDE, *WHOLE)}),
        default="",
        metavar="TEXT",
        dest="rows",
        help="rows whose name contains this (default: all)",
    )
    parser.add_argument("--rounds", type=positive, default=7, metavar="N", help="of each row (default: 7)")
    parser.add_argument("--json", type=file_to_write, metavar="FILE", help="with every round of every row")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, results: dict[str, Any]) -> int:
    """Prints the table; returns the exit status. `results` has where they come from."""
    results["rows"] = []
    for name in options.rows:
        print(f"{name}, {threads_shown(options.threads)}", file=sys.stderr)
        results["rows"] += (
            _measure(name, options.threads, options.rounds)
            if name in SIDE_BY_SIDE
            else [_measure_whole(name, options.threads)]
        )
    print(render(results))
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    return 0


def _configs(config: TrainingConfig, models: int) -> list[TrainingConfig]:
    return [replace(config, seed=seed, backend="fused") for seed in range(models)]


def _measure(name: str, threads: int, rounds: int) -> list[dict[str, Any]]:
    """A row for the population, and one for its models one after another, on as many threads and on one."""
    config, models = SIDE_BY_SIDE[name]
    dataset = config.load_data()
    population = Population(_trainers(config, models, dataset))
    runs = {
        f"together, {threads_shown(threads)}": partial(_together, population, threads),
        **{
            f"one after another, {threads_shown(number)}": partial(
                _one_after_another, _trainers(config, models, dataset), number
            )
            for number in sorted({1, threads}, reverse=True)
        },
    }
    losses = [run(_COMPARED_STEPS) for run in runs.values()]
    if not all(torch.equal(losses[0], other) for other in losses[1:]):
        raise RuntimeError(f"{name}: the losses are not the same bits")
    steps: dict[str, Run] = dict(runs)
    times = alternate(steps, rounds, _ROUND_SECONDS)
    together = next(iter(times.values()))
    return [
        {
            "name": name,
            "models": models,
            "way": way,
            "rounds_s": seconds,
            "median_s": median(seconds),
            "steps_per_second": models / median(seconds),
            "ratio": ratio(seconds, together),
        }
        for way, seconds in times.items()
    ]


def _trainers(config: TrainingConfig, models: int, dataset: Dataset) -> list[Trainer]:
    return [own.create_trainer(own.create_model(len(dataset.vocabulary)), dataset) for own in _configs(config, models)]


def _together(population: Population, threads: int, steps: int) -> torch.Tensor:
    with torch_threads(threads):
        return population.run(steps)


def _one_after_another(trainers: list[Trainer], threads: int, steps: int) -> torch.Tensor:
    with torch_threads(threads):
        return torch.stack([trainer.run(steps) for trainer in trainers])


def _measure_whole(name: str, threads: int) -> dict[str, Any]:
    config, models = WHOLE[name]
    with torch_threads(threads):
        started = time.perf_counter()
        population = Population.from_configs(_configs(config, models))
        population.run(config.steps)
        dev = population.evaluate("dev")
        seconds = time.perf_counter() - started
    return {
        "name": name,
        "models": models,
        "way": f"together, {threads_shown(threads)}",
        "steps": config.steps,
        "seconds": seconds,
        "steps_per_second": models * config.steps / seconds,
        "dev": [dev.min().item(), dev.max().item()],
    }


def render(results: Mapping[str, Any]) -> str:
    """The results as text, which is Markdown."""
    lines = [
        [
            row["name"],
            row["way"],
            duration(row["median_s"] / row["models"]) if "median_s" in row else f"{row['seconds']:.1f} s in all",
            f"{row['steps_per_second']:,.0f}",
            f"{row['ratio']:.2f}" if "ratio" in row else "-",
        ]
        for row in results["rows"]
    ]
    heading = ["models", "trained", "time/step", "steps/s", "x together"]
    notes = [
        "A step is one of one model. Models differ in their seeds, and have the same losses to the bit in all ways. "
        '"x together" is how many times as long the way takes as the population does, by the median over the rounds.'
    ]
    notes += [
        f"{row['name']}: {row['models']} models, {row['steps']} steps each, from the data to the loss of dev, which is "
        f"{row['dev'][0]:.4f} .. {row['dev'][1]:.4f}."
        for row in results["rows"]
        if "dev" in row
    ]
    return "\n".join(
        [f"{machine_line(results)}; {origin_line(results)}\n", table(heading, lines, aligned=True), *notes]
    )
