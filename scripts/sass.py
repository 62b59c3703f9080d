"""What a compiled kernel does, read from its machine code: its instructions, its loops, the longest way through them.

The code is the text that `nvdisasm -c` prints of a cubin. A kernel is cut into blocks, which control enters at the
first instruction alone and leaves at the last. A loop is a block, its head, with what leads back to it. What a diverged
warp does out of line (BRA.DIV) is left out: it is done seldom.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import metadata
from pathlib import Path

_TARGET = re.compile(r"\.target\s+(\w+)")
_FUNCTION = re.compile(r"\.section\s+\.text\.([^\s,]+)")
_LABEL = re.compile(r"([.$\w]+):$")
_INSTRUCTION = re.compile(r"/\*([0-9a-f]+)\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][\w.]*)\s*(.*?)\s*;")
_NAMED_LABEL = re.compile(r"`\(([^)]+)\)")
_TABLE_OF_LABELS = re.compile(r'BRANCH_TARGETS ([^"]+)')
# A register, and whether it stands for two: an address [R6.64] is in R6 and R7.
_REGISTER = re.compile(r"\bR(\d+)(?:\.reuse)?(\.64)?\b")

_STORES = {"ST", "STG", "STS", "STL", "RED", "REDG"}
_WITHOUT_RESULT = _STORES | {"LDGSTS", "FCHK", "R2UR", "R2P", "CALL", "RET", "WARPSYNC", "BRX", "BAR"}
_JUMPS = {"BRA", "BRX", "BRXU", "JMP", "EXIT", "RET"}


@dataclass(frozen=True)
class Instruction:
    offset: int
    predicate: str  # "P0", "!P0"; "": always done
    opcode: str  # LDG.E.128
    operands: str

    @cached_property
    def _parts(self) -> list[str]:
        return self.opcode.split(".")

    @property
    def kind(self) -> str:
        return self._parts[0]

    def matches(self, word: str) -> bool:
        """Whether it is a `word`, such as LDG or LDG.128: of that kind, with at least those modifiers."""
        kind, *modifiers = word.split(".")
        return kind == self.kind and set(modifiers) <= set(self._parts)

    @property
    def labels(self) -> list[str]:
        """Where it may jump."""
        if table := _TABLE_OF_LABELS.search(self.operands):
            return table[1].split(",")
        return _NAMED_LABEL.findall(self.operands)

    @cached_property
    def registers(self) -> tuple[frozenset[int], frozenset[int]]:
        """Those it reads, and those it writes; of a value in two that it computes with or computes, the first alone."""
        width = 4 if "128" in self._parts else 2 if "64" in self._parts or "WIDE" in self._parts else 1
        reads: set[int] = set()
        writes: set[int] = set()
        operands = self.operands.split(", ")
        if self.kind not in _WITHOUT_RESULT and "SETP" not in self.kind:
            # Predicates may come before the result, as in SHFL.BFLY PT, R7, R5, 0x10, 0x1f.
            while re.fullmatch(r"U?P\w+", operands[0]) and len(operands) > 1:
                del operands[0]
            if result := re.fullmatch(r"R(\d+)", operands[0]):
                del operands[0]
                writes.update(range(int(result[1]), int(result[1]) + width))
        for operand in operands:
            stored = width if self.kind in _STORES and "[" not in operand else 1
            for number, is_pair in _REGISTER.findall(operand):
                reads.update(range(int(number), int(number) + (2 if is_pair else stored)))
        return frozenset(reads), frozenset(writes)


@dataclass
class Block:
    instructions: list[Instruction] = field(default_factory=list)
    successors: list[int] = field(default_factory=list)

    @property
    def is_end(self) -> bool:
        """Whether the kernel may end behind it."""
        return self.instructions[-1].kind in {"EXIT", "RET"}

    @property
    def offset(self) -> int:
        return self.instructions[0].offset


@dataclass
class Loop:
    head: int
    blocks: set[int]  # with those of the loops inside of it
    inner: list[Loop] = field(default_factory=list)  # those right inside of it

    @property
    def own(self) -> set[int]:
        """The blocks that are in no loop inside of it."""
        return self.blocks.difference(*(loop.blocks for loop in self.inner))


class Kernel:
    """A function of a cubin. Its blocks are in the order of their addresses, the first is where it begins."""

    def __init__(
        self, name: str, architecture: str, instructions: Sequence[Instruction], labels: dict[str, int]
    ) -> None:
        self.name = name
        self.architecture = architecture
        starts = {0, *labels.values()}
        starts |= {i + 1 for i, instruction in enumerate(instructions) if instruction.kind in _JUMPS}
        bounds = sorted(start for start in starts if start < len(instructions))
        self.blocks = [
            Block(list(instructions[start:end]))
            for start, end in zip(bounds, [*bounds[1:], len(instructions)], strict=True)
        ]
        self._block_of = {label: bounds.index(start) for label, start in labels.items() if start < len(instructions)}
        for i, block in enumerate(self.blocks):
            block.successors = self._successors(i, block.instructions[-1])

    def _successors(self, i: int, last: Instruction) -> list[int]:
        found = []
        if last.kind in _JUMPS - {"EXIT", "RET"} and not last.matches("BRA.DIV"):
            found = [self._block_of[label] for label in last.labels if label in self._block_of]
        # BRA.U UP0 and BRA P0 name another condition among their operands.
        conditional = last.predicate or (last.kind == "BRA" and not last.operands.startswith("`"))
        if (last.kind not in _JUMPS or conditional) and i + 1 < len(self.blocks):
            found.append(i + 1)
        return found

    @cached_property
    def order(self) -> list[int]:
        """The blocks that can be reached, each behind all that lead to it but for those that jump back.

        Neither what is called is among them nor what stands behind the end.
        """
        done: list[int] = []
        seen = {0}
        stack = [(0, iter(self.blocks[0].successors))]
        while stack:
            i, rest = stack[-1]
            for successor in rest:
                if successor not in seen:
                    seen.add(successor)
                    stack.append((successor, iter(self.blocks[successor].successors)))
                    break
            else:
                done.append(i)
                stack.pop()
        return done[::-1]

    @cached_property
    def predecessors(self) -> dict[int, list[int]]:
        found: dict[int, list[int]] = {i: [] for i in self.order}
        for i in self.order:
            for successor in self.blocks[i].successors:
                found[successor].append(i)
        return found

    @cached_property
    def _dominator(self) -> dict[int, int]:
        """Of each block the last one before it that every way to it leads through (Cooper, Harvey and Kennedy 2001)."""
        place = {block: i for i, block in enumerate(self.order)}
        found = {0: 0}
        changed = True
        while changed:
            changed = False
            for block in self.order[1:]:
                ways = [i for i in self.predecessors[block] if i in found]
                common = ways[0]
                for other in ways[1:]:
                    while common != other:
                        if place[common] < place[other]:
                            other = found[other]
                        else:
                            common = found[common]
                if found.get(block) != common:
                    found[block] = common
                    changed = True
        return found

    def _dominates(self, block: int, other: int) -> bool:
        while other not in (block, 0):
            other = self._dominator[other]
        return other == block

    @cached_property
    def loops(self) -> list[Loop]:
        """All loops by the address of their heads, an outer one before those inside of it."""
        loops: dict[int, Loop] = {}
        for i in self.order:
            for head in self.blocks[i].successors:
                if not self._dominates(head, i):
                    continue
                loop = loops.setdefault(head, Loop(head, {head}))
                waiting = [i]
                while waiting:
                    block = waiting.pop()
                    if block not in loop.blocks:
                        loop.blocks.add(block)
                        waiting += self.predecessors[block]
        ordered = sorted(loops.values(), key=lambda loop: (loop.head, -len(loop.blocks)))
        for loop in ordered:
            around = [other for other in ordered if other is not loop and loop.head in other.blocks]
            if around:
                min(around, key=lambda other: len(other.blocks)).inner.append(loop)
        return ordered

    def kinds(self, blocks: Iterable[int]) -> Counter[str]:
        """How many instructions of each kind some blocks have."""
        return Counter(instruction.kind for i in blocks for instruction in self.blocks[i].instructions)

    def longest_path(
        self, blocks: Iterable[int], trips: Callable[[Loop], float], exit: int | None = None
    ) -> dict[int, float]:
        """The way through `blocks` with the most instructions: the blocks on it, and how often each is passed.

        Of a loop that is one trip, from the first block back to it; of a kernel it ends where the kernel does, at any
        of its exits or, by their addresses, at one. A loop on the way has its own longest trip, as often as `trips`
        says; 0 leads around it. So the sum is a bound: no thread need ever go that way. A call counts as the one
        instruction that it is. Empty where there is no way.
        """
        first, wanted, ends = self._on_the_way(set(blocks), exit)
        inside = [loop for loop in self.loops if loop.head in wanted and loop.head != first]
        outermost = [loop for loop in inside if not any(loop in other.inner for other in inside)]
        # A loop is passed as if its head were all of it.
        place = {i: i for i in wanted} | {i: loop.head for loop in outermost for i in loop.blocks & wanted}
        members: dict[int, list[int]] = {}
        for i, at in place.items():
            members.setdefault(at, []).append(i)
        passed = {i: {i: 1.0} for i in members}
        for loop in outermost:
            trip, count = self.longest_path(loop.blocks & wanted, trips), trips(loop)
            passed[loop.head] = {i: times * count for i, times in trip.items() if count > 0}
        lengths = {i: self.count(blocks) for i, blocks in passed.items()}

        longest = {first: lengths[first]} if first in lengths else {}
        before: dict[int, int] = {}
        for at in self.order:
            if at not in longest or not passed[at]:
                continue
            following = {place[i] for member in members[at] for i in self.blocks[member].successors if i in wanted}
            for i in following - {at, first}:
                if longest[at] + lengths[i] > longest.get(i, -1):
                    longest[i] = longest[at] + lengths[i]
                    before[i] = at
        reached = [place[i] for i in ends if place[i] in longest and passed[place[i]]]
        way: dict[int, float] = {}
        at = max(reached, key=lambda i: longest[i], default=-1)
        while at >= 0:
            way |= passed[at]
            at = before.get(at, -1)
        return way

    def _on_the_way(self, blocks: set[int], exit: int | None) -> tuple[int, set[int], list[int]]:
        """The first of the blocks, those on a way from there to an end, and the ends."""
        first = next((i for i in self.order if i in blocks), -1)
        reached = _closure([first] if blocks else [], lambda i: self.blocks[i].successors, blocks)
        if any(loop.head == first for loop in self.loops):
            ends = [i for i in reached if first in self.blocks[i].successors]
        else:
            exits = [i for i in sorted(self.order) if self.blocks[i].is_end]
            ends = [i for i in (exits if exit is None else exits[exit : exit + 1]) if i in reached]
        return first, reached & _closure(ends, lambda i: self.predecessors[i], blocks), ends

    def count(self, way: dict[int, float], word: str | None = None) -> float:
        """The instructions on a way, or those of them that match a word."""
        return sum(
            times * sum(word is None or instruction.matches(word) for instruction in self.blocks[i].instructions)
            for i, times in way.items()
        )


def _closure(start: Iterable[int], following: Callable[[int], Iterable[int]], wanted: set[int]) -> set[int]:
    """What can be reached from `start` without leaving what is wanted."""
    found: set[int] = set()
    waiting = list(start)
    while waiting:
        i = waiting.pop()
        if i in wanted and i not in found:
            found.add(i)
            waiting += following(i)
    return found


def parse(text: str) -> list[Kernel]:
    """The functions in what `nvdisasm -c` prints, in its order."""
    architecture = ""
    kernels = []
    name = ""
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}

    def finish() -> None:
        if instructions:
            kernels.append(Kernel(name, architecture, instructions, labels))

    for line in text.splitlines():
        if found := _INSTRUCTION.search(line):
            offset, predicate, opcode, operands = found.groups()
            instructions.append(Instruction(int(offset, 16), predicate or "", opcode, operands))
        elif found := _LABEL.match(line):
            labels[found[1]] = len(instructions)
        elif found := _FUNCTION.search(line):
            finish()
            name, instructions, labels = found[1], [], {}
        elif found := _TARGET.search(line):
            architecture = found[1]
    finish()
    return kernels


def disassemble(cubin: Path) -> list[Kernel]:
    """The functions of a file of machine code."""
    command = [str(find_nvdisasm()), "-c", str(cubin)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        sys.exit(f"{cubin}: nvdisasm cannot read it: {result.stderr.strip()}")
    return parse(result.stdout)


def find_nvdisasm() -> Path:
    """The disassembler: that of PyPI, which `make setup` installs, or one on the PATH or beside nvcc."""
    try:
        files = metadata.files("nvidia-cuda-nvdisasm") or []
    except metadata.PackageNotFoundError:
        files = []
    found = [Path(str(file.locate())) for file in files if file.name == "nvdisasm"]
    for program in filter(None, map(shutil.which, ("nvdisasm", "nvcc"))):
        found.append(Path(program).resolve().with_name("nvdisasm"))
    for path in found:
        if path.exists():
            return path
    sys.exit("there is no nvdisasm to read machine code with: pip install nvidia-cuda-nvdisasm, on Linux")
