"""Memory shared between torch and the buffer protocol, without a copy and without NumPy."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor


def to_tensor(buffer: bytearray, dtype: torch.dtype) -> Tensor:
    """The elements of `buffer` as a 1-D tensor that shares its memory and keeps it alive."""
    return torch.frombuffer(buffer, dtype=dtype) if buffer else torch.empty(0, dtype=dtype, device="cpu")


def to_buffer(tensor: Tensor) -> ctypes.Array[ctypes.c_char]:
    """The bytes of a contiguous CPU tensor, which the buffer keeps alive, and whatever reads from it."""
    assert tensor.is_contiguous()
    assert tensor.device.type == "cpu"
    buffer = (ctypes.c_char * (tensor.numel() * tensor.element_size())).from_address(tensor.data_ptr())
    buffer.tensor = tensor  # type: ignore[attr-defined]  # ctypes holds the address alone
    return buffer
