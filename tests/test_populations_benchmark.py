"""`python -m benchmarks populations`: what is raced is the same training, and the table has what was measured."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import populations
from benchmarks.__main__ import main
from charlm import Population, TrainingConfig

pytestmark = pytest.mark.cpu

CONFIG = TrainingConfig(embedding_dim=2, hidden_dim=4, steps=10)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(populations, "_ROUND_SECONDS", 0.001)
    monkeypatch.setattr(populations, "SIDE_BY_SIDE", {"3 of small": (CONFIG, 3)})
    monkeypatch.setattr(populations, "WHOLE", {"4 of small, whole": (replace(CONFIG, batch_size="full"), 4)})


def test_the_table(small: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "populations.json"
    assert main(["populations", "--threads", "2", "--rounds", "3", "--json", str(file)]) == 0
    report = json.loads(file.read_text())
    *rows, whole = report["rows"]
    assert [row["way"] for row in rows] == [
        "together, 2 threads",
        "one after another, 2 threads",
        "one after another, 1 thread",
    ]
    shown = capsys.readouterr().out
    for row in rows:
        assert row["models"] == 3
        assert len(row["rounds_s"]) == 3
        assert row["median_s"] == median(row["rounds_s"])
        assert row["steps_per_second"] == pytest.approx(3 / row["median_s"])
        pairs = zip(row["rounds_s"], rows[0]["rounds_s"], strict=True)
        assert row["ratio"] == pytest.approx(median(own / together for own, together in pairs))
        assert f"| {row['way']:28} |" in shown
    assert (whole["models"], whole["steps"]) == (4, 10)
    assert whole["steps_per_second"] == pytest.approx(40 / whole["seconds"])
    expected = Population.from_configs(
        [replace(CONFIG, batch_size="full", seed=seed, backend="fused") for seed in range(4)]
    )
    expected.run(10)
    dev = expected.evaluate("dev")
    assert whole["dev"] == [dev.min().item(), dev.max().item()]
    assert f"which is {whole['dev'][0]:.4f} .. {whole['dev'][1]:.4f}." in shown


def test_rows_are_chosen_by_their_names(small: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["populations", "--only", "whole", "--threads", "1"]) == 0
    shown = capsys.readouterr().out
    assert "| 4 of small, whole | together, 1 thread | " in shown
    assert "3 of small" not in shown


def test_models_that_are_not_the_same_are_no_race(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Population.run

    def other(population: Population, steps: int, *arguments: Any) -> Tensor:
        return run(population, steps, *arguments) + torch.tensor(1e-6)

    monkeypatch.setattr(Population, "run", other)
    with pytest.raises(RuntimeError, match=r"^3 of small: the losses are not the same bits$"):
        main(["populations", "--only", "3 of small", "--rounds", "1"])
