"""`python -m scripts.draw_training`: draws docs/training.svg, the time of a training step by who computes it.

From the measurements in benchmarks/results; of several machines, from the first that has raced JAX too.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from charlm.cli.bench import duration

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs" / "training.svg"
# By the name of a row in the results; who is not there is left out.
NAMES = {
    "eager": "PyTorch",
    "compile": "torch.compile",
    "eager (distinct)": "PyTorch, each context once",
    "jax": "JAX, jitted scan",
    "fused": "charlm",
}
COLOURS = {
    "eager": "#9aa0a6",
    "compile": "#bdc1c6",
    "eager (distinct)": "#c9b37e",
    "jax": "#7ea6c9",
    "fused": "#c0392b",
}


def results() -> dict[str, Any]:
    """What was measured on one machine."""
    everything = (json.loads(path.read_text()) for path in sorted((ROOT / "benchmarks" / "results").glob("*.json")))
    return next(
        found
        for found in everything
        if any(row["name"] == "jax" for race in found.get("races", []) for row in race["results"])
    )


def bars(race: dict[str, Any]) -> list[tuple[str, float]]:
    """Names of rows and seconds a step, the slowest first."""
    times = {row["name"]: row["median_s"] for row in race["results"] if row["name"] in NAMES}
    return sorted(times.items(), key=lambda bar: -bar[1])


def title(race: dict[str, Any]) -> str:
    work = race["workload"]
    return f"{work['parameters']:,} parameters, {work['examples_per_step']:,} examples a step"


def main() -> None:
    import matplotlib
    from matplotlib.figure import Figure

    # Text as text, and the same bytes for the same measurements.
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "charlm", "font.size": 9})
    races = results()["races"]
    figure = Figure(figsize=(9, 4.6), layout="constrained")
    for axes, race in zip(figure.subplots(2, 2).flat, races, strict=True):
        rows = bars(race)
        axes.barh([NAMES[name] for name, _ in rows], [s for _, s in rows], color=[COLOURS[name] for name, _ in rows])
        for place, (_, seconds) in enumerate(rows):
            axes.text(seconds, place, f" {duration(seconds)}", va="center")
        axes.set_title(title(race), fontsize=9, loc="left")
        axes.set_xlim(0, 1.25 * rows[0][1])
        axes.set_xticks([])
        axes.tick_params(length=0)
        axes.spines[["top", "right", "bottom"]].set_visible(False)
    figure.savefig(PICTURE, metadata={"Date": None})


if __name__ == "__main__":
    main()
