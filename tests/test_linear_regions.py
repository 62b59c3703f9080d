"""The regions of examples/linear_regions.py: bounds against what is counted otherwise, and networks that have them."""

from __future__ import annotations

import runpy
import sys
from fractions import Fraction
from itertools import pairwise
from math import pi
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

EXAMPLE = Path(__file__).parents[1] / "examples" / "linear_regions.py"
regions = SimpleNamespace(**runpy.run_path(str(EXAMPLE)))


def test_the_figures_of_one_input() -> None:
    """5 layers of 10 units: 471 parameters, and 11^5 regions, which are the most there can be."""
    sizes = (1, 10, 5)
    assert regions.parameters(*sizes) == 471
    assert regions.at_least(*sizes) == 110_000
    assert regions.at_least_tight(*sizes) == regions.at_most(*sizes) == 11**5 == 161_051


def test_the_figures_of_ten_inputs() -> None:
    """5 layers of 50 units: 10,801 parameters, and more than 10^40 regions; the bound of 2014 is just below."""
    sizes = (10, 50, 5)
    assert regions.parameters(*sizes) == 10_801
    assert regions.arrangement(50, 10) == 13_432_735_556
    assert regions.at_least(*sizes) == 5**40 * 13_432_735_556
    assert 10**38 < regions.at_least(*sizes) < 10**40 < regions.at_least_tight(*sizes)
    assert regions.at_least_tight(*sizes) == 6**40 * 13_432_735_556 < regions.at_most(*sizes) < 10**51


@pytest.mark.parametrize(("units", "layers"), [(10, 5), (3, 1), (50, 2)])
def test_parameters_are_those_of_a_network(units: int, layers: int) -> None:
    network = regions.sawtooth(units, layers)
    assert sum(tensor.numel() for layer in network for tensor in layer) == regions.parameters(1, units, layers)


def test_a_network_of_471_parameters_has_161051_pieces() -> None:
    ends = regions.pieces(regions.sawtooth(10, 5), -1.0, 2.0)
    assert len(ends) - 1 == 161_051
    assert bool((ends.diff() > 0.0).all())
    inside = ends[1:-1]
    assert float(inside[0]) == pytest.approx(21.0**-5)
    # Up and down between 0 and 1, at every end.
    heights = output(regions.sawtooth(10, 5), inside[:, None])[:, 0]
    expected = (torch.arange(len(inside)) % 2 == 0).double()
    torch.testing.assert_close(heights, expected, rtol=0.0, atol=1e-6)


@pytest.mark.parametrize(("units", "layers"), [(3, 1), (3, 4), (4, 3), (7, 2)])
def test_the_pieces_are_those_of_exact_arithmetic(units: int, layers: int) -> None:
    expected = exact_ends(units, layers)
    assert len(expected) + 1 == (units + 1) ** layers == regions.at_most(1, units, layers)
    ends = regions.pieces(regions.sawtooth(units, layers), -1.0, 2.0)
    exact = torch.tensor([-1.0, *map(float, expected), 2.0], dtype=torch.float64)
    torch.testing.assert_close(ends, exact, rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_a_network_at_random_is_linear_between_its_ends_and_has_few(seed: int) -> None:
    network = regions.random_network(10, 5, torch.Generator().manual_seed(seed))
    ends = regions.pieces(network, -10.0, 10.0)
    assert 10 < len(ends) - 1 < 200
    thirds = torch.stack([ends[:-1].lerp(ends[1:], part / 3.0) for part in range(4)])
    heights = output(network, thirds.flatten()[:, None]).view(4, -1)
    bends = heights.diff(n=2, dim=0).abs().max()
    assert float(bends) < 1e-9 * float(heights.abs().max())
    # The ends are all there are: no unit changes between two of them, except where that leaves the output as it was.
    slopes = heights.diff(dim=0).mean(0) / thirds.diff(dim=0).mean(0)
    assert bool((slopes.diff().abs() > 0.0).all())


@pytest.mark.parametrize("planes", range(1, 7))
def test_lines_in_the_plane_make_as_many_regions_as_zaslavsky_says(planes: int) -> None:
    angles = pi * torch.arange(planes, dtype=torch.float64) / planes
    normals = torch.stack([angles.cos(), angles.sin()], dim=1)
    points = grid(400, -1.0, 1.0)
    patterns = (points @ normals.T > 0.1).long() @ (2 ** torch.arange(planes))
    assert len(patterns.unique()) == regions.arrangement(planes, 2)


def test_folds_of_two_inputs_reach_the_tight_bound() -> None:
    """Each of (3 + 1)^2 cells of the folded plane holds all regions of the last layer's lines: 16 times 22."""
    signs, thresholds, factors, constant = regions.fold(3)
    s, t, c = (torch.tensor([float(x) for x in values], dtype=torch.float64) for values in (signs, thresholds, factors))
    points = grid(1000, 0.0, 1.0)
    before = s * (points[:, :, None] - t)  # (points, 2 inputs, 3 units)
    folded = constant + before.relu() @ c
    angles = pi * torch.arange(6, dtype=torch.float64) / 6
    normals = torch.stack([angles.cos(), angles.sin()], dim=1)
    lines = (folded - 0.5) @ normals.T > 0.1
    patterns = torch.cat([before.flatten(1) > 0, lines], dim=1).long() @ (2 ** torch.arange(12))
    assert len(patterns.unique()) == 352 == regions.at_least_tight(2, 6, 2)
    assert regions.at_least(2, 6, 2) == 198
    assert regions.at_most(2, 6, 2) == 22**2


def test_too_few_units() -> None:
    with pytest.raises(ValueError, match=r"^units must be at least 3, got 2$"):
        regions.fold(2)
    with pytest.raises(ValueError, match=r"^units must be at least 3 for each of the 2 inputs, got 5$"):
        regions.at_least_tight(2, 5, 3)


def test_what_the_example_prints(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["linear_regions"])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    *lines, at_random = capsys.readouterr().out.splitlines()
    assert lines == [
        "inputs 1  units 10  layers 5  parameters 471",
        "regions, at least 110000  at least, tight 161051",
        "regions, at most 161051",
        "pieces of the sawtooth 161051",
    ]
    assert at_random.startswith("pieces at random, fewest ")


def output(network: list[tuple[Tensor, Tensor]], x: Tensor) -> Tensor:
    """The network itself: (N, 1) to (N, 1)."""
    *hidden, (weight, bias) = network
    for hidden_weight, hidden_bias in hidden:
        x = torch.relu(x @ hidden_weight.T + hidden_bias)
    return x @ weight.T + bias


def exact_ends(units: int, layers: int) -> list[Fraction]:
    """Where the sawtooth turns, in fractions: its first fold turns at the thresholds, and wherever a later fold turns
    is what the one before it takes there, on each of its pieces."""
    _, thresholds, _, _ = regions.fold(units)
    edges = [Fraction(0), *thresholds, Fraction(1)]
    turns = list(thresholds)
    for _ in range(layers - 1):
        inside = []
        for piece, (left, right) in enumerate(pairwise(edges)):
            rising = piece % 2 == 0
            parts = turns if rising else [1 - turn for turn in reversed(turns)]
            inside += [left + part * (right - left) for part in parts]
        turns = sorted([*thresholds, *inside])
    return turns


def grid(size: int, low: float, high: float) -> Tensor:
    """The centres of size x size squares of a square: (size^2, 2)."""
    line = low + (high - low) * (torch.arange(size, dtype=torch.float64) + 0.5) / size
    return torch.cartesian_prod(line, line)
