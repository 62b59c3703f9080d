"""Activations and gradients of an MLP: the histograms have the numbers of its layers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from figures import titles

from charlm import MLP, CountBigram, plots


def saturated_model() -> MLP:
    """Two tokens; the first hidden unit is saturated after token 0 only, the second never."""
    model = MLP(2, 1, 1, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.embedding.copy_(torch.tensor([[3.0], [0.5]]))
        model.weight1.copy_(torch.tensor([[1.0], [0.1]]))
        model.weight2.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
    return model


def test_activations_are_those_of_the_layers() -> None:
    figure = plots.activation_histograms(saturated_model(), torch.tensor([[0], [0], [0], [1]]))
    before, outputs, by_unit, logits = figure.axes
    values = [3.0, 0.3] * 3 + [0.5, 0.05]
    for axes, expected in (
        (before, values),
        (outputs, np.tanh(values)),
        (logits, np.tanh(values) * ([1.0, 2.0] * 4)),
    ):
        bars = axes.containers[0]
        assert [bar.get_height() for bar in bars] == np.histogram(expected, bins=len(bars))[0].tolist()
        assert bars[0].get_x() == pytest.approx(min(expected))
        assert bars[-1].get_x() + bars[-1].get_width() == pytest.approx(max(expected))
    assert titles(figure) == [
        f"pre-activations: mean {np.mean(values):.2g}, std {np.std(values, ddof=1):.2g}",
        "outputs: 38% saturated",
        "0 of 2 units saturated for every context",
        titles(figure)[3],
    ]
    (area,) = by_unit.collections
    assert area.get_paths()[0].get_extents().y1 == 75.0


def test_a_unit_that_is_always_saturated_is_counted() -> None:
    figure = plots.activation_histograms(saturated_model(), torch.tensor([[0], [0]]))
    assert titles(figure)[1:3] == ["outputs: 50% saturated", "1 of 2 units saturated for every context"]


@pytest.mark.parametrize("direct", [False, True])
def test_gradients_are_those_of_autograd(direct: bool) -> None:
    model = MLP(4, 2, 3, 5, direct=direct)
    contexts, targets = torch.randint(4, (20, 2)), torch.randint(4, (20,))
    figure = plots.gradient_histograms(model, contexts, targets, learning_rate=0.1)
    assert all(parameter.grad is None for parameter in model.parameters())
    model.loss(contexts, targets).backward()
    *panels, last = figure.axes
    points = {}
    for axes, (name, parameter) in zip(panels, model.named_parameters(), strict=True):
        assert axes.get_title().startswith(f"{name} ({' × '.join(map(str, parameter.shape))})\n")
        assert sum(bar.get_height() for bar in axes.patches) == parameter.numel()
        assert parameter.grad is not None
        assert axes.patches[0].get_x() == pytest.approx(parameter.grad.min().item(), rel=1e-5)
        if parameter.std() > 0:
            points[name] = 0.1 * (parameter.grad.std() / parameter.std()).item()
    line, guide = last.lines
    # Biases are 0 at the start, and have no ratio.
    assert list(line.get_ydata()) == list(points)
    assert list(line.get_xdata()) == pytest.approx(list(points.values()), rel=1e-4)
    assert guide.get_xdata()[0] == 1e-3
    assert last.get_title().startswith("update : parameter")


def test_histograms_refuse_what_they_cannot_show() -> None:
    model, contexts = saturated_model(), torch.zeros(0, 1, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"^contexts must have shape \(N, T\) with N >= 1, got \(0, 1\)$"):
        plots.activation_histograms(model, contexts)
    with pytest.raises(TypeError, match=r"^model must be MLP, got CountBigram$"):
        plots.activation_histograms(CountBigram(2), contexts)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^learning_rate must be a positive number or None, got 0\.0$"):
        plots.gradient_histograms(model, torch.zeros(1, 1).long(), torch.zeros(1).long(), learning_rate=0.0)
    with torch.no_grad():
        model.bias1.fill_(math.inf)
    with pytest.raises(ValueError, match="activations or gradients are not finite"):
        plots.activation_histograms(model, torch.zeros(1, 1).long())
