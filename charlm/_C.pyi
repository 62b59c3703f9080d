from typing import Any

from torch import Tensor

def instruction_set() -> str: ...
def instruction_sets() -> list[str]: ...
def set_instruction_set(name: str | None, /) -> None: ...
def last_branch() -> str: ...
def cross_entropy_forward(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    options: tuple[Any, ...],
    keeps_lse: bool,
    wants_gradient: bool,
    rounds: bool,
    /,
) -> tuple[Tensor, Tensor | None, Tensor | None] | None: ...
def cross_entropy_backward(
    grad_output: Tensor,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    lse: Tensor,
    options: tuple[Any, ...],
    /,
) -> Tensor | None: ...
def linear_cross_entropy_forward(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None,
    weight: Tensor | None,
    options: tuple[Any, ...],
    wants_input: bool,
    wants_weight: bool,
    wants_bias: bool,
    keeps_lse: bool,
    /,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None] | None: ...
def linear_cross_entropy_backward(
    grad_output: Tensor,
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None,
    weight: Tensor | None,
    lse: Tensor,
    options: tuple[Any, ...],
    wants_input: bool,
    wants_weight: bool,
    wants_bias: bool,
    /,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, None] | None: ...
def mlp_cross_entropy_forward(
    ids: Tensor,
    target: Tensor,
    embedding: Tensor,
    weight1: Tensor,
    bias1: Tensor | None,
    weight2: Tensor,
    bias2: Tensor | None,
    options: tuple[Any, ...],
    /,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor] | None: ...
def scale_gradients(
    gradients: list[Tensor], scale: Tensor, target: Tensor, ignore_index: int, most: int, /
) -> bool: ...
def build_info() -> dict[str, object]: ...
def why_no_kernels(device: int, /) -> str | None: ...
def trains_in_one_launch(
    device: int,
    vocab_size: int,
    context_length: int,
    embedding_dim: int,
    hidden_dim: int,
    direct: bool,
    float64: bool,
    /,
) -> bool: ...
