"""The picture of a sweep: what is drawn of which models, and where."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from command_line import SMALL_MLP, CommandLine
from figures import legend, tick_labels

from charlm import plots
from charlm.search_space import LogUniform, Uniform

Record = dict[str, Any]


def record(model: int, dev: float | None, status: str = "done", seed: int = 42, **options: Any) -> Record:
    return {"model": model, "options": options, "seed": seed, "dev": dev, "status": status}


def drawn(axes: Any) -> dict[str, list[tuple[float, float]]]:
    """The points of each kind."""
    return {str(line.get_label()): [(float(x), float(y)) for x, y in line.get_xydata()] for line in axes.get_lines()}


def test_every_model_is_at_its_values() -> None:
    results = [
        record(0, 2.5, learning_rate=0.01, optimizer="sgd"),
        record(1, 2.3, learning_rate=0.1, optimizer="sgd"),
        record(2, 2.4, learning_rate=0.01, optimizer="adamw", seed=43),
        record(3, 2.2, learning_rate=0.1, optimizer="adamw"),
        record(4, 2.7, "stopped", learning_rate=0.01, optimizer="adamw"),
        record(5, None, "diverged", learning_rate=0.1, optimizer="sgd"),
    ]
    figure = plots.sweep_chart({"learning_rate": [0.01, 0.1], "optimizer": ["sgd", "adamw"]}, results, unit="word")
    rates, optimizers = figure.axes
    points = drawn(rates)
    assert points["trained to the end"] == [(0.01, 2.5), (0.1, 2.3), (0.01, 2.4), (0.1, 2.2)]
    np.testing.assert_allclose(points["mean"], [(0.01, 2.45), (0.1, 2.25)])
    assert points["stopped"] == [(0.01, 2.7)]
    # At the upper edge: a share of the height.
    assert points["diverged"] == [(0.1, 0.97)]
    assert points["the best"] == [(0.1, 2.2)]
    assert rates.get_xscale() == "log"
    assert tick_labels(rates) == ["0.01", "0.1"]
    points = drawn(optimizers)
    assert points["trained to the end"] == [(0.0, 2.5), (0.0, 2.3), (1.0, 2.4), (1.0, 2.2)]
    np.testing.assert_allclose(points["mean"], [(0.0, 2.4), (1.0, 2.3)])
    assert tick_labels(optimizers) == ["sgd", "adamw"]
    assert (rates.get_xlabel(), optimizers.get_xlabel()) == ("learning rate", "optimizer")
    assert (rates.get_ylabel(), optimizers.get_ylabel()) == ("loss of dev (nats per word)", "")
    assert legend(figure) == ["mean", "trained to the end", "stopped", "diverged", "the best"]
    assert figure.get_suptitle() == "Loss of dev by option; the best model: 2.2000"
    # All points are inside, and kinds are told apart without colours too.
    low, high = rates.get_ylim()
    assert low < 2.2
    assert high > 2.7
    markers = {line.get_marker() for line in rates.get_lines()}
    assert len(markers) == 5


def test_a_range_has_no_mean_and_its_own_scale() -> None:
    results = [record(i, 2.0 + i / 10, weight_decay=0.01 * 10**i, momentum=i / 4) for i in range(3)]
    figure = plots.sweep_chart({"weight_decay": LogUniform(0.01, 1), "momentum": Uniform(0, 0.9)}, results)
    decays, momenta = figure.axes
    assert (decays.get_xscale(), momenta.get_xscale()) == ("log", "linear")
    assert "mean" not in drawn(decays)
    np.testing.assert_allclose(drawn(momenta)["trained to the end"], [(0.0, 2.0), (0.25, 2.1), (0.5, 2.2)])


def test_a_model_that_was_stopped_is_not_the_best_while_another_came_to_the_end() -> None:
    results = [record(0, 1.0, "stopped", hidden_dim=3), record(1, 2.0, hidden_dim=4)]
    assert drawn(plots.sweep_chart({"hidden_dim": [3, 4]}, results).axes[0])["the best"] == [(4.0, 2.0)]
    results[1] = record(1, None, "diverged", hidden_dim=4)
    assert drawn(plots.sweep_chart({"hidden_dim": [3, 4]}, results).axes[0])["the best"] == [(3.0, 1.0)]


def test_what_is_far_above_does_not_press_the_others_down() -> None:
    results = [record(i, loss, hidden_dim=i + 1) for i, loss in enumerate((2.0, 2.1, 2.2, 2.3, 90.0))]
    (axes,) = plots.sweep_chart({"hidden_dim": [1, 2, 3, 4, 5]}, results).axes
    assert axes.get_ylim()[1] < 2.4
    assert drawn(axes)["far above"] == [(5.0, 0.97)]
    assert len(drawn(axes)["trained to the end"]) == 4


def test_seeds_alone_have_a_column() -> None:
    results = [record(i, 2.0 + i, seed=40 + i) for i in range(3)]
    (axes,) = plots.sweep_chart({}, results).axes
    assert axes.get_xlabel() == "seed"
    assert tick_labels(axes) == ["40", "41", "42"]
    assert drawn(axes)["trained to the end"] == [(0.0, 2.0), (1.0, 3.0), (2.0, 4.0)]


def test_pairs_and_what_is_left_out_have_names() -> None:
    options = {"betas": [(0.9, 0.95), (0.8, 0.9)], "softcap": [None, 5.0], "batch_size": ["full", 8]}
    results = [
        record(0, 2.0, betas=[0.9, 0.95], softcap=None, batch_size=8),
        record(1, 2.1, betas=[0.8, 0.9], softcap=5.0, batch_size="full"),
    ]
    betas, batch_size, softcap = plots.sweep_chart(options, results).axes
    assert tick_labels(betas) == ["0.9,0.95", "0.8,0.9"]
    assert tick_labels(softcap) == ["none", "5"]
    assert tick_labels(batch_size) == ["full", "8"]
    assert drawn(batch_size)["trained to the end"] == [(1.0, 2.0), (0.0, 2.1)]


def test_many_options_have_rows() -> None:
    names = ("learning_rate", "weight_decay", "eps", "hidden_dim", "embedding_dim")
    options = {name: [1, 2] for name in names}
    results = [record(i, 2.0 + i, **dict.fromkeys(names, 1 + i)) for i in range(2)]
    figure = plots.sweep_chart(options, results)
    assert [axes.get_xlabel() for axes in figure.axes if axes.get_visible()] == [
        *("learning rate", "weight decay", "eps", "embedding dim", "hidden dim")
    ]
    assert len({axes.get_position().y0 for axes in figure.axes}) == 2


def test_without_a_loss_there_is_nothing_to_draw() -> None:
    with pytest.raises(ValueError, match=r"^results must have a model with a loss of dev: there is nothing to draw$"):
        plots.sweep_chart({"hidden_dim": [3]}, [record(0, None, "diverged", hidden_dim=3)])


def test_plot_draws_a_sweep(run_charlm: CommandLine, names: Any) -> None:
    options = (*SMALL_MLP, "--steps", 4, "--learning-rate", "0.1,0.2", "--hidden-dim", "3,4", "--out", "sweep")
    run_charlm.output("sweep", names, *options, "--quiet")
    assert run_charlm.output("plot", "sweep") == "sweep/sweep.png\n"
    assert run_charlm.output("plot", "sweep", "--out", "a.svg") == "a.svg\n"
    assert run_charlm.output("plot", "sweep", "--format", "pdf", "--out", "here") == "here/sweep.pdf\n"
    for option in (("--only", "loss"), ("--after", "a"), ("--log-steps",)):
        message = f"{option[0]} goes with a run: of a sweep there is one picture"
        assert run_charlm.error("plot", "sweep", *option) == message
    assert run_charlm.error("plot", "sweep", "sweep/best").startswith("sweep is the folder of a sweep")
    assert run_charlm.output("plot", "sweep/best", "--only", "loss") == "sweep/best/loss.png\n"
