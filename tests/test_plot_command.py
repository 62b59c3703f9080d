"""`charlm plot`: which pictures, of which runs, and where they go."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from command_line import SMALL_MLP, CommandLine

from charlm import checkpoint, plots
from charlm.cli import main


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, fifty_names: str) -> Path:
    """A folder with a run of each kind."""
    folder = tmp_path_factory.mktemp("trained")
    names = folder / "names.txt"
    names.write_text(fifty_names)
    for out, options in (
        ("mlp", (*SMALL_MLP, "--steps", 6)),
        ("bigram", ("--model", "bigram", "--backend", "eager", "--steps", 4)),
        ("counts", ("--model", "count-bigram", "--smoothing", 1)),
    ):
        assert main(["train", str(names), *map(str, options), "--quiet", "--out", str(folder / out)]) == 0
    return folder


@pytest.fixture
def runs(run_charlm: CommandLine, trained: Path) -> None:
    """Copies of these runs in the working folder."""
    for name in ("mlp", "bigram", "counts"):
        shutil.copytree(trained / name, name)


@pytest.mark.usefixtures("runs")
@pytest.mark.parametrize(
    ("arguments", "files"),
    [
        ("mlp", ["mlp/loss.png", "mlp/embedding.png"]),
        ("bigram", ["bigram/loss.png", "bigram/probabilities.png"]),
        ("counts", ["counts/counts.png"]),
        ("mlp --only gradients,activations", ["mlp/activations.png", "mlp/gradients.png"]),
        ("mlp --only loss --format svg", ["mlp/loss.svg"]),
        ("mlp --after ae --after a --temperature 0.5 --order vocabulary", ["mlp/next.png"]),
        ("counts --after a --only counts,next --out new/folder", ["new/folder/counts.png", "new/folder/next.png"]),
        ("counts --out table.PDF", ["table.PDF"]),
        ("mlp bigram --log-steps", ["loss.png"]),
        ("mlp bigram --only loss --out two.svg", ["two.svg"]),
    ],
)
def test_the_pictures_that_are_asked_for(run_charlm: CommandLine, arguments: str, files: list[str]) -> None:
    assert run_charlm.output("plot", *arguments.split()).splitlines() == files
    for file in map(Path, files):
        start = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}[file.suffix.lower()]
        assert file.read_bytes().startswith(start)


@pytest.mark.usefixtures("runs")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "mlp --only counts",
            "only must be among loss, embedding, activations, gradients, next for a mlp, got 'counts'",
        ),
        ("counts --only loss", "only must be among counts, next for a count-bigram, got 'loss'"),
        ("mlp --only next", "only='next' needs after, a text"),
        ("mlp --only ,", "--only , names no picture"),
        ("mlp --order vocabulary", "--order goes with --after"),
        ("mlp --temperature 1", "--temperature goes with --after"),
        ("mlp --after x", "after: text[0] = 'x' is not in the vocabulary of 11 characters"),
        ("mlp --out loss.svg", "--out loss.svg is one picture, but there are loss, embedding: choose by --only"),
        (
            "counts --out a.svg --format pdf",
            "--format goes with a folder, not with --out a.svg, whose ending is the format",
        ),
        ("counts --out missing/a.svg", "missing: No such file or directory"),
        ("counts --format gif", "Invalid value for '--format': 'gif' is not one of png, svg, pdf"),
        ("counts --after a --order size", "Invalid value for '--order': 'size' is not one of probability, vocabulary"),
        ("mlp counts", "counts has no losses to draw: it was not trained in steps"),
        ("mlp bigram --after a", "--after goes with one RUN, got 2"),
        ("mlp bigram --only embedding", "--only embedding goes with one RUN, got 2"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(run_charlm: CommandLine, arguments: str, message: str) -> None:
    before = {path.name for path in Path().rglob("*")}
    assert run_charlm.error("plot", *arguments.split()) == message
    assert {path.name for path in Path().rglob("*")} == before


@pytest.mark.usefixtures("runs")
def test_runs_are_called_as_their_folders(run_charlm: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree("mlp", "other/mlp")
    real, drawn = plots.loss_curve, {}

    def loss_curve(runs: dict[str, list[dict[str, Any]]], **options: Any) -> object:
        drawn.update(runs)
        return real(runs, **options)

    monkeypatch.setattr(plots, "loss_curve", loss_curve)
    run_charlm.output("plot", "mlp", "other/mlp/", "bigram")
    assert [*drawn] == ["mlp", "other/mlp/", "bigram"]
    assert [record["step"] for record in drawn["bigram"]] == [1, 2, 3, 4]


@pytest.mark.usefixtures("runs")
def test_histograms_are_of_the_data_of_the_run(run_charlm: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(plots.run_figures, "activation_histograms", lambda model, contexts: seen.append(contexts))
    monkeypatch.setattr(plots, "save", lambda drawn, folder, format: [])
    run_charlm.output("plot", "mlp", "--only", "activations")
    train = checkpoint.load("mlp").load_data().train
    assert seen[0].shape == (min(1000, len(train)), 3)
    assert seen[0][0].equal(train.contexts[0])
    assert seen[0][-1].equal(train.contexts[-1])
    config = Path("mlp/config.json")
    config.write_text(config.read_text().replace("names.txt", "gone.txt"))
    assert "gone.txt: No such file or directory" in run_charlm.error("plot", "mlp", "--only", "activations")
    assert run_charlm.output("plot", "mlp", "--only", "embedding") == ""


@pytest.mark.usefixtures("runs")
def test_a_run_without_a_step_has_no_loss_curve(run_charlm: CommandLine) -> None:
    run = Path("mlp")
    (run / "metrics.jsonl").unlink()
    assert run_charlm.output("plot", run) == "mlp/embedding.png\n"
    assert run_charlm.error("plot", run, "--only", "loss") == (
        "only='loss' needs records of training, which this run does not have"
    )


@pytest.mark.usefixtures("runs")
def test_losses_that_are_not_finite_leave_a_gap(run_charlm: CommandLine) -> None:
    lines = Path("mlp/metrics.jsonl").read_text().splitlines()
    record = json.loads(lines[2]) | {"loss": None}
    Path("mlp/metrics.jsonl").write_text("\n".join([*lines[:2], json.dumps(record), *lines[3:]]) + "\n")
    assert run_charlm.output("plot", "mlp", "--only", "loss") == "mlp/loss.png\n"
