"""Tokens on disk, to be mapped into memory: a safetensors file whose metadata are the vocabulary and what was split.

    tokens      all tokens, of train, dev and test in this order
    ends        of lines: where the examples of each end; dev_ends and test_ends are counted from the first of their own
    bounds      of a stream: where dev and test begin in the tokens

A file may come from anybody: nothing in it is believed before it is checked, and tokens are checked where they are
used.
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor

from charlm import run_folder
from charlm._rules import shown
from charlm.schema import checked, parse_json
from charlm.tensor_files import MAX_LARGE_HEADER, TensorFile, format_header, map_tensor
from charlm.vocabulary import Vocabulary

_FORMAT = 1
_KEY = "charlm_tokens"
_ARRAYS = {"lines": ("tokens", "ends", "dev_ends", "test_ends"), "stream": ("tokens", "bounds")}
_DIGEST = 64


class Description(TypedDict):
    """What the tokens of a file are.

    Attributes:
        format: of the file.
        name: of the text.
        mode: "lines" or "stream".
        context_length: of lines, how many boundaries come before each; of a stream it is 0, as any will do.
        vocabulary: as a dict.
        sha256: of the vocabulary and the tokens, as `charlm.fingerprint` has it.
    """

    format: int
    name: str
    mode: Literal["lines", "stream"]
    context_length: int
    vocabulary: dict
    sha256: str


def is_token_file(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins as one of tokens does. No text does: there is NUL among its first bytes."""
    if not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        beginning = file.read(4096)
    return len(beginning) > 9 and beginning[8:9] == b"{" and b"\0" in beginning[:8] and _KEY.encode() in beginning


def read(path: str | os.PathLike[str]) -> tuple[Description, Vocabulary, dict[str, Tensor]]:
    """What a file says of its tokens, and its arrays by name, which are not read before they are used.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not a file of tokens, is damaged, or from a newer charlm.
    """
    file, size = run_folder.open_regular(Path(path))
    with file:
        try:
            tensors = TensorFile(file, size, MAX_LARGE_HEADER)
            described = parse_json(tensors.metadata.get(_KEY, "null").encode())
            version = described.get("format") if isinstance(described, dict) else None
            if isinstance(version, int) and version > _FORMAT:
                raise ValueError(f"it has format version {version}; this charlm reads up to {_FORMAT}")
            description: Description = checked(described, Description, "")
            vocabulary = Vocabulary.from_dict(description["vocabulary"])
            _check_arrays(description, vocabulary, tensors.tensors)
            arrays = tensors.map()
            _check_ends(description, arrays)
        except ValueError as error:
            raise ValueError(f"{path} is not a file of tokens, or is damaged: {error}") from None
    return description, vocabulary, arrays


@contextmanager
def created(
    path: Path, description: Mapping[str, Any], arrays: Mapping[str, tuple[int, torch.dtype]]
) -> Iterator[tuple[dict[str, Tensor], list[str]]]:
    """Creates a file, and its folder, or replaces one when the block ends well.

    Yields:
        Its arrays, to be written to, and a list that the digest of them is to be appended to.
    """
    like = {name: torch.empty(size, dtype=dtype, device="meta") for name, (size, dtype) in arrays.items()}
    header, places = format_header(like, _metadata(description, "0" * _DIGEST))
    size = len(header) + max(end for _, end in places.values())
    if os.path.lexists(path) and not path.is_file():
        # Such as a device, in whose place a file must not come.
        raise ValueError(f"{path} is not a regular file: choose another name for the tokens")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.saving")
    run_folder.remove(temporary)
    try:
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        with open(descriptor, "r+b", buffering=0) as file:
            # A disk that is full is an error here, and not a signal when the memory is written to.
            os.posix_fallocate(descriptor, 0, size)
            memory = mmap.mmap(descriptor, size)
            digest: list[str] = []
            yield (
                {name: map_tensor(memory, like[name], len(header) + start) for name, (start, _) in places.items()},
                digest,
            )
            memory[: len(header)] = format_header(like, _metadata(description, digest[0]))[0]
            memory.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        run_folder.remove(temporary)
        raise OSError(error.errno, error.strerror, str(path)) from error
    except BaseException:
        run_folder.remove(temporary)
        raise


def _metadata(description: Mapping[str, Any], digest: str) -> dict[str, str]:
    values = {"format": _FORMAT, **description, "sha256": digest}
    return {_KEY: json.dumps(values, sort_keys=True, ensure_ascii=False, separators=(",", ":"))}


def _check_arrays(description: Description, vocabulary: Vocabulary, tensors: Mapping[str, Tensor]) -> None:
    names = _ARRAYS[description["mode"]]
    if tensors.keys() != set(names):
        raise ValueError(f"it must have the arrays {', '.join(names)}, got {shown(', '.join(tensors))[1:-1]}")
    for name, tensor in tensors.items():
        index = (torch.int64,) if name == "bounds" else (torch.int32, torch.int64)
        allowed = (vocabulary.dtype,) if name == "tokens" else index
        if tensor.dim() != 1 or tensor.dtype not in allowed:
            raise ValueError(f"{name} has {tensor.dim()} dimensions and the dtype {tensor.dtype}")
    if not 0 <= description["context_length"] < 2**31:
        raise ValueError(f"context_length must be from 0 to 2147483647, got {description['context_length']}")
    if len(description["sha256"]) != _DIGEST or set(description["sha256"]) - set("0123456789abcdef"):
        raise ValueError(f"sha256 must be 64 hexadecimal digits, got {shown(description['sha256'])}")
    if description["mode"] == "stream" and len(tensors["bounds"]) != 2:
        raise ValueError(f"bounds must have 2 elements, got {len(tensors['bounds'])}")
    if description["mode"] == "lines":
        ends, dev, test = (tensors[name] for name in names[1:])
        if len({ends.dtype, dev.dtype, test.dtype}) > 1 or not 0 < len(dev) + len(test) < len(ends):
            raise ValueError("ends, dev_ends and test_ends do not fit each other")
        if len(dev) == 0 or len(test) == 0 or description["context_length"] == 0:
            raise ValueError("dev_ends and test_ends must have elements, and lines a context_length")


def _check_ends(description: Description, arrays: Mapping[str, Tensor]) -> None:
    """That the splits lie in the tokens; only the ends of the arrays are read."""
    tokens = arrays["tokens"]
    if description["mode"] == "stream":
        first, second = arrays["bounds"].tolist()
        if not 0 < first < second < len(tokens):
            raise ValueError(f"bounds must ascend within {len(tokens)} tokens, got {first}, {second}")
        return
    ends, dev, test = arrays["ends"], arrays["dev_ends"], arrays["test_ends"]
    others = description["context_length"] - 1
    train = len(ends) - len(dev) - len(test)
    last = int(ends[train - 1]), int(dev[-1]), int(test[-1])
    if min(last) < 0 or sum(last) != int(ends[-1]) or int(ends[-1]) + len(ends) * others + 1 != len(tokens):
        raise ValueError(f"ends must be numbers of examples of {len(tokens)} tokens, got {int(ends[-1])} as the last")
