"""Products of matrices that C++ cannot ask torch for: its stable interface passes no number of any type, as beta is."""

import torch
from torch import Tensor, addmm

from charlm.ops import _extension  # noqa: F401  declares the op

__all__: list[str] = []


def multiply_add(addend: Tensor, a: Tensor, b: Tensor, out: Tensor) -> None:
    """out = addend + a b; the addend is out itself or one row."""
    if out.dtype == a.dtype:
        addmm(addend, a, b, out=out)
    else:
        torch.ops.aten.addmm.dtype_out(addend, a, b, out.dtype, out=out)


torch.library.impl("charlm::multiply_add", "CUDA", multiply_add)
