"""The figures of a run, by name."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from charlm.models import MLP, CountBigram, LanguageModel, NeuralBigram
from charlm.plots._labels import unit
from charlm.plots.curves import loss_curve
from charlm.plots.distribution import next_character
from charlm.plots.embedding import MOST_LABELLED, embedding_map
from charlm.plots.heat_maps import count_map, probability_map
from charlm.plots.histograms import activation_histograms, gradient_histograms
from charlm.sampler import probabilities
from charlm.splits import Split
from charlm.vocabulary import Vocabulary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Examples whose activations and gradients are shown, spread evenly over the split.
_EXAMPLES = 1000
# Texts that say which tokens are frequent, and their length.
_TEXTS, _LENGTH = 256, 64


def names(model: LanguageModel) -> tuple[str, ...]:
    """The figures that a model has; some of them need arguments of `figures`."""
    if isinstance(model, MLP):
        return ("loss", "embedding", "activations", "gradients", "next")
    if isinstance(model, CountBigram):
        return ("counts", "next")
    return ("loss", "probabilities", "next") if isinstance(model, NeuralBigram) else ("loss", "next")


def figures(
    model: LanguageModel,
    vocabulary: Vocabulary,
    metrics: Iterable[Mapping[str, Any]],
    *,
    only: Collection[str] | None = None,
    split: Split | None = None,
    after: Sequence[str] = (),
    temperature: float = 1.0,
    order: str = "probability",
    log_steps: bool = False,
) -> dict[str, Figure]:
    """The figures of a run by name: of an MLP "loss", "embedding", "activations" and "gradients", of a neural bigram
    "loss" and "probabilities", of a count bigram "counts"; and of each of them "next".

    Args:
        model, vocabulary: of the run.
        metrics: its records, as from `charlm.checkpoint.read_metrics`; without any there is no loss curve.
        only: names of figures, and nothing else is drawn; None is all of them.
        split: examples, which "activations" and "gradients" need.
        after: texts, which "next" needs.
        temperature, order: as in `next_character`.
        log_steps: as in `loss_curve`.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: a name in `only` is none, or what it needs is missing; or an argument of a figure is out of range.
    """
    records = list(metrics)
    makers: dict[str, Callable[[], Figure]] = {}
    if records:
        makers["loss"] = lambda: loss_curve(records, unit=unit(vocabulary), log_steps=log_steps)
    if isinstance(model, MLP):
        makers["embedding"] = lambda: embedding_map(
            model.embedding, vocabulary, frequencies=_frequencies(model, vocabulary)
        )
        if split is not None:
            contexts, targets = _some_examples(split, model)
            makers["activations"] = lambda: activation_histograms(model, contexts)
            makers["gradients"] = lambda: gradient_histograms(model, contexts, targets)
    elif isinstance(model, CountBigram):
        makers["counts"] = lambda: count_map(model.counts, vocabulary)
    elif isinstance(model, NeuralBigram):
        makers["probabilities"] = lambda: probability_map(model.weight.detach().softmax(dim=1), vocabulary)
    if after:
        makers["next"] = lambda: next_character(model, vocabulary, after, temperature=temperature, order=order)
    for name in () if only is None else only:
        if name not in makers:
            raise ValueError(_why_not(name, model))
    return {name: make() for name, make in makers.items() if only is None or name in only}


def _why_not(name: str, model: LanguageModel) -> str:
    """Why there is no such figure."""
    if name not in names(model):
        return f"only must be among {', '.join(names(model))} for a {model.kind}, got {name!r}"
    needs = {"loss": "records of training, which this run does not have", "next": "after, a text"}
    return f"only={name!r} needs {needs.get(name, 'a split, whose examples it shows')}"


def _some_examples(split: Split, model: LanguageModel) -> tuple[Tensor, Tensor]:
    """Contexts (N, T) and targets (N,), on the device of the model."""
    indices = torch.linspace(0, len(split) - 1, min(_EXAMPLES, len(split)), dtype=torch.float64, device="cpu").long()
    contexts, targets = split.batch(indices)
    return contexts.to(model.device), targets.to(model.device)


@torch.no_grad()
def _frequencies(model: LanguageModel, vocabulary: Vocabulary) -> Tensor | None:
    """How often each token (V,) comes in texts of the model, if not all get labels: the data may be gone."""
    if len(vocabulary) <= MOST_LABELLED:
        return None
    counts = torch.zeros(len(vocabulary), dtype=torch.int64, device="cpu")
    start = torch.full((_TEXTS, model.context_length), vocabulary.boundary, device="cpu")
    contexts = start
    generator = torch.Generator().manual_seed(0)
    for _ in range(_LENGTH):
        shares = probabilities(model(contexts.to(model.device)), 1.0, None)
        tokens = torch.multinomial(shares, 1, generator=generator)
        counts += torch.bincount(tokens.flatten(), minlength=len(counts))
        contexts = torch.cat([contexts[:, 1:], tokens], dim=1).where(tokens != vocabulary.boundary, start)
    return counts
