"""Into how many linear pieces a ReLU network can cut its input, and into how many one does: bounds, and counts.

A network of ReLU units is linear on each of finitely many regions. What L layers of n units can make of n0 inputs lies
between two bounds:

    Montufar, Pascanu, Cho and Bengio 2014    at least  floor(n / n0)^(n0 (L-1))       sum_{j <= n0} C(n, j)
    Serra, Tjandraatmadja, Ramalingam 2018    at least (floor(n / n0) + 1)^(n0 (L-1))  sum_{j <= n0} C(n, j), n >= 3 n0
    Zaslavsky 1975, layer by layer            at most  (sum_{j <= n0} C(n, j))^L

For one input the last two are the same, (n + 1)^L. `sawtooth` has that many pieces, and `pieces` finds them all.

    python examples/linear_regions.py [--inputs 1] [--units 10] [--layers 5]

Sources: arXiv:1402.1869; arXiv:1711.02114; Zaslavsky, "Facing up to arrangements", Memoirs of the AMS 154.
"""

import argparse
from fractions import Fraction
from itertools import pairwise
from math import comb, sqrt

import torch
from torch import Tensor

Network = list[tuple[Tensor, Tensor]]  # weight (n, n of the layer before) and bias (n,) of each layer, output last


def parameters(inputs: int, units: int, layers: int) -> int:
    """Weights and biases of `layers` layers of `units` units each, and of one output."""
    return (inputs + 1) * units + (layers - 1) * (units + 1) * units + units + 1


def arrangement(planes: int, dimension: int) -> int:
    """The most regions that n hyperplanes cut a space of so many dimensions into: sum_{j <= dimension} C(n, j)."""
    return sum(comb(planes, j) for j in range(dimension + 1))


def at_least(inputs: int, units: int, layers: int) -> int:
    """What Montufar et al. 2014 prove can be reached: every layer but the last folds each input floor(n / n0) times."""
    return (units // inputs) ** (inputs * (layers - 1)) * arrangement(units, inputs)


def at_least_tight(inputs: int, units: int, layers: int) -> int:
    """What Serra et al. 2018 prove can be reached: one unit looks the other way, and a fold has one piece more."""
    if units < 3 * inputs:
        raise ValueError(f"units must be at least 3 for each of the {inputs} inputs, got {units}")
    return (units // inputs + 1) ** (inputs * (layers - 1)) * arrangement(units, inputs)


def at_most(inputs: int, units: int, layers: int) -> int:
    """The hyperplanes of a layer cut each region of the layers before, which has at most `inputs` dimensions."""
    return arrangement(units, inputs) ** layers


def fold(units: int) -> tuple[list[int], list[Fraction], list[Fraction], int]:
    """One layer that folds [0, 1] into n + 1 pieces, each of them onto all of [0, 1].

    Returns:
        signs s, thresholds t, factors c and a constant a, with f(x) = a + sum_i c_i relu(s_i (x - t_i)): up on the
        first piece, which has half the width of the others, down on the second, and so on.
    """
    if units < 3:
        raise ValueError(f"units must be at least 3, got {units}")
    # The third unit looks to the left: its slope is what the first piece rises with.
    signs = [-1 if i == 2 else 1 for i in range(units)]
    thresholds = [Fraction(2 * i + 1, 2 * units + 1) for i in range(units)]
    slope = Fraction(2 * units + 1, 2)
    factors = [(-1) ** (i + 1) * slope * (3 if i == 0 else 2) for i in range(units)]
    return signs, thresholds, factors, 5


def sawtooth(units: int, layers: int) -> Network:
    """A network of one input whose output goes up and down (n + 1)^L times between 0 and 1: `fold` of itself, L times.

    A layer reads the fold before it, a + sum_j c_j h_j, so that its weights are s_i c_j and its biases s_i (a - t_i).
    """
    signs, thresholds, factors, constant = fold(units)
    s, t, c = (torch.tensor([float(x) for x in values], dtype=torch.float64) for values in (signs, thresholds, factors))
    first, middle = (s[:, None], -s * t), (s[:, None] * c, s * (constant - t))
    output = (c[None, :], torch.tensor([constant], dtype=torch.float64))
    return [first, *[middle] * (layers - 1), output]


def random_network(units: int, layers: int, generator: torch.Generator) -> Network:
    """The same shape at random, as training starts: weights N(0, 2 / fan-in), biases N(0, 1)."""
    widths = [1, *[units] * layers, 1]
    return [
        (
            torch.randn(after, before, dtype=torch.float64, generator=generator) * sqrt(2.0 / before),
            torch.randn(after, dtype=torch.float64, generator=generator),
        )
        for before, after in pairwise(widths)
    ]


def pieces(network: Network, low: float, high: float) -> Tensor:
    """Where the linear pieces of a network of one input and one output begin and end in [low, high]: (R + 1,), float64.

    Between two ends all units are linear, so that their values there say where one crosses 0: there is a new end.
    """
    ends = torch.tensor([low, high], dtype=torch.float64)
    values = ends[:, None]
    *hidden, (output_weight, output_bias) = network
    for weight, bias in hidden:
        values = values @ weight.T + bias
        piece, unit = (values[:-1] * values[1:] < 0).nonzero(as_tuple=True)
        left, right = values[piece, unit], values[piece + 1, unit]
        part = left / (left - right)
        crossings = ends[piece].lerp(ends[piece + 1], part)
        at_crossings = values[piece].lerp(values[piece + 1], part[:, None])
        at_crossings[torch.arange(len(unit)), unit] = 0.0
        order = torch.cat((ends, crossings)).argsort()
        ends = torch.cat((ends, crossings))[order]
        values = torch.cat((values, at_crossings))[order].relu()
    slopes = (values @ output_weight.T + output_bias)[:, 0].diff() / ends.diff()
    changes = slopes.diff().abs() > 1e-9 * slopes.abs().max()
    return torch.cat((ends[:1], ends[1:-1][changes], ends[-1:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=1)
    parser.add_argument("--units", type=int, default=10)
    parser.add_argument("--layers", type=int, default=5)
    shape = parser.parse_args()
    sizes = (shape.inputs, shape.units, shape.layers)

    print(f"inputs {shape.inputs}  units {shape.units}  layers {shape.layers}  parameters {parameters(*sizes)}")
    print(f"regions, at least {at_least(*sizes):.6g}  at least, tight {at_least_tight(*sizes):.6g}")
    print(f"regions, at most {at_most(*sizes):.6g}")
    if shape.inputs == 1:
        print(f"pieces of the sawtooth {len(pieces(sawtooth(shape.units, shape.layers), -1.0, 2.0)) - 1}")
        generator = torch.Generator().manual_seed(0)
        networks = [random_network(shape.units, shape.layers, generator) for _ in range(10)]
        counts = [len(pieces(network, -10.0, 10.0)) - 1 for network in networks]
        print(f"pieces at random, fewest {min(counts)}  most {max(counts)}")


if __name__ == "__main__":
    main()
