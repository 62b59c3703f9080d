"""Models so small that all their texts can be written down, with the probability of each."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable

import torch

from charlm import MLP, CountBigram, NeuralBigram, Vocabulary
from charlm.models import LanguageModel

VOCABULARY = Vocabulary("abc")
KINDS = ("count-bigram", "bigram", "mlp")


@functools.cache
def make(kind: str) -> LanguageModel:
    """A model of the tokens of VOCABULARY, whose probabilities differ; to be left as it is."""
    generator = torch.Generator().manual_seed(2)
    if kind == "mlp":
        model = MLP(4, 2, 3, 8, backend="eager", generator=generator)
        with torch.no_grad():
            model.weight2.mul_(30)
        return model.double()
    if kind == "bigram":
        neural = NeuralBigram(4, backend="eager")
        with torch.no_grad():
            neural.weight.normal_(generator=generator)
        return neural
    counted = CountBigram(4)
    counted.counts.copy_(torch.tensor([[0, 3, 2, 4], [2, 1, 5, 0], [4, 2, 1, 3], [1, 3, 0, 2]]))
    return counted


def log_prob(model: LanguageModel, text: str, *, ended: bool = True) -> float:
    """The log-probability of a text in plain Python, character by character."""
    tokens = [VOCABULARY.characters.index(character) for character in text]
    total, context = 0.0, (VOCABULARY.boundary,) * model.context_length
    for token in [*tokens, VOCABULARY.boundary] if ended else tokens:
        total += _log_probs(model, context)[token]
        context = (*context[1:], token)
    return total


@functools.cache
def _log_probs(model: LanguageModel, context: tuple[int, ...]) -> list[float]:
    with torch.no_grad():
        logits = [float(logit) for logit in model(torch.tensor(context))]
    highest = max(logits)
    normaliser = highest + math.log(math.fsum(math.exp(logit - highest) for logit in logits))
    return [logit - normaliser for logit in logits]


def texts(longest: int) -> list[str]:
    """All texts of at most so many characters."""
    letters = [character for character in VOCABULARY.characters if character != "."]
    return ["".join(some) for length in range(longest + 1) for some in itertools.product(letters, repeat=length)]


def conditional(
    model: LanguageModel, longest: int, is_wanted: Callable[[str], bool], beginning: str = ""
) -> tuple[dict[str, float], float]:
    """The probability of each wanted text given that a text is one and begins so, and that of the condition, given how
    it begins.
    """
    joint = {
        text: math.exp(log_prob(model, text))
        for text in texts(longest)
        if text.startswith(beginning) and is_wanted(text)
    }
    total = math.fsum(joint.values())
    given = math.exp(log_prob(model, beginning, ended=False))
    return {text: probability / total for text, probability in joint.items()}, total / given


def assert_drawn_from(drawn: list[str], expected: dict[str, float]) -> None:
    """Pearson's chi-squared against exact probabilities; the limit is six standard deviations of a good draw.

    Texts of which fewer than one is expected count as one.
    """
    observed: dict[str, float] = dict.fromkeys(expected, 0.0)
    for text in drawn:
        assert expected.get(text, 0.0) > 0.0, text
        observed[text] += 1
    cells: list[tuple[float, float]] = []
    rest_observed = rest_expected = 0.0
    for text, probability in expected.items():
        if probability * len(drawn) < 1.0:
            rest_observed += observed[text]
            rest_expected += probability * len(drawn)
        else:
            cells.append((observed[text], probability * len(drawn)))
    if rest_expected > 0.0:
        cells.append((rest_observed, rest_expected))
    statistic = math.fsum((found - mean) ** 2 / mean for found, mean in cells)
    degrees = len(cells) - 1
    assert statistic < degrees + 6 * math.sqrt(2 * degrees) + 1e-9
