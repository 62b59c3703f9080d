"""Sweeps of tiny models, and what tests of sweeps compare."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from charlm import TrainingConfig
from charlm.sweep import Sweep, SweepConfig

STEPS = 18


def base_on(names: str, folder: Path) -> TrainingConfig:
    """What the models of these tests have in common, and the names that they are trained on, in a file."""
    path = folder / "names.txt"
    path.write_text(names)
    return TrainingConfig(
        path=str(path), embedding_dim=2, hidden_dim=4, batch_size=8, steps=STEPS, optimizer="adamw", learning_rate=0.05
    )


def mixed(base: TrainingConfig) -> SweepConfig:
    """Several shapes, lengths of contexts and kinds of optimizers; rungs at 3, 6 and 9, of which the first keeps 6."""
    options: dict[str, Any] = {
        "learning_rate": [0.02, 0.2],
        "optimizer": ["sgd", "adamw"],
        "context_length": [2, 3],
        "batch_size": ["full", 8],
    }
    return SweepConfig(base=base, options=options)


def finish(config: SweepConfig, folder: Path) -> Path:
    """A sweep at its end."""
    with Sweep.start(config, folder) as sweep:
        sweep.run()
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """The files in a folder and below it."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
