"""What a model expects after a given beginning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from charlm._rules import check, check_type
from charlm.models import LanguageModel
from charlm.plots._drawing import BLUE, GREY, new_figure, percent, tidy
from charlm.plots._labels import fonts, labels, unit, visible
from charlm.sampler import probabilities
from charlm.vocabulary import Vocabulary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Bars in a chart: of larger vocabularies the most probable ones.
MOST_SHOWN = 40
# A chart for each of them has to fit into a picture.
_MOST_CONTEXTS = 50


def next_character(
    model: LanguageModel,
    vocabulary: Vocabulary,
    after: str | Sequence[str],
    *,
    temperature: float = 1.0,
    order: str = "probability",
) -> Figure:
    """The distribution p(next token | context) as bars, a chart for each context.

    Args:
        model: any language model with the vocabulary's size.
        vocabulary: of the model.
        after: a text, or several: how a line begins. A short one has boundaries before it, as at the start of a line;
            of a long one the model reads the end.
        temperature: the logits are divided by it, t >= 0; 0 is all for the most probable token.
        order: of the bars: "probability", the largest first, or "vocabulary", as tokens are numbered: by alphabet.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError: an argument has another type.
        ValueError: there is no text, or there are more than 50; one has a token that is not in the vocabulary; another
            argument is out of range; or the model has logits that are not finite.
    """
    check_type("model", model, LanguageModel)
    check_type("after", after, str, Sequence)
    check("temperature", temperature)
    check("order", order)
    texts = [after] if isinstance(after, str) else list(after)
    if not 0 < len(texts) <= _MOST_CONTEXTS:
        raise ValueError(f"after must be 1 to {_MOST_CONTEXTS} texts, got {len(texts):,}")
    contexts = torch.stack([_context(model, vocabulary, text) for text in texts])
    with torch.no_grad():
        logits = model(contexts.to(model.device))
    names = labels(vocabulary)
    names[vocabulary.boundary] += "\nend"
    return _bars(probabilities(logits, temperature, None), texts, names, model, vocabulary, temperature, order)


def check_after(vocabulary: Vocabulary, text: str) -> None:
    """ValueError where a text has a token that is not in the vocabulary."""
    try:
        vocabulary.encode(text)
    except ValueError as error:
        raise ValueError(f"after: {error}") from None


def _bars(
    shares: Tensor,
    texts: Sequence[str],
    names: Sequence[str],
    model: LanguageModel,
    vocabulary: Vocabulary,
    temperature: float,
    order: str,
) -> Figure:
    """A chart for each row of `shares` (N, V)."""
    n = min(MOST_SHOWN, len(names))
    figure = new_figure(max(5.0, 1.5 + 0.3 * n), 0.8 + 2.2 * len(texts))
    title = f"Distribution of the next {unit(vocabulary)}"
    figure.suptitle(title if temperature == 1.0 else f"{title}, temperature {temperature:g}")
    highest = 100.0 * shares.max().item()
    charts = figure.subplots(len(texts), 1, sharey=True, squeeze=False)[:, 0]
    for axes, text, row in zip(charts, texts, shares, strict=True):
        tokens = row.argsort(descending=True, stable=True)[:n]
        if order == "vocabulary":
            tokens = tokens.sort().values
        heights = row[tokens].tolist()
        bars = axes.bar(range(n), [100.0 * height for height in heights], color=BLUE, width=0.75)
        bars[heights.index(max(heights))].set_edgecolor("black")
        axes.bar_label(bars, [percent(height) for height in heights], fontsize=7, color=GREY, padding=1)
        shown = [names[token] for token in tokens.tolist()]
        style: dict[str, Any] = {"parse_math": False, "fontfamily": fonts([*shown, visible(text)])}
        axes.set_xticks(range(n), shown, **style)
        if max(len(name.split("\n")[0]) for name in shown) > 2:
            axes.tick_params(axis="x", rotation=90)
        axes.tick_params(axis="x", length=0)
        axes.set(xlim=(-0.6, n - 0.4), ylim=(0.0, 1.15 * highest), ylabel="probability (%)")
        heading = _heading(text, model, vocabulary)
        if n < len(names):
            heading += f": the {n} most probable of {len(names):,}, {percent(sum(heights))} together"
        axes.set_title(heading, loc="left", fontsize=10, **style)
        tidy(axes)
    return figure


def _context(model: LanguageModel, vocabulary: Vocabulary, text: str) -> Tensor:
    """The last T tokens (T,) of a text that boundaries come before."""
    check_type("after", text, str)
    check_after(vocabulary, text)
    tokens = vocabulary.encode(text).int()
    padding = tokens.new_full((model.context_length,), vocabulary.boundary)
    return torch.cat([padding, tokens])[len(tokens) :]


def _heading(text: str, model: LanguageModel, vocabulary: Vocabulary) -> str:
    read = len(vocabulary.encode(text))
    if read == 0:
        return "at the beginning"
    if read <= model.context_length:
        return f"after “{visible(text)}”"
    tokens = vocabulary.encode(text)[read - model.context_length :]
    return f"after “{visible(text)}”, of which the model reads “{visible(vocabulary.decode(tokens))}”"
