"""Small calls on plain tensors, past PyTorch's dispatcher: on a few thousand numbers it takes longer than the kernels.

The functions of the extension that this is about take what csrc/bindings/direct_calls.h says, and return None for
everything else, which is then for the op of the same name: other devices, dtypes and layouts, subclasses, bad input.
"""

import torch
from torch import Tensor, is_grad_enabled
from torch._C import _are_functorch_transforms_active, _is_tracing, _len_torch_dispatch_stack
from torch._C._autograd import _get_current_graph_task_keep_graph, _profiler_enabled
from torch.autograd import forward_ad

from charlm.ops._extension import _C

# Up to so many numbers a kernel runs for some 0.1 ms, at most 0.3, for which Python's other threads may wait.
SMALL = 1 << 17

cross_entropy_forward = _C.cross_entropy_forward
cross_entropy_backward = _C.cross_entropy_backward
linear_cross_entropy_forward = _C.linear_cross_entropy_forward
linear_cross_entropy_backward = _C.linear_cross_entropy_backward
mlp_cross_entropy_forward = _C.mlp_cross_entropy_forward
_scale_gradients = _C.scale_gradients
_is_compiling = torch.compiler.is_compiling


def serves(size: int) -> bool:
    """Whether a call on so many numbers is for the functions above, as far as that does not depend on its tensors.

    It is small, nothing is compiled, and nobody would miss the op: there is no mode that sees operations, as tracers
    and fake tensors do, no trace of TorchScript, and no profiler. That autograd or vmap want to see it is for the
    caller to exclude.
    """
    if _is_compiling() or size > SMALL:
        return False
    return not (_len_torch_dispatch_stack() or _is_tracing() or _profiler_enabled())


def is_plain_backward() -> bool:
    """In a backward: whether the functions above may serve, and overwrite what was saved: nobody differentiates or maps
    over this backward, sees its operations or will run it again.

    These are the questions of `_scaling.graph_is_kept` and `_transforms.is_more_than_first_order`, asked at once: a
    tiny loss would notice the calls.
    """
    return not (
        _is_compiling()
        or is_grad_enabled()
        or _get_current_graph_task_keep_graph()
        or _are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or _len_torch_dispatch_stack()
        or _profiler_enabled()
    )


def scale_gradients(gradients: list[Tensor], grad_output: Tensor, target: Tensor, ignore_index: int) -> bool:
    """In such a backward: whether gradients that forward computed are now those for this upstream gradient.

    They are where it is 1, as nearly always: nothing is done then. Otherwise they must be small. Where it is one number
    a row, there is one gradient, of logits.
    """
    return _scale_gradients(gradients, grad_output, target, ignore_index, SMALL)
