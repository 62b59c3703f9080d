"""`python -m scripts.draw_pictures`: draws docs/pictures, from models that it trains on the embedded names.

The race is that of benchmarks/results.
"""

from __future__ import annotations

import io
import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from charlm import PRESETS, Sweep, SweepConfig, TrainingRun, checkpoint, plots
from charlm.cli.bench import machine_line, workload_line
from scripts.draw_training import results

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "pictures"
# Where a PNG says what is written in the picture.
KEY = "Description"
_AFTER = ("", "emm", "jos")
_COLOURS = 128
_SWEPT = {"learning_rate": [0.01, 0.02, 0.05], "weight_decay": [0.01, 0.03, 0.1, 0.3, 1.0]}


def figures(steps: int | None = None) -> dict[str, Figure]:
    """The pictures by name.

    Args:
        steps: of training; None is as many as the preset has.
    """
    preset = PRESETS["fast"] if steps is None else replace(PRESETS["fast"], steps=steps, warmup_steps=0)
    with tempfile.TemporaryDirectory() as folder:
        for name, config in (
            ("counts", PRESETS["count-bigram"]),
            ("names", preset),
            ("narrow", replace(preset, hidden_dim=20)),
            ("plane", replace(preset, embedding_dim=2)),
        ):
            with TrainingRun.start(config, Path(folder, name)) as training:
                training.run()
        runs = {path.name: checkpoint.load(path) for path in Path(folder).iterdir()}
        records = {name: checkpoint.read_metrics(Path(folder, name)) for name in ("names", "narrow")}
        names = runs["names"]
        split = names.load_data().train
        sweep = SweepConfig(base=preset, options=_SWEPT, seeds=2)
        with Sweep.start(sweep, Path(folder, "sweep")) as running:
            running.run()
        swept = [result.to_dict() for result in running.results()]
    return {
        "bigrams": _of(runs["counts"], "counts"),
        "embedding": _of(runs["plane"], "embedding"),
        "next": plots.next_character(names.model, names.vocabulary, _AFTER),
        "loss": plots.loss_curve(records),
        "activations": _of(names, "activations", split=split),
        "gradients": _of(names, "gradients", split=split),
        "sweep": plots.sweep_chart(sweep.options, swept),
        "speed": speed_chart(results()["races"][0]),
    }


def speed_chart(race: Mapping[str, Any]) -> Figure:
    """A race as `charlm bench --plot` draws it."""
    speeds = {row["name"]: row["steps_per_second"] for row in race["results"]}
    return plots.speed_chart(speeds, workload_line(race), note=machine_line(race))


def texts(figure: Figure) -> list[str]:
    """What is written in a figure, each text once, numbers as #, as another machine rounds otherwise."""
    from matplotlib.text import Text

    # Ticks have their labels then.
    figure.draw_without_rendering()
    written = {text.get_text() for text in figure.findobj(Text) if text.get_visible()}
    return sorted({re.sub(r"[-−]?\d[\d.,]*(e[-+]?\d+)?", "#", text) for text in written} - {""})


def main() -> None:
    from PIL import Image, PngImagePlugin

    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        drawn = figures()
        for path in plots.save(drawn, folder):
            # A third of the size, without a difference that is seen.
            picture = Image.open(io.BytesIO(path.read_bytes())).convert("RGB").quantize(_COLOURS)
            description = PngImagePlugin.PngInfo()
            description.add_itxt(KEY, json.dumps(texts(drawn[path.stem])))
            picture.save(FOLDER / path.name, optimize=True, pnginfo=description)
            print(f"{FOLDER / path.name}: {(FOLDER / path.name).stat().st_size:,} bytes")


def _of(run: checkpoint.Run, name: str, **needs: Any) -> Figure:
    return plots.figures(run.model, run.vocabulary, [], only=[name], **needs)[name]


if __name__ == "__main__":
    main()
