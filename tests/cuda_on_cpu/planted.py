"""Mistakes that are written into the kernels that the simulator runs, where `simulator::fault(number)` chooses one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import simulator

BARRIER = "__syncthreads();"
# How a mistake shows that the watch does not see.
WRONG_NUMBERS = "instead of"


@dataclass(frozen=True)
class Fault:
    """What a file of csrc/kernels/cuda says, what a mistake makes of that, and how the mistake shows."""

    file: str
    right: str
    wrong: str  # FAULT stands for 1 where the mistake is at work, and for 0
    shows_as: str
    occurrence: int = 0  # of `right` in the file

    def edit(self, text: str, number: int) -> str:
        """The text of the file with the mistake in it; LookupError where it has not the one place for that."""
        before, *behind = text.split(self.right)
        if len(behind) <= self.occurrence:
            raise LookupError(f"{self.file} has no place that says {self.right}")
        if len(behind) > 1 and self.right != BARRIER:
            raise LookupError(f"{self.file} has several places that say {self.right}")
        wrong = self.wrong.replace("FAULT", f"simulator::fault({number})")
        parts = [self.right] * self.occurrence + [wrong] + [self.right] * (len(behind) - self.occurrence - 1)
        return before + "".join(part for pair in zip(parts, behind, strict=True) for part in pair)


def missing_barriers(files: Sequence[str]) -> list[Fault]:
    """Each barrier of these files, which is missing once."""
    counts = {file: (simulator.KERNELS / file).read_text().count(BARRIER) for file in files}
    wrong = f"if (!FAULT) {{ {BARRIER} }}"
    shows_as = "a race|nothing has written"
    return [Fault(file, BARRIER, wrong, shows_as, i) for file, count in counts.items() for i in range(count)]


@dataclass(frozen=True)
class Planted:
    """The faults of an op, and what goes every way through its kernels."""

    faults: Sequence[Fault]
    run_everything: Callable[[], None]
