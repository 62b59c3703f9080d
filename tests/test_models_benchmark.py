"""`python -m benchmarks models`: all losses train the same model, and the table has what was measured."""

from __future__ import annotations

import json
import shlex
import statistics
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

import charlm
from benchmarks import models
from benchmarks.__main__ import main
from benchmarks.models import MODELS
from benchmarks.peak_memory import peak_bytes
from benchmarks.transformer import LOSSES, Sizes, Transformer, training_step

TINY = Sizes(vocab_size=50, layers=2, width=16, heads=4, length=8, batch_size=3)


@pytest.fixture
def tokens() -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and targets."""
    ids, targets = torch.randint(TINY.vocab_size, (2, TINY.batch_size, TINY.length))
    return ids, targets


@pytest.mark.parametrize("loss", list(LOSSES)[1:])
def test_every_loss_has_the_value_and_the_gradients_of_pytorchs(
    loss: str, tokens: tuple[torch.Tensor, torch.Tensor]
) -> None:
    model = Transformer(TINY)
    results = []
    for function in (LOSSES["F.cross_entropy"], LOSSES[loss]):
        value = function(model, *tokens)
        results.append([value, *torch.autograd.grad(value, list(model.parameters()))])
    assert results[0][0].item() > 3
    torch.testing.assert_close(results[1], results[0])


@pytest.mark.parametrize("loss", list(LOSSES)[1:])
def test_every_loss_trains_as_pytorchs_does(loss: str) -> None:
    steps = [training_step(TINY, name, torch.float32) for name in ("F.cross_entropy", loss)]
    curves = [torch.stack([step() for _ in range(5)]) for step in steps]
    assert curves[0][-1] < curves[0][0] - 0.01
    torch.testing.assert_close(curves[1], curves[0])


def test_parameters_have_the_dtype_and_so_has_the_loss() -> None:
    value = training_step(TINY, "ops.linear_cross_entropy", torch.bfloat16)()
    assert value.dtype == torch.bfloat16
    torch.testing.assert_close(
        value.float(), training_step(TINY, "F.cross_entropy", torch.float32)(), rtol=0.02, atol=0
    )


def test_a_position_sees_what_came_before_it_alone(tokens: tuple[torch.Tensor, torch.Tensor]) -> None:
    model, ids = Transformer(TINY), tokens[0]
    changed = ids.clone()
    changed[:, 5] = (ids[:, 5] + 1) % TINY.vocab_size
    before, after = model(ids), model(changed)
    torch.testing.assert_close(after[:, :5], before[:, :5])
    assert ((after - before)[:, 5:].abs().amax(-1) > 1e-4).all()


def test_the_models_are_those_that_they_are_named_after() -> None:
    def parameters(name: str) -> int:
        return sum(parameter.numel() for parameter in Transformer(MODELS[name]).parameters())

    # As makemore.py prints it for names of up to 15 letters.
    assert parameters("makemore's transformer") == 204_544
    block = 12 * 256**2 + 13 * 256
    assert parameters("GPT") == 2 * 50257 * 256 + 128 * 256 + 6 * block + 2 * 256


def test_peak_memory_is_that_of_the_steps() -> None:
    """And of these alone: the process that runs the tests has megabytes that it could use again."""
    sizes = Sizes(vocab_size=20_000, layers=1, width=4, heads=1, length=32, batch_size=16)
    logits = 4 * 20_000 * 32 * 16
    eager, ours = (
        peak_bytes(partial(training_step, sizes, loss, torch.float32), torch.get_num_threads())
        for loss in ("F.cross_entropy", "ops.linear_cross_entropy")
    )
    if sys.platform != "linux":
        assert eager is ours is None
        return
    # The logits, their log-probabilities and the gradients; charlm holds a chunk of the logits.
    assert 2 * logits < eager < 5 * logits
    assert 0 < ours < logits


def test_the_table_and_the_file_have_what_was_measured(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(models, "MODELS", {"tiny": TINY, "other": TINY})
    asked = []

    def peak(prepare: partial, threads: int) -> int | None:
        asked.append((*prepare.args, threads))
        return None if threads == 1 else 12_345_678_901

    monkeypatch.setattr(models, "peak_bytes", peak)
    file = tmp_path / "models.json"
    options = ["--only", "tiny", "--dtypes", "float32", "--threads", "1,2", "--rounds", "1", "--json", str(file)]
    threads = torch.get_num_threads()
    assert main(["models", *options]) == 0
    assert torch.get_num_threads() == threads
    lines = capsys.readouterr().out.splitlines()
    report = json.loads(file.read_text())
    assert report["command"] == shlex.join(["python", "-m", "benchmarks", "models", *options])
    assert report["commit"] == charlm.environment.commit()
    assert report["models"]["tiny"]["parameters"] == sum(p.numel() for p in Transformer(TINY).parameters())
    assert asked == [(TINY, loss, torch.float32, count) for count in (1, 2) for loss in LOSSES]
    assert [(row["loss"], row["threads"]) for row in report["rows"]] == [(loss, n) for n in (1, 2) for loss in LOSSES]
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| tiny")]
    for row in report["rows"]:
        assert row["median_s"] == statistics.median(row["rounds_s"]) > 0
        eager = next(other for other in report["rows"] if other["threads"] == row["threads"])
        assert row["ratio"] == pytest.approx(eager["median_s"] / row["median_s"])
        (shown,) = (cells for cells in table if cells[2:4] == [str(row["threads"]), row["loss"]])
        assert shown[:2] == ["tiny", "float32"]
        assert shown[5:] == [f"{row['ratio']:.2f}", "-" if row["threads"] == 1 else "12,346 MB"]
    assert len({len(line) for line in lines if line.startswith("|")}) == 1
