"""Pictures of a run: its loss curve, the embeddings it learned, the bigram table it counted or learned.

They need matplotlib; it is imported when the first figure is drawn.
"""

from __future__ import annotations

import errno
import io
import math
import os
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from charlm import run_folder
from charlm.models import MLP, CountBigram, LanguageModel, NeuralBigram
from charlm.plots.histograms import activation_histograms, gradient_histograms
from charlm.vocabulary import Vocabulary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "activation_histograms",
    "check_picture",
    "count_map",
    "embedding_map",
    "figures",
    "gradient_histograms",
    "loss_curve",
    "probability_map",
    "save",
    "speed_chart",
]

# A heat map of a larger vocabulary has neither room for labels nor for numbers.
_LABELLED_CHARACTERS = 64
_DPI = 150


def figures(model: LanguageModel, vocabulary: Vocabulary, metrics: Iterable[Mapping[str, Any]]) -> dict[str, Figure]:
    """All figures that a run has, by name: "loss", and "embedding", "counts" or "probabilities", as the model is.

    Args:
        model, vocabulary: of the run.
        metrics: its records, as from `charlm.checkpoint.read_metrics`; without any there is no loss curve.

    Raises:
        ImportError: matplotlib is not installed.
    """
    records = list(metrics)
    drawn = {"loss": loss_curve(records)} if records else {}
    if isinstance(model, MLP):
        drawn["embedding"] = embedding_map(model.embedding, vocabulary)
    elif isinstance(model, CountBigram):
        drawn["counts"] = count_map(model.counts, vocabulary)
    elif isinstance(model, NeuralBigram):
        drawn["probabilities"] = probability_map(model.weight.detach().softmax(dim=1), vocabulary)
    return drawn


def save(drawn: Mapping[str, Figure], folder: str | os.PathLike[str]) -> list[Path]:
    """Writes each figure to `folder`/<name>.png, creating the folder; returns the paths."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.png" for name in drawn]
    with warnings.catch_warnings():
        # A character that the font lacks is drawn as a box.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        for path, figure in zip(paths, drawn.values(), strict=True):
            picture = io.BytesIO()
            figure.savefig(picture, dpi=_DPI, format="png")
            run_folder.replace(path, [picture.getvalue()])
    return paths


def loss_curve(records: Iterable[Mapping[str, Any]]) -> Figure:
    """Train and dev loss against the step; a loss that was not finite leaves a gap.

    Args:
        records: each with "step", and "loss" or "dev" or both.
    """
    records = list(records)
    figure = _figure(7.0, 4.5)
    axes = figure.add_subplot()
    for key, label, style in (("loss", "train (batches)", "-"), ("dev", "dev", "o-")):
        points = [(record["step"], record[key]) for record in records if key in record]
        if points:
            losses = [math.nan if loss is None else loss for _, loss in points]
            axes.plot([step for step, _ in points], losses, style, label=label, markersize=4)
    axes.set(xlabel="step", ylabel="loss (nats per character)")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def embedding_map(embedding: Tensor, vocabulary: Vocabulary) -> Figure:
    """The characters at the first two principal components of their embeddings (V, D); at the embedding itself if
    D is 2, and on a line if D is 1."""
    points, axis_names = _plane(embedding.detach().cpu().double())
    figure = _figure(6.5, 6.5)
    axes = figure.add_subplot()
    axes.scatter(points[:, 0].tolist(), points[:, 1].tolist(), s=260, alpha=0.35)
    for (x, y), label in zip(points.tolist(), _labels(vocabulary), strict=True):
        axes.text(x, y, label, ha="center", va="center", parse_math=False)
    axes.set(xlabel=axis_names[0], ylabel=axis_names[1])
    axes.grid(alpha=0.3)
    return figure


def count_map(counts: Tensor, vocabulary: Vocabulary) -> Figure:
    """How often each character (column) followed each other one (row): counts (V, V), on a logarithmic colour scale."""
    return _heat_map((counts.double() + 1.0).log10(), vocabulary, "log10(1 + count)", counts)


def probability_map(probabilities: Tensor, vocabulary: Vocabulary) -> Figure:
    """How probable each character (column) is after each other one (row): probabilities (V, V)."""
    return _heat_map(probabilities.double(), vocabulary, "probability", None)


def speed_chart(steps_per_second: Mapping[str, float], title: str) -> Figure:
    """Training steps a second of each backend, as bars."""
    figure = _figure(7.0, 1.2 + 0.45 * len(steps_per_second))
    axes = figure.add_subplot()
    bars = axes.barh(list(steps_per_second), list(steps_per_second.values()))
    axes.bar_label(
        bars, [f"{speed:,.0f}" if speed >= 1000.0 else f"{speed:.4g}" for speed in steps_per_second.values()], padding=3
    )
    axes.set(xlabel="steps per second", title=title)
    axes.margins(x=0.15)
    axes.invert_yaxis()
    return figure


def check_picture(path: str | os.PathLike[str]) -> None:
    """Says what keeps a figure from being written to a file, before it is drawn.

    Raises:
        ImportError: matplotlib is not installed.
        OSError: there is no such folder.
        ValueError: the ending is that of no format of pictures.
    """
    path = Path(path)
    formats = _figure(1.0, 1.0).canvas.get_supported_filetypes()
    if path.suffix.removeprefix(".").lower() not in formats:
        raise ValueError(f"{path} must end in one of {', '.join(f'.{name}' for name in sorted(formats))}")
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path.parent))


def _heat_map(values: Tensor, vocabulary: Vocabulary, title: str, numbers: Tensor | None) -> Figure:
    size = len(vocabulary)
    labelled = size <= _LABELLED_CHARACTERS
    inches = max(6.0, 0.42 * size) if labelled else 12.0
    figure = _figure(inches * 1.15, inches)
    axes = figure.add_subplot()
    image = axes.imshow(values.cpu().tolist(), cmap="Blues")
    figure.colorbar(image, label=title, shrink=0.8)
    axes.set(xlabel="next character", ylabel="character")
    if labelled:
        labels = _labels(vocabulary)
        axes.set_xticks(range(size), labels, parse_math=False)
        axes.set_yticks(range(size), labels, parse_math=False)
    if labelled and numbers is not None:
        middle = values.max().item() / 2
        for row, row_numbers in enumerate(numbers.tolist()):
            for column, number in enumerate(row_numbers):
                color = "white" if values[row, column] > middle else "black"
                axes.text(column, row, str(number), ha="center", va="center", fontsize=6, color=color)
    return figure


def _plane(points: Tensor) -> tuple[Tensor, tuple[str, str]]:
    """Points (V, D) in a plane (V, 2), and what its axes are."""
    if points.shape[1] == 1:
        return torch.cat([points, torch.zeros_like(points)], dim=1), ("embedding[0]", "")
    if points.shape[1] == 2:
        return points, ("embedding[0]", "embedding[1]")
    centred = points - points.mean(dim=0)
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    # A direction has no sign of its own: the largest component is made positive, so that a run has one picture.
    largest = directions.abs().argmax(dim=1, keepdim=True)
    directions = directions * directions.gather(1, largest).sign()
    return centred @ directions[:2].T, ("first principal component", "second principal component")


def _labels(vocabulary: Vocabulary) -> list[str]:
    """The characters, those that would not be seen as their escapes."""
    return [repr(c) if c.isspace() and c.isprintable() else repr(c)[1:-1] for c in vocabulary.characters]


def _figure(width: float, height: float) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib. Run: pip install matplotlib") from error
    return Figure(figsize=(width, height), layout="constrained")
