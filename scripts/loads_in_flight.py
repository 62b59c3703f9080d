"""How many loads from global memory a kernel has in flight, which hides what they take: read from its machine code."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from scripts.sass import Instruction, Kernel

_LOADS = {"LDG", "LD"}


class _Load(NamedTuple):
    registers: frozenset[int]  # that it writes
    predicate: str


# A copy to shared memory (cp.async), which has no register, and what ends a group of them.
_COPY = _Load(frozenset(), "copy")
_COMMIT = _Load(frozenset(), "commit")

# What is under way, in the order of issue.
_Flight = Sequence[_Load]


def loads_in_flight(kernel: Kernel, blocks: Iterable[int] | None = None) -> int:
    """The largest number of loads that are under way at a time, on one way through some blocks.

    By default these are a loop that loads and has none inside of it that does, of several the one with the most, and
    the whole kernel where no loop loads. A load is under way until an instruction takes its result, or writes where it
    will be; those that were issued before it have then arrived as well. A copy to shared memory is under way until it
    is waited for. Where ways meet, the one with more loads counts. How wide a load is does not matter.
    """
    if blocks is not None:
        return _most(kernel, set(blocks))
    loading = [loop for loop in kernel.loops if _loads(kernel, loop.blocks)]
    innermost = [loop for loop in loading if not any(_loads(kernel, inner.blocks) for inner in loop.inner)]
    return max(_most(kernel, among) for among in [loop.blocks for loop in innermost] or [set(kernel.order)])


def _loads(kernel: Kernel, blocks: Iterable[int]) -> bool:
    return any(_is_load(instruction) for i in blocks for instruction in kernel.blocks[i].instructions)


def _is_load(instruction: Instruction) -> bool:
    return instruction.kind in _LOADS or instruction.kind == "LDGSTS"


def _most(kernel: Kernel, blocks: set[int]) -> int:
    most = 0
    after: dict[int, _Flight] = {}
    for i in kernel.order:
        if i not in blocks:
            continue
        flights = [after[before] for before in kernel.predecessors[i] if before in after]
        flight = max(flights, key=_count, default=())
        for instruction in kernel.blocks[i].instructions:
            flight = _step(flight, instruction)
            most = max(most, _count(flight))
        after[i] = flight
    return most


def _count(flight: _Flight) -> int:
    return sum(load is not _COMMIT for load in flight)


def _step(flight: _Flight, instruction: Instruction) -> _Flight:
    """What is under way after an instruction."""
    if not flight and not _is_load(instruction):
        return flight
    reads, writes = instruction.registers
    touched = reads | writes
    arrived = -1
    for i, load in enumerate(flight):
        # Where either this or the load was done, but never both, the compiler has it wait for nothing.
        if load.registers & touched and not _are_opposite(load.predicate, instruction.predicate):
            arrived = i
    flight = [load for i, load in enumerate(flight) if i > arrived or not load.registers]
    # A predicate that is computed anew has nothing more to do with that of the load.
    computed = instruction.operands.split(", ")[:3]
    flight = [load._replace(predicate="") if load.predicate.strip("!") in computed else load for load in flight]
    if instruction.kind in _LOADS:
        return [*flight, _Load(writes, instruction.predicate)]
    if instruction.kind == "LDGSTS":
        return [*flight, _COPY]
    if instruction.kind == "LDGDEPBAR":
        return [*flight, _COMMIT]
    if instruction.kind == "DEPBAR":  # DEPBAR.LE SB0, 0x1: all groups but one have arrived
        groups = [i for i, load in enumerate(flight) if load is _COMMIT]
        left = int(instruction.operands.rpartition(" ")[2], 0)
        if len(groups) > left:
            waited = groups[len(groups) - 1 - left]
            return [load for i, load in enumerate(flight) if i > waited or load.registers]
    return flight


def _are_opposite(predicate: str, other: str) -> bool:
    return predicate != other and predicate.strip("!") == other.strip("!")
