"""Mistakes written into kernels, all of an op into one program, where `simulator::fault(number)` chooses one."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from compiler import CSRC
from simulator import Edit, Server, build

BARRIER = re.compile(r"(?<!{ )__syncthreads\(\);")
# How a mistake shows that is no KernelError.
WRONG_NUMBERS = "instead of"

# file, what it says, what a mistake makes of it, and how it shows.
Mistake = tuple[str, str, str, str]


@dataclass(frozen=True)
class Planted:
    """The faults of an op. They are numbered from 1: the missing barriers, then the mistakes."""

    op: str
    files: Sequence[str]  # in csrc/kernels/cuda, each of whose barriers is missing once
    mistakes: Sequence[Mistake]
    run_everything: Callable[[Server], None]  # every way through the kernels

    @cached_property
    def barriers(self) -> list[tuple[str, int]]:
        """A file and a barrier's number in it, for each __syncthreads."""
        texts = {name: (CSRC / "kernels" / "cuda" / name).read_text() for name in self.files}
        return [(name, i) for name, text in texts.items() for i in range(len(BARRIER.findall(text)))]

    def build(self) -> Path:
        """The server that has all of the faults."""
        changed = {file for file, *_ in [*self.barriers, *self.mistakes]}
        return build(self.op, "races", {name: self._edit_of(name) for name in changed})

    def run(self, fault: int) -> None:
        """Runs everything with one fault at work, or with none."""
        server = Server(self.build())
        try:
            server.plant(fault)
            self.run_everything(server)
        finally:
            server.close()

    def _edit_of(self, name: str) -> Edit:
        def edit(text: str) -> str:
            numbers = iter([number for number, (file, _) in enumerate(self.barriers, 1) if file == name])
            text = BARRIER.sub(lambda _: f"if (!simulator::fault({next(numbers)})) {{ __syncthreads(); }}", text)
            for number, (file, right, wrong, _) in enumerate(self.mistakes, 1 + len(self.barriers)):
                if file == name:
                    assert text.count(right) == 1, f"{name} has not one place that says {right}"
                    text = text.replace(right, wrong.replace("FAULT", f"simulator::fault({number})"))
            return text

        return edit
