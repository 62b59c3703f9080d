"""The CPU's product of matrices, on each instruction set of this machine, against float64."""

from __future__ import annotations

import ctypes
import functools

import cpu_library
import pytest
import torch
from cases import normal
from torch import Tensor

pytestmark = pytest.mark.cpu

libraries = functools.partial(cpu_library.libraries, "cpu_product.cpp")
STORAGES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)  # in the order of kernels/storage.h
# (M, N, K): less than a tile; the edges of tiles; more than a block of each of them.
SHAPES = (
    (1, 1, 1),
    (3, 17, 5),
    (14, 32, 64),
    (15, 33, 31),
    (45, 70, 385),
    (1010, 20, 40),
    (20, 790, 100),
    (30, 50, 1600),
    (48, 80, 1100),  # whole registers of tiles
)
LAYOUTS = {  # of a matrix of so many rows and columns, by the strides that a kernel meets
    "rows": lambda rows, columns, dtype: torch.empty(rows, columns, dtype=dtype),
    "columns": lambda rows, columns, dtype: torch.empty(columns, rows, dtype=dtype).t(),
    "parts of rows": lambda rows, columns, dtype: torch.empty(rows, columns + 3, dtype=dtype)[:, 1 : columns + 1],
    "every other": lambda rows, columns, dtype: torch.empty(rows, 2 * columns, dtype=dtype)[:, ::2],
}


class Operand(ctypes.Structure):
    """A matrix, as tests/cpu_product.cpp has it."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("storage", "rows", "columns", "row_stride", "column_stride")),
    )

    @classmethod
    def of(cls, tensor: Tensor) -> Operand:
        return cls(tensor.data_ptr(), STORAGES.index(tensor.dtype), *tensor.shape, *tensor.stride())


def multiply(library: ctypes.CDLL, out: Tensor, a: Tensor, b: Tensor, *, accumulate: bool) -> None:
    function = library.multiply_double if out.dtype == torch.float64 else library.multiply_float
    operands = (Operand.of(tensor) for tensor in (out, a, b))
    function(*map(ctypes.byref, operands), ctypes.c_bool(accumulate))


def matrix(rows: int, columns: int, layout: str, dtype: torch.dtype, seed: int) -> Tensor:
    return LAYOUTS[layout](rows, columns, dtype).copy_(normal(rows, columns, seed=seed))


def bound(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """On the error of each element: of a chain of additions of its products."""
    magnitude = a.double().abs() @ b.double().abs()
    return magnitude * (a.shape[1] + 2) * torch.finfo(dtype).eps / 2 + torch.finfo(dtype).tiny


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("layout_b", LAYOUTS)
@pytest.mark.parametrize("layout_a", LAYOUTS)
def test_any_strides(layout_a: str, layout_b: str, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    rows, columns, depth = shape
    a, b = matrix(rows, depth, layout_a, dtype, 1), matrix(depth, columns, layout_b, dtype, 2)
    truth = a.double() @ b.double()
    limit = bound(a, b, dtype) * (2 if dtype == torch.float64 else 1)  # torch's own is one more chain
    for instruction_set, library in libraries().items():
        out = torch.full((rows, columns + 5), 7.0, dtype=dtype)
        multiply(library, out[:, :columns], a, b, accumulate=False)
        assert ((out[:, :columns].double() - truth).abs() <= limit).all(), instruction_set
        assert (out[:, columns:] == 7.0).all(), instruction_set  # nothing past the end of a row
        multiply(library, out[:, :columns], a, b, accumulate=True)
        assert ((out[:, :columns].double() - 2 * truth).abs() <= 3 * limit).all(), instruction_set


@pytest.mark.parametrize("dtypes", [(torch.bfloat16, torch.bfloat16), (torch.float32, torch.bfloat16),
                                    (torch.bfloat16, torch.float32), (torch.float16, torch.float16),
                                    (torch.float32, torch.float16)], ids=str)  # fmt: skip
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("layout_b", LAYOUTS)
@pytest.mark.parametrize("layout_a", LAYOUTS)
def test_half_precision_is_summed_in_float32(
    layout_a: str, layout_b: str, shape: tuple[int, int, int], dtypes: tuple[torch.dtype, torch.dtype]
) -> None:
    rows, columns, depth = shape
    a, b = matrix(rows, depth, layout_a, dtypes[0], 1), matrix(depth, columns, layout_b, dtypes[1], 2)
    for instruction_set, library in libraries().items():
        factors = a, b
        if library.has_pairs() and torch.bfloat16 in dtypes:  # then float32 is rounded on the way
            factors = a.bfloat16(), b.bfloat16()
        out = torch.empty(rows, columns)
        multiply(library, out, a, b, accumulate=False)
        truth = factors[0].double() @ factors[1].double()
        assert ((out.double() - truth).abs() <= bound(*factors, torch.float32)).all(), instruction_set


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_bits_do_not_depend_on_how_the_result_is_cut(dtype: torch.dtype) -> None:
    a, b = matrix(61, 500, "rows", dtype, 1), matrix(500, 90, "columns", dtype, 2)
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    for instruction_set, library in libraries().items():
        whole, parts = torch.empty(61, 90, dtype=compute), torch.empty(61, 90, dtype=compute)
        multiply(library, whole, a, b, accumulate=False)
        for rows in (slice(0, 1), slice(1, 20), slice(20, 61)):
            for columns in (slice(0, 33), slice(33, 90)):
                multiply(library, parts[rows, columns], a[rows], b[:, columns], accumulate=False)
        assert torch.equal(whole, parts), instruction_set


def test_pairs_and_tiles_are_among_what_is_tested() -> None:
    if "x86_64_v4" in libraries():
        assert [name for name, library in libraries().items() if library.has_pairs()] == [
            "x86_64_v4_bf16",
            "x86_64_v4_amx",
        ]
        assert [name for name, library in libraries().items() if library.has_tiles()] == ["x86_64_v4_amx"]
