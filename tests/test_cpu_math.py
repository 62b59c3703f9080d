"""exp, log, tanh and erf of the CPU's kernels, on each instruction set of this machine: math.h has the bounds."""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import cpu_library
import mpmath
import pytest
import torch
from torch import Tensor

SMALLEST_NORMAL = torch.finfo(torch.float32).tiny
INFINITY, NAN = math.inf, math.nan


@dataclass(frozen=True)
class Function:
    """A function of math.h on floats: what it is to give, where, and how far off it may be there."""

    truth: Callable[[Tensor], Tensor]
    low: float
    high: float
    ulp: float


FUNCTIONS = {
    "exp_in_range": Function(torch.exp, -87.0, 88.0, 1.1),
    "exp": Function(torch.exp, -87.33654, 88.37626, 1.1),
    "log": Function(torch.log, SMALLEST_NORMAL, torch.finfo(torch.float32).max, 0.9),
    "tanh": Function(torch.tanh, -20.0, 20.0, 6.5),
    "erf": Function(torch.erf, -20.0, 20.0, 8.0),
}


libraries = functools.partial(cpu_library.libraries, "cpu_math.cpp")


def evaluate(library: ctypes.CDLL, name: str, *arguments: Tensor) -> Tensor:
    """The function of that name, element by element; whole vectors are what it takes."""
    size = arguments[0].numel()
    padded = [torch.cat([values, values.new_ones(-size % 16)]) for values in arguments]
    result = torch.empty_like(padded[0])
    pointers = [ctypes.c_void_p(values.data_ptr()) for values in (*padded, result)]
    dtype = str(result.dtype).replace("torch.float32", "float").replace("torch.float64", "double")
    getattr(library, f"{name}_{dtype}")(*pointers, ctypes.c_int64(result.numel()))
    return result[:size]


def from_bits(bits: Tensor) -> Tensor:
    return bits.to(torch.int32).view(torch.float32)


def between(low: float, high: float) -> Tensor:
    """Floats of both ends and, between them, of every size: each 4,001st of all that there are, and an even grid."""
    values = torch.cat([from_bits(torch.arange(-(2**31), 2**31, 4001)), torch.linspace(low, high, 2**18)])
    ends = torch.tensor([low, high])
    return torch.cat([values[(values >= ends[0]) & (values <= ends[1])], ends])


def units_off(result: Tensor, truth: Tensor) -> float:
    """The largest error of floats, in units of the last place of what they should be, which is in float64."""
    exponent = torch.frexp(truth).exponent.clamp(min=-125)
    error = (result.double() - truth).abs() / torch.ldexp(torch.ones_like(truth), exponent - 24)
    return error.masked_fill(result.double() == truth, 0).max().item()


def same(result: Tensor, expected: list[float]) -> bool:
    """Whether these are the numbers, a zero that of its sign; NaN is NaN."""
    truth = torch.tensor(expected, dtype=result.dtype)
    return torch.equal(result.isnan(), truth.isnan()) and torch.equal(
        result[~truth.isnan()].view(torch.uint8), truth[~truth.isnan()].view(torch.uint8)
    )


def test_the_flags_are_those_of_the_build() -> None:
    build = (cpu_library.ROOT / "setup.py").read_text()
    for flag in cpu_library.KERNEL_FLAGS:
        assert f'"{flag}"' in build


@pytest.mark.parametrize("name", FUNCTIONS)
def test_floats_are_within_the_stated_bound(name: str) -> None:
    function = FUNCTIONS[name]
    x = between(function.low, function.high)
    truth = function.truth(x.double())
    for instruction_set, library in libraries().items():
        assert units_off(evaluate(library, name, x), truth) <= function.ulp, instruction_set


def test_division_is_within_the_stated_bound() -> None:
    mantissas = from_bits(torch.arange(0x3F800000, 0x40000000, 7))
    exponents = torch.arange(mantissas.numel()) % 253 - 126
    b = torch.ldexp(mantissas, exponents).clamp(max=2.0**126) * (1 - 2 * (torch.arange(mantissas.numel()) % 2))
    a = torch.ldexp(1 + torch.rand(mantissas.numel()), exponents.clamp(-100, 100))
    for instruction_set, library in libraries().items():
        assert units_off(evaluate(library, "divide", a, b), a.double() / b.double()) <= 2.5, instruction_set


@pytest.mark.parametrize("name", ["exp", "log", "tanh", "erf"])
def test_doubles_are_within_two_units(name: str) -> None:
    """They are the C library's, which has bounds of its own."""
    sizes = torch.logspace(-300, 2.8, 500, dtype=torch.float64)
    x = torch.cat([torch.linspace(-20, 20, 999, dtype=torch.float64), sizes, -sizes])
    x = x[x > 0] if name == "log" else x
    with mpmath.workprec(120):
        truths = [getattr(mpmath, name)(mpmath.mpf(value)) for value in x.tolist()]
        for instruction_set, library in libraries().items():
            for value, truth in zip(evaluate(library, name, x).tolist(), truths, strict=True):
                assert abs(value - truth) <= 2 * math.ulp(float(truth)), instruction_set


# The floats on both sides of where exp has another rule.
UNDERFLOW, OVERFLOW = torch.tensor(-87.33654), torch.tensor(88.37626)
EDGES = {
    "exp": [
        (0.0, 1.0),
        (-0.0, 1.0),
        (1e-45, 1.0),
        (torch.nextafter(UNDERFLOW, torch.tensor(-INFINITY)).item(), 0.0),
        (-104.0, 0.0),
        (-INFINITY, 0.0),
        (torch.nextafter(OVERFLOW, torch.tensor(INFINITY)).item(), INFINITY),
        (1e38, INFINITY),
        (INFINITY, INFINITY),
    ],
    "exp_in_range": [(0.0, 1.0), (-0.0, 1.0), (1e-45, 1.0)],
    "log": [
        (0.0, -INFINITY),
        (-0.0, -INFINITY),
        (1e-45, -INFINITY),
        (1.0, 0.0),
        (INFINITY, INFINITY),
    ],
    "tanh": [(x, math.copysign(1.0, x)) for x in (8.000001, 1e38, INFINITY, -8.000001, -1e38, -INFINITY)],
    "erf": [(x, math.copysign(1.0, x)) for x in (3.8325071, 1e38, INFINITY, -3.8325071, -1e38, -INFINITY)],
}


@pytest.mark.parametrize("name", EDGES)
def test_edges(name: str) -> None:
    arguments, results = zip(*EDGES[name], strict=True)
    for instruction_set, library in libraries().items():
        assert same(evaluate(library, name, torch.tensor(arguments)), list(results)), instruction_set


@pytest.mark.parametrize("name", ["tanh", "erf"])
def test_zeros_keep_their_sign_and_small_numbers_their_digits(name: str) -> None:
    x = torch.tensor([0.0, -0.0, 1e-45, -1e-45, SMALLEST_NORMAL, -SMALLEST_NORMAL])
    truth = FUNCTIONS[name].truth(x.double())
    for instruction_set, library in libraries().items():
        result = evaluate(library, name, x)
        assert same(result[:2], [0.0, -0.0]), instruction_set
        assert units_off(result, truth) <= FUNCTIONS[name].ulp, instruction_set


def test_saturation_is_nowhere_passed() -> None:
    """1 - tanh^2 is the derivative of tanh: beside the limits it is as small as it should be, and no less than 0."""
    x = torch.linspace(7.5, 8.5, 2**16)
    for instruction_set, library in libraries().items():
        result = evaluate(library, "tanh", torch.cat([x, -x]))
        assert (1 - result * result).min() >= 0, instruction_set


@pytest.mark.parametrize("name", ["exp", "log", "tanh", "erf"])
def test_every_nan_stays_nan(name: str) -> None:
    """Whatever its other bits, which some programs use to say what is missing."""
    bits = torch.tensor([0x7FC00000, 0x7FC00001, 0x7FC001FF, 0x7F800001, 0x7FFFFFFF, -1, -0x400000, -0x3FFEAB])
    doubles = torch.tensor([0x7FF8 << 48, (0x7FF8 << 48) + 1954, (0x7FF0 << 48) + 1, -1])
    for instruction_set, library in libraries().items():
        assert evaluate(library, name, from_bits(bits)).isnan().all(), instruction_set
        assert evaluate(library, name, doubles.view(torch.float64)).isnan().all(), instruction_set


def test_doubles_at_the_edges() -> None:
    edges = [0.0, -0.0, 5e-324, INFINITY, -INFINITY, NAN]
    expected = {
        "exp": [1.0, 1.0, 1.0, INFINITY, 0.0, NAN],
        "tanh": [0.0, -0.0, 5e-324, 1.0, -1.0, NAN],
        "erf": [0.0, -0.0, 5e-324, 1.0, -1.0, NAN],
        "log": [-INFINITY, -INFINITY, math.log(5e-324), INFINITY, NAN, NAN],
    }
    for instruction_set, library in libraries().items():
        for name, results in expected.items():
            x = torch.tensor(edges, dtype=torch.float64)
            assert same(evaluate(library, name, x), results), (instruction_set, name)
