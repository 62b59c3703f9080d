"""Memory that torch and the buffer protocol share."""

from __future__ import annotations

import weakref

import torch

from charlm._buffers import to_buffer, to_tensor


def test_what_reads_a_buffer_keeps_its_tensor_alive() -> None:
    tensor = torch.arange(5, dtype=torch.int16)
    alive = weakref.ref(tensor)
    view = memoryview(to_buffer(tensor))
    del tensor
    assert alive() is not None
    assert bytes(view) == bytes([0, 0, 1, 0, 2, 0, 3, 0, 4, 0])
    del view
    assert alive() is None


def test_a_tensor_shares_its_buffer() -> None:
    buffer = bytearray(b"\1\0\2\0")
    tensor = to_tensor(buffer, torch.int16)
    buffer[2] = 9
    assert tensor.tolist() == [1, 9]
    assert to_tensor(bytearray(), torch.int16).tolist() == []
