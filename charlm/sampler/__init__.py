"""Sampling text from a model: it is asked once for each context, and many texts are drawn from its answers at once.

Texts may be held to rules. Those that an automaton can watch, such as an ending, and lengths, go into the probabilities
that are drawn from, where the model's contexts are few enough; the others are kept by drawing again.
"""

from charlm.sampler._drawing import ATTEMPTS, Draw, TooFewTextsError
from charlm.sampler._options import SampleOptions
from charlm.sampler._sampling import ScoredText, sample, stream, stream_lines
from charlm.sampler._tables import probabilities

__all__ = [
    "ATTEMPTS",
    "Draw",
    "SampleOptions",
    "ScoredText",
    "TooFewTextsError",
    "probabilities",
    "sample",
    "stream",
    "stream_lines",
]
