"""Tensors in the safetensors format: the same tensors are the same bytes, and a header is believed only if it fits.

    8 bytes     length n of the header, little-endian
    n bytes     JSON: "__metadata__", and dtype, shape and place of every tensor by its name
    the rest    their data, one after the other

Source: https://github.com/huggingface/safetensors, "Format".
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from math import prod
from typing import Any, Literal, TypedDict

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_safetensors
from torch import Tensor

from charlm._buffers import to_buffer
from charlm._rules import shown
from charlm.schema import checked, parse_json

# The dtypes that a model, its optimizer or a generator can have, in the order in which the format has its tensors: the
# widest first, so that all are aligned.
_DTYPES = {
    "I64": torch.int64,
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "U8": torch.uint8,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_ORDER = list(_NAMES)
_METADATA = "__metadata__"
# Of a header; those of charlm have a few hundred bytes.
_MAX_HEADER = 1 << 20
_MAX_DIMS = 8


class _Entry(TypedDict):
    dtype: Literal["F64", "F32", "BF16", "F16", "I64", "U8"]
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


def format_tensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> list[bytes]:
    """The pieces of a safetensors file with these tensors, which depend on names, values and metadata alone."""
    ordered = sorted(tensors.items(), key=lambda item: (_ORDER.index(item[1].dtype), item[0]))
    header: dict[str, Any] = {_METADATA: dict(sorted(metadata.items()))}
    data, offset = [], 0
    for name, tensor in ordered:
        values = tensor.detach().cpu().contiguous()
        data.append(bytes(to_buffer(values)))
        end = offset + len(data[-1])
        header[name] = {"dtype": _NAMES[values.dtype], "shape": list(values.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return [len(text).to_bytes(8, "little"), text, *data]


class TensorFile:
    """A safetensors file whose header has been read, and its data not yet.

    Args:
        file: at its beginning.
        size: of the file.

    Attributes:
        metadata: as in the header.
        tensors: by name, on the device "meta": shapes and dtypes without memory.

    Raises:
        ValueError: it is not such a file, or its size is not what its header says.
    """

    def __init__(self, file: io.FileIO, size: int) -> None:
        self._file = file
        self._size = size
        self._start = file.read(8)
        length = int.from_bytes(self._start, "little")
        if size < 8 or not 2 <= length <= min(_MAX_HEADER, size - 8):
            raise ValueError(f"a file of {size} bytes has no header of {length}")
        self._start += _read(file, length)
        header = parse_json(self._start[8:])
        if not isinstance(header, dict):
            raise ValueError(f"its header must be an object, got {shown(header)}")
        self.metadata = _checked_metadata(header.pop(_METADATA, {}))
        self.tensors = {name: _tensor(name, entry) for name, entry in header.items()}
        expected = 8 + length + sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())
        if size != expected:
            raise ValueError(f"its header describes a file of {expected} bytes, but it has {size}")

    def read(self) -> dict[str, Tensor]:
        """The tensors with their data; ValueError if the file does not hold them."""
        try:
            return parse_safetensors(self._start + _read(self._file, self._size - len(self._start)))
        except SafetensorError as error:
            raise ValueError(str(error)) from error
        except MemoryError:
            raise ValueError(f"its {self._size} bytes do not fit into memory") from None


def _tensor(name: str, entry: object) -> Tensor:
    if isinstance(entry, dict):
        entry = {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}
    found = checked(entry, _Entry, f"tensor {shown(name)}")
    dtype, shape, (start, end) = _DTYPES[found["dtype"]], found["shape"], found["data_offsets"]
    if len(shape) > _MAX_DIMS or min(shape, default=0) < 0 or prod(shape) * dtype.itemsize != end - start:
        raise ValueError(
            f"tensor {shown(name)} of shape {shown(shape)} and dtype {found['dtype']} has the offsets {start}, {end}"
        )
    # Sizes of which one is 0 may be of any size otherwise, and then have no strides.
    if 0 in shape and max(shape) > 1 << 31:
        raise ValueError(f"tensor {shown(name)} has the shape {shown(shape)}")
    return torch.empty(shape, dtype=dtype, device="meta")


def _checked_metadata(values: object) -> dict[str, str]:
    if not isinstance(values, dict) or not all(isinstance(value, str) for value in values.values()):
        raise ValueError(f"{_METADATA} must be an object of strings, got {shown(values)}")
    return values


def _read(file: io.FileIO, size: int) -> bytes:
    """The next `size` bytes; ValueError if the file, which somebody may be writing, has fewer."""
    pieces = []
    while size > 0 and (piece := file.read(size)):
        pieces.append(piece)
        size -= len(piece)
    if size > 0:
        raise ValueError(f"{size} bytes are missing at its end")
    return b"".join(pieces)
