"""Successive halving: after a share of the steps only the best models go on, and after more steps the best of these.

Source: Jamieson and Talwalkar 2016, "Non-stochastic Best Arm Identification and Hyperparameter Optimization", AISTATS.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple


class Rung(NamedTuple):
    """A step after which models are stopped, and how many go on at most."""

    step: int
    keep: int


def rungs(models: int, steps: int, eta: int, *, after: int = 0) -> tuple[Rung, ...]:
    """The rungs of n models: at the steps `steps` / eta^k, k = K .. 1, rounded up, the j-th of which keeps n / eta^j.

    There are as many as leave a model at the last one.

    Args:
        models: n.
        steps: of a model that is trained to its end.
        eta: at least 2.
        after: rungs are after this step, such as the end of the warm-up, before which losses say little.
    """
    most = 0
    while eta ** (most + 1) <= models:
        most += 1
    candidates = {-(-steps // eta**k) for k in range(1, most + 1)}
    found = sorted(step for step in candidates if after < step < steps)
    return tuple(Rung(step, max(1, models // eta**j)) for j, step in enumerate(found, 1))


def best(losses: Mapping[int, float], keep: int) -> set[int]:
    """The `keep` models with the lowest losses, the first ones of equals; none whose loss is not finite."""
    finite = [model for model in losses if math.isfinite(losses[model])]
    return set(sorted(finite, key=lambda model: (losses[model], model))[:keep])
