"""Examples of a text: T characters of context and the character that follows, over one array of tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from charlm._buffers import to_buffer, to_tensor
from charlm._rules import check, check_type
from charlm._text_extension import _text


class TargetCounts:
    """How often each target follows each distinct context: a sparse (U, V) matrix, whose rows come out dense.

    In compressed sparse rows: the targets of context u are `targets[row_ptr[u] : row_ptr[u + 1]]`, ascending, and
    `values` has their counts.

    Attributes:
        row_ptr: (U+1,) int64.
        targets: (nnz,) of the token dtype.
        values: (nnz,) int64, all positive; they sum to N.
        shape: (U, V).
    """

    def __init__(self, row_ptr: Tensor, targets: Tensor, values: Tensor, vocab_size: int) -> None:
        self.row_ptr = row_ptr
        self.targets = targets
        self.values = values
        self.shape = (len(row_ptr) - 1, vocab_size)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> Tensor:
        """The counts of the contexts start .. stop-1: (stop - start, V) int64. ValueError if the step is not 1."""
        check_type("rows", rows, slice)
        start, stop, step = rows.indices(len(self))
        if step != 1:
            raise ValueError(f"rows of counts come in steps of 1, got {step}")
        row_ptr = self.row_ptr[start : max(start, stop) + 1]
        entries = slice(int(row_ptr[0]), int(row_ptr[-1]))
        dense = torch.zeros(len(row_ptr) - 1, self.shape[1], dtype=torch.int64, device="cpu")
        row = torch.repeat_interleave(torch.arange(len(dense), device="cpu"), row_ptr.diff())
        dense[row, self.targets[entries].long()] = self.values[entries]
        return dense


@dataclass(frozen=True, eq=False)
class Distinct:
    """Each context of a split once, numbered 0 .. U-1 by first appearance.

    Examples with the same context have the same logits, so that sums over examples become sums over contexts:
    sum_j -log p(target_j | context_j) = sum_u sum_v -counts[u, v] log p(v | contexts[u]).

    Attributes:
        contexts: (U, T) of the token dtype.
        index: (N,) int32, the context of each example: `contexts[index]` is `split.contexts`. int64 from N = 2^31.
        counts: (U, V), how often each target follows each context.
    """

    contexts: Tensor
    index: Tensor
    counts: TargetCounts

    def __len__(self) -> int:
        return len(self.contexts)

    def part(self, contexts: slice) -> Distinct:
        """Some of the contexts, start .. stop-1, without the index of the examples."""
        row_ptr, counts = self.counts.row_ptr[contexts.start : contexts.stop + 1], self.counts
        entries = slice(int(row_ptr[0]), int(row_ptr[-1]))
        own = TargetCounts(row_ptr - row_ptr[0], counts.targets[entries], counts.values[entries], counts.shape[1])
        return Distinct(self.contexts[contexts], self.index[:0], own)


class Split:
    """N examples over one array of tokens, in which contexts overlap: no example is stored by itself.

    The tokens are lines one after the other, each as T boundaries and its characters, then a boundary that closes the
    last. A line of L characters has L + 1 examples, and example j, on line k, has its context at
    `tokens[j + k (T - 1)]` and the T - 1 tokens after it, and as its target the token that follows these. A stream is
    one line without boundaries: example j starts at `tokens[j]`.

    Args:
        tokens: 1-D, of the vocabulary's dtype, on the CPU.
        ends: (lines,) int32 or int64 on the CPU, the number of examples up to and including each line.
        context_length: T.
        vocab_size: V.

    Raises:
        TypeError: `tokens` or `ends` are not tensors of such a dtype.
        ValueError: another argument is out of its range, or they do not fit each other.
    """

    def __init__(self, tokens: Tensor, ends: Tensor, context_length: int, vocab_size: int) -> None:
        self._set(tokens, ends, context_length, vocab_size)
        if int(ends[0]) < 0 or bool((ends[1:] < ends[:-1]).any()):
            raise ValueError(f"ends must be numbers of examples, none of them less than the one before, got {ends}")

    @classmethod
    def mapped(cls, tokens: Tensor, ends: Tensor, context_length: int, vocab_size: int) -> Split:
        """A split whose arrays are on the disk: only the last of `ends` is looked at.

        Where others are wrong, examples may be wrong, but none lies outside the tokens: `batch` and `distinct` look.
        """
        split = cls.__new__(cls)
        split._set(tokens, ends, context_length, vocab_size)
        return split

    def _set(self, tokens: Tensor, ends: Tensor, context_length: int, vocab_size: int) -> None:
        check("context_length", context_length)
        check("vocab_size", vocab_size)
        _check_array("tokens", tokens, (torch.uint8, torch.int16, torch.int32))
        _check_array("ends", ends, (torch.int32, torch.int64))
        if len(ends) == 0 or int(ends[-1]) < 0:
            raise ValueError(f"ends must be numbers of examples, none of them less than the one before, got {ends}")
        needed = int(ends[-1]) + len(ends) * (context_length - 1) + 1
        if len(tokens) < needed:
            raise ValueError(
                f"tokens must have {needed} elements for ends[-1] = {int(ends[-1])} examples with "
                f"context_length={context_length}, got {len(tokens)}"
            )
        self.tokens = tokens
        self.ends = ends
        self.context_length = context_length
        self.vocab_size = vocab_size
        self._kept: dict[tuple[int, bool], Distinct] = {}

    def __len__(self) -> int:
        """N, the number of examples."""
        return int(self.ends[-1])

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """The contexts (B, T) and targets (B,) of the examples `indices` (B,), on the CPU, in the dtype of the tokens.

        Raises:
            IndexError: an index is not in 0 .. N-1.
            TypeError: `indices` are not integers.
            ValueError: `indices` is not one-dimensional.
        """
        check_type("indices", indices, Tensor)
        if indices.dim() != 1:
            raise ValueError(f"indices must have shape (B,), got {tuple(indices.shape)}")
        if indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool:
            raise TypeError(f"indices must be integers, got {indices.dtype}")
        indices = indices.long()
        if len(indices) > 0:
            low, high = torch.aminmax(indices)
            if low < 0 or high >= len(self):
                position = int(((indices < 0) | (indices >= len(self))).nonzero()[0])
                raise IndexError(
                    f"indices[{position}] = {int(indices[position])} is out of range for {len(self)} examples"
                )
        starts = self._starts(indices)
        return self._windows()[starts], self.tokens[starts + self.context_length]

    @property
    def contexts(self) -> Tensor:
        """(N, T), the contexts of all examples: for a stream a view of the tokens, otherwise a new tensor."""
        if len(self.ends) == 1:
            return self._windows()[: len(self)]
        return self._windows()[self._starts(torch.arange(len(self), device="cpu"))]

    @property
    def targets(self) -> Tensor:
        """(N,), the targets of all examples: for a stream a view of the tokens, otherwise a new tensor."""
        if len(self.ends) == 1:
            return self.tokens[self.context_length : self.context_length + len(self)]
        return self.tokens[self._starts(torch.arange(len(self), device="cpu")) + self.context_length]

    def parts(self, size: int) -> Iterator[Split]:
        """The examples in splits of at most `size` each, in their order: views of the tokens."""
        for start in range(0, len(self), size):
            yield self._part(start, min(start + size, len(self)))

    def _part(self, start: int, stop: int) -> Split:
        """The examples start .. stop-1."""
        bounds = torch.tensor([start, stop - 1], dtype=self.ends.dtype, device="cpu")
        first, last = torch.searchsorted(self.ends, bounds, right=True).tolist()
        # Each line before has T - 1 tokens more than examples.
        token = start + first * (self.context_length - 1)
        end = stop + last * (self.context_length - 1) + self.context_length
        ends = self.ends[first : last + 1].clamp(max=stop) - start
        return Split(self.tokens[token:end], ends, self.context_length, self.vocab_size)

    def distinct(self, step: int = 1, *, with_index: bool = True) -> Distinct:
        """Each context once, with the counts of its targets. Computed at each call, in time proportional to N / step.

        Args:
            step: only the examples 0, step, 2 step, ... are looked at; `index` then is that of these.
            with_index: without it `index` is empty, and memory does not grow with N.

        Raises:
            IndexError: a token is not in 0 .. V-1.
        """
        check("step", step, rule="context_length")
        tokens, ends = self.tokens.contiguous(), self.ends.contiguous()
        starts, index, row_ptr, targets, values = _text.distinct_contexts(
            tokens.itemsize,
            ends.itemsize,
            to_buffer(tokens),
            to_buffer(ends),
            self.context_length,
            self.vocab_size,
            step,
            with_index,
        )
        counts = TargetCounts(
            to_tensor(row_ptr, torch.int64),
            to_tensor(targets, tokens.dtype),
            to_tensor(values, torch.int64),
            self.vocab_size,
        )
        contexts = self._windows()[to_tensor(starts, torch.int64)]
        return Distinct(contexts, to_tensor(index, ends.dtype), counts)

    def kept_distinct(self, step: int = 1, *, with_index: bool = True) -> Distinct:
        """The same, computed once and kept with the split, for all who train on it or are measured on it."""
        if (step, with_index) not in self._kept:
            self._kept[step, with_index] = self.distinct(step, with_index=with_index)
        return self._kept[step, with_index]

    def _windows(self) -> Tensor:
        return self.tokens.unfold(0, self.context_length, 1)

    def _starts(self, indices: Tensor) -> Tensor:
        lines = torch.searchsorted(self.ends, indices.to(self.ends.dtype), right=True)
        return indices + lines * (self.context_length - 1)

    def __repr__(self) -> str:
        return f"Split({len(self):,} examples, context_length={self.context_length})"


def _check_array(name: str, array: Tensor, dtypes: tuple[torch.dtype, ...]) -> None:
    check_type(name, array, Tensor)
    if array.dtype not in dtypes:
        raise TypeError(f"{name} must have a dtype among {', '.join(map(str, dtypes))}, got {array.dtype}")
    if array.dim() != 1:
        raise ValueError(f"{name} must have one dimension, got shape {tuple(array.shape)}")
    if array.device.type != "cpu":
        raise ValueError(f"{name} must be on the CPU, got {array.device}")
