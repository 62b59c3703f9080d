"""Mistakes written into kernels, all of an op into one program, where `simulator::fault(number)` chooses one."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from compiler import CSRC

BARRIER = re.compile(r"(?<!{ )__syncthreads\(\);")
# How a mistake shows that is no KernelError.
WRONG_NUMBERS = "instead of"

# A barrier's file and its number in it.
Barrier = tuple[str, int]
# file, what it says, what a mistake makes of it, and how it shows.
Mistake = tuple[str, str, str, str]


def barriers_of(files: Sequence[str]) -> list[Barrier]:
    """Every __syncthreads of some files in csrc/kernels/cuda."""
    texts = {name: (CSRC / "kernels" / "cuda" / name).read_text() for name in files}
    return [(name, i) for name, text in texts.items() for i in range(len(BARRIER.findall(text)))]


def edits_of(barriers: Sequence[Barrier], mistakes: Sequence[Mistake]) -> dict[str, Callable[[str], str]]:
    """Edits for `simulator.build`. Faults are numbered from 1: the missing barriers, then the mistakes."""

    def edit(name: str, text: str) -> str:
        numbers = iter([number for number, (file, _) in enumerate(barriers, 1) if file == name])
        text = BARRIER.sub(lambda _: f"if (!simulator::fault({next(numbers)})) {{ __syncthreads(); }}", text)
        for number, (file, right, wrong, _) in enumerate(mistakes, 1 + len(barriers)):
            if file == name:
                assert text.count(right) == 1, f"{name} has not one place that says {right}"
                text = text.replace(right, wrong.replace("FAULT", f"simulator::fault({number})"))
        return text

    changed = {file for file, *_ in [*barriers, *mistakes]}
    return {name: lambda text, name=name: edit(name, text) for name in changed}
