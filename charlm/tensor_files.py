"""Tensors in the safetensors format: the same tensors are the same bytes, and a header is believed only if it fits.

    8 bytes     length n of the header, little-endian
    n bytes     JSON: "__metadata__", and dtype, shape and place of every tensor by its name
    the rest    their data, one after the other

Source: https://github.com/huggingface/safetensors, "Format".
"""

from __future__ import annotations

import io
import json
import mmap
import sys
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

# The dtypes of models, optimizers, generators and tokens, in the order in which the format has its tensors: the widest
# first, so that all are aligned.
_DTYPES = {
    "I64": torch.int64,
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "F16": torch.float16,
    "I16": torch.int16,
    "U8": torch.uint8,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_ORDER = list(_NAMES)
_METADATA = "__metadata__"
# Of a header; those of runs have a few hundred bytes, those of tokens a vocabulary.
_MAX_HEADER = 1 << 20
MAX_LARGE_HEADER = 1 << 26
_MAX_DIMS = 8
# Of a mapping: Linux would count it as memory that may be needed, and refuse one that is larger than there is.
_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)


class _Entry(TypedDict):
    dtype: Literal["F64", "F32", "BF16", "F16", "I64", "I32", "I16", "U8"]
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


def format_tensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> list[bytes]:
    """The pieces of a safetensors file with these tensors, which depend on names, values and metadata alone."""
    header, places = format_header(tensors, metadata)
    return [header, *(bytes(to_buffer(tensors[name].detach().cpu().contiguous())) for name in places)]


def format_header(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> tuple[bytes, dict[str, tuple[int, int]]]:
    """What a file with these tensors begins with, and where their data are after it, in their order in the file."""
    ordered = sorted(tensors.items(), key=lambda item: (_ORDER.index(item[1].dtype), item[0]))
    header: dict[str, Any] = {_METADATA: dict(sorted(metadata.items()))}
    places, offset = {}, 0
    for name, tensor in ordered:
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        places[name] = (offset, end)
        offset = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, places


class TensorFile:
    """A safetensors file whose header has been read, and its data not yet.

    Args:
        file: at its beginning.
        size: of the file.
        max_header: the largest header to read.

    Attributes:
        metadata: as in the header.
        tensors: by name, on the device "meta": shapes and dtypes without memory.

    Raises:
        ValueError: it is not such a file, or its size is not what its header says.
    """

    def __init__(self, file: io.FileIO, size: int, max_header: int = _MAX_HEADER) -> None:
        self._file = file
        self._size = size
        self._start = file.read(8)
        length = int.from_bytes(self._start, "little")
        if size < 8 or not 2 <= length <= min(max_header, size - 8):
            raise ValueError(f"a file of {size} bytes has no header of {length}")
        self._start += _read(file, length)
        header = parse_json(self._start[8:])
        if not isinstance(header, dict):
            raise ValueError(f"its header must be an object, got {shown(header)}")
        self.metadata = _checked_metadata(header.pop(_METADATA, {}))
        self.tensors, self._offsets = {}, {}
        for name, entry in header.items():
            self.tensors[name], self._offsets[name] = _tensor(name, entry)
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

    def map(self) -> dict[str, Tensor]:
        """The tensors, whose data are read from the disk where they are used; what is written to them changes no file.

        Raises:
            ValueError: they do not lie one after the other, or are not aligned.
        """
        end = 0
        for name in sorted(self._offsets, key=lambda name: (self._offsets[name], name)):
            start = self._offsets[name]
            if start != end or (len(self._start) + start) % self.tensors[name].element_size() != 0:
                raise ValueError(f"tensor {shown(name)} has the offset {start}, but the one before ends at {end}")
            end += self.tensors[name].numel() * self.tensors[name].element_size()
        memory = mmap.mmap(self._file.fileno(), self._size, flags=mmap.MAP_PRIVATE | _NO_RESERVE)
        return {
            name: map_tensor(memory, tensor, len(self._start) + self._offsets[name])
            for name, tensor in self.tensors.items()
        }


def map_tensor(memory: mmap.mmap, tensor: Tensor, offset: int) -> Tensor:
    """A tensor of the shape and dtype of another one, whose data are in `memory` from a byte on."""
    if tensor.numel() == 0:
        return torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
    return torch.frombuffer(memory, dtype=tensor.dtype, count=tensor.numel(), offset=offset).view(tensor.shape)


def _tensor(name: str, entry: object) -> tuple[Tensor, int]:
    """It on the device "meta", and where its data begin."""
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
    return torch.empty(shape, dtype=dtype, device="meta"), start


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
