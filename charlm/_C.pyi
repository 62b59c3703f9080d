from typing import Any

from torch import Tensor

def instruction_set() -> str: ...
def instruction_sets() -> list[str]: ...
def set_instruction_set(name: str | None, /) -> None: ...
def last_branch() -> str: ...
def cross_entropy(
    input: Tensor, target: Tensor, options: tuple[Any, ...], wants_gradient: bool, rounds: bool, /
) -> tuple[Tensor, Tensor | None, Tensor | None] | None: ...
def is_one(scale: Tensor, /) -> bool: ...
def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None,
    options: tuple[Any, ...],
    wants_input: bool,
    wants_weight: bool,
    wants_bias: bool,
    /,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None] | None: ...
def mlp_cross_entropy(
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
def build_info() -> dict[str, object]: ...
