"""What goes on inside an MLP: its activations, how many of them are saturated, and its gradients."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from charlm import ops
from charlm._rules import check, check_type
from charlm.models import MLP
from charlm.ops import reference
from charlm.plots._drawing import BLUE, GREEN, GREY, ORANGE, VERMILION, new_figure, percent, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Beyond it the slope of tanh, 1 - h^2, is below 6 %: a unit that is there learns next to nothing.
SATURATED = 0.97
# Of plain gradient descent: where updates are about this share of what they update, the rate is about right.
_GOOD_RATIO = 1e-3
_BINS = 60


@torch.no_grad()
def activation_histograms(model: MLP, contexts: Tensor) -> Figure:
    """Histograms of a model's layers: pre-activations, tanh outputs h, the share of saturated ones by unit, and logits.

    A unit that is saturated, `|h| > 0.97`, for most contexts learns next to nothing, as the slope of tanh is 1 - h^2.

    Args:
        model: an MLP.
        contexts: (N, T) integers, of which its values are the histograms; a thousand are enough.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError: `model` is no MLP.
        ValueError: `contexts` has another shape, or is empty.

    Source: Karpathy, "Neural Networks: Zero to Hero", makemore part 3.
    """
    _check_model(model)
    _check_examples(contexts)
    logits = model(contexts)
    layer = ops if model.backend == "ops" else reference
    before = layer.embedding_linear(contexts, model.embedding, model.weight1, model.bias1, activation="none")
    before, logits = before.double().cpu(), logits.double().cpu()
    outputs = before.tanh()
    saturated = outputs.abs() > SATURATED
    by_unit = saturated.double().mean(dim=0).sort(descending=True).values
    examples, units = outputs.shape

    figure = new_figure(9.0, 6.0)
    figure.suptitle(f"Activations of {units:,} hidden units for {examples:,} contexts")
    first, second, third, fourth = figure.subplots(2, 2).flat
    _histogram(first, before, BLUE, f"pre-activations: {_moments(before)}", "W1 x + b1")
    _histogram(second, outputs, GREEN, f"outputs: {percent(saturated.double().mean().item())} saturated", "h = tanh(·)")
    second.set_xlim(-1.05, 1.05)
    for low, high in ((-1.05, -SATURATED), (SATURATED, 1.05)):
        second.axvspan(low, high, color=GREY, alpha=0.25, linewidth=0.0)
    second.text(0.5, 0.97, f"grey: |h| > {SATURATED}", transform=second.transAxes, ha="center", va="top", color=GREY)
    always = int((by_unit == 1.0).sum())
    third.fill_between(range(units), (100.0 * by_unit).tolist(), step="mid", color=VERMILION, alpha=0.6)
    third.set_title(f"{always:,} of {units:,} units saturated for every context", fontsize=10)
    third.set(
        xlabel="hidden units, the most saturated first",
        ylabel=f"contexts with |h| > {SATURATED} (%)",
        xlim=(-0.5, units - 0.5),
        ylim=(0.0, 100.0),
    )
    tidy(third)
    _histogram(fourth, logits, ORANGE, f"logits: {_moments(logits)}", "logit")
    return figure


def gradient_histograms(model: MLP, contexts: Tensor, targets: Tensor, *, learning_rate: float | None = None) -> Figure:
    """Histograms of the gradients of each parameter, and how large they are beside the parameter.

    The last panel has the standard deviation of each gradient over that of its parameter; with a learning rate, that
    of the update of plain gradient descent, which should be about 0.001. The model's own gradients stay as they are.

    Args:
        model: an MLP.
        contexts: (N, T) integers.
        targets: (N,) integers; the loss is the mean over these examples.
        learning_rate: what updates are gradients times; None shows the gradients themselves.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError: `model` is no MLP.
        ValueError: an argument has another shape, or is empty or out of range.

    Source: Karpathy, "Neural Networks: Zero to Hero", makemore parts 3 and 4.
    """
    _check_model(model)
    _check_examples(contexts)
    check("learning_rate", learning_rate, optional=True)
    parameters = dict(model.named_parameters())
    gradients = torch.autograd.grad(model.loss(contexts, targets), list(parameters.values()))

    figure = new_figure(10.0, 6.0)
    figure.suptitle(f"Gradients of the mean loss of {len(contexts):,} examples, by parameter")
    panels = list(figure.subplots(2, 4 if len(parameters) > 5 else 3).flat)
    ratios = {}
    for axes, (name, parameter), gradient in zip(panels, parameters.items(), gradients, strict=False):
        values, data = gradient.double().cpu(), parameter.detach().double().cpu()
        shape = " × ".join(map(str, parameter.shape))
        _histogram(axes, values, BLUE, f"{name} ({shape})\n{_moments(values)}", "gradient")
        if data.numel() > 1 and data.std() > 0 and values.std() > 0:
            ratios[name] = (values.std() / data.std()).item() * (learning_rate or 1.0)
    for axes in panels[len(parameters) : -1]:
        axes.remove()
    _ratio_chart(panels[-1], ratios, "gradient" if learning_rate is None else "update", learning_rate is not None)
    return figure


def _histogram(axes: Axes, values: Tensor, colour: str, title: str, label: str) -> None:
    if not values.isfinite().all():
        raise ValueError("the model's activations or gradients are not finite: was it trained to a finite loss?")
    # Few values in many bins would be a comb.
    axes.hist(values.flatten().numpy(), bins=min(_BINS, 4 + math.isqrt(values.numel())), color=colour)
    axes.set_title(title, fontsize=10)
    axes.set(xlabel=label, ylabel="number of values")
    axes.locator_params(axis="x", nbins=5)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    tidy(axes)


def _ratio_chart(axes: Axes, ratios: Mapping[str, float], what: str, has_rate: bool) -> None:
    """Points, as the length of a bar says nothing on a logarithmic axis."""
    axes.plot(list(ratios.values()), list(ratios), "o", color=VERMILION)
    for name, ratio in ratios.items():
        axes.annotate(
            f"{ratio:.1e}", (ratio, name), xytext=(0.0, 7.0), textcoords="offset points", ha="center", fontsize=9
        )
    axes.set_title(f"{what} : parameter, ratio of stds", fontsize=10)
    axes.set(xlabel="ratio", xscale="log")
    if ratios:
        # Whole decades, so that ticks are few.
        low, high = (math.log10(f(ratios.values())) for f in (min, max))
        axes.set_xlim(10.0 ** math.floor(low - 0.3), 10.0 ** math.ceil(high + 0.3))
    axes.minorticks_off()
    axes.margins(y=0.25)
    axes.invert_yaxis()
    axes.grid(alpha=0.3)
    if has_rate:
        axes.axvline(_GOOD_RATIO, color=GREY, linestyle="--")
    tidy(axes)


def _moments(values: Tensor) -> str:
    deviation = values.std().item() if values.numel() > 1 else 0.0
    return f"mean {values.mean().item():.2g}, std {deviation:.2g}"


def _check_model(model: object) -> None:
    check_type("model", model, MLP)


def _check_examples(contexts: Tensor) -> None:
    if contexts.dim() != 2 or len(contexts) == 0:
        raise ValueError(f"contexts must have shape (N, T) with N >= 1, got {tuple(contexts.shape)}")
