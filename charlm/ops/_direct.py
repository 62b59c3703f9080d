"""Small calls on plain tensors, past PyTorch's dispatcher: on a few thousand numbers it takes longer than the kernels.

The functions of the extension that this is about take what csrc/bindings/direct_calls.h says, and return None for
everything else, which is then for the op of the same name: other devices, dtypes and layouts, subclasses, bad input.
"""

import torch
from torch._C import _len_torch_dispatch_stack
from torch._C._autograd import _profiler_enabled

from charlm.ops._extension import _C

# Up to so many numbers a kernel runs for at most about 0.1 ms, for which Python's other threads may wait.
SMALL = 1 << 17

cross_entropy = _C.cross_entropy
linear_cross_entropy = _C.linear_cross_entropy
mlp_cross_entropy = _C.mlp_cross_entropy


def is_unobserved() -> bool:
    """Whether nobody would miss the op: no mode that sees operations, as tracers and fake tensors do, and no profiler.

    That autograd, vmap and the compiler want to see it is for the caller to exclude.
    """
    return not (_len_torch_dispatch_stack() or _profiler_enabled())


def is_one(scale: torch.Tensor) -> bool:
    """Whether a scalar is 1, if it can be read without anybody seeing it; False where that is not known."""
    return _C.is_one(scale) and is_unobserved()
